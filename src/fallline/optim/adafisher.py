"""AdaFisher: momentum over the diagonal of a Kronecker-factored Fisher matrix.

    m ← β m + (1 − β) g;   θ ← θ − η / (1 − βᵗ) · m / F,   F = S̄ ⊗ H̄ + λ
    every k steps, for every layer:  H̄ ← (1 − γ₁) H̄ + γ₂ z(H),  S̄ ← (1 − γ₁) S̄ + γ₂ z(S)  from 1;   z(v) = (v − min v) / (max v − min v)

H is the diagonal of the second moment of a layer's inputs, S that of its output gradients:

    linear                 H = mean over rows of [x, 1]²,  S = mean over rows of s²; positions of a sequence are rows
    convolution            the same with patches for x, over samples and positions
    normalisation          H = [Σ_c (Σ x_c / n²)², C] / B²,  S = (Σ s_c)² / B:  C channels, B samples, n positions of a sample

The last entry of H belongs to the bias, the others to the columns of the weight, S to the rows of both.

Martins Gomes, Zhang, Belilovsky, Wolf, Hosseini: AdaFisher: Adaptive Second Order Optimization via Fisher Information, ICLR 2025,
arXiv 2405.16397; where its text leaves it open, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fallline.core.errors import MissingOracle
from fallline.core.modules import sharded
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.taps import Taps, input_rows
from fallline.optim.directions.fisher_diagonal import INPUTS, AverageAlone, OverFisher
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay, Direction, Move
from fallline.optim.engine.state import working_dtype

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)
LAYERS = (nn.Linear, nn.Conv2d, *NORMS)
TINY = 1e-12


class Moments(NamedTuple):
    """H and S of a layer, and of how many rows they are means."""

    inputs: Tensor
    outputs: Tensor
    rows: int

    def pooled(self, other: Moments) -> Moments:
        """Those of the rows of both."""
        share = other.rows / (self.rows + other.rows)
        return Moments(torch.lerp(self.inputs, other.inputs, share), torch.lerp(self.outputs, other.outputs, share),
                       self.rows + other.rows)


def moments(module: Any, x: Tensor, s: Tensor) -> Moments:
    """H, with an entry for the bias if there is one, and S, from a layer's input and the gradient of its output."""
    x, s = (t.to(working_dtype(t.dtype)) for t in (x, s))
    if isinstance(module, NORMS):
        inputs, outputs, one = _of_normalisation(module, x, s)
        rows = len(x)
    else:
        found = input_rows(module, x)
        inputs, rows, one = found.square().mean(0), len(found), 1.0
        channel = s.ndim - 1 if isinstance(module, nn.Linear) else s.ndim - 3
        outputs = s.movedim(channel, -1).flatten(0, -2).square().mean(0)
    return Moments(inputs if module.bias is None else torch.cat([inputs, inputs.new_full((1,), one)]), outputs, rows)


def _of_normalisation(module: nn.Module, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, float]:
    """H for the scales, one number, S, and H for the shifts."""
    x, s = (t if t.ndim > 1 else t.unsqueeze(0) for t in (x, s))
    samples, channels, positions = len(x), x.shape[1], math.prod(x.shape[2:])
    sums = x.transpose(0, 1).flatten(1).sum(1) / positions**2
    last = s.ndim - 1 if isinstance(module, nn.LayerNorm) else 1
    outputs = s.movedim(last, 0).flatten(1).sum(1).square() / samples
    return sums.square().sum().reshape(1) / samples**2, outputs, channels / samples**2


def normalised(v: Tensor) -> Tensor:
    """(v − min v) / (max v − min v), and 0 where all entries are the same."""
    low, high = v.aminmax()
    return (v - low) / (high - low + TINY)


@register("adafisher")
class AdaFisher(Optimizer):
    """m ← β m + (1 − β) g;  θ ← θ − η / (1 − βᵗ) · m / (S̄ ⊗ H̄ + λ), no square root.

    Reads layer inputs and output gradients at steps 1, k + 1, 2k + 1, … while the step evaluates the network:
    ``opt.step(objective(x, y))`` with ``objective = Objective(model, loss)``, and no pass more than other steps. Between them any step
    will do. Parameters of other layers than linear ones, two-dimensional convolutions, batch and layer normalisation over one dimension
    take m / (1 − βᵗ), F = 1. A layer that is used several times has the moments of all uses; a parameter of several layers those of the
    first. Under DistributedDataParallel moments are means over the processes; a sharded network is refused.

    H̄ and S̄ end up below γ₂ / γ₁, so F is mostly λ: the learning rate compares with SGD's times λ.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    beta : float, default 0.9
        Parameter groups have it as ``betas``, ``(0.9,)``.
    lam : float, default 1e-3
        λ, positive.
    gammas : pair of float, default (0.92, 0.008)
        γ₁ and γ₂.
    every : int, default 100
        k, steps between new moments.
    weight_decay : float, default 0
        Added to the gradient.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}
    decay: ClassVar[type[Move]] = Move

    def __init__(self, params: Any, lr: float = 1e-3, beta: float = 0.9, lam: float = 1e-3,
                 gammas: tuple[float, float] = (0.92, 0.008), every: int = 100, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        check("beta", beta)
        check("every", every)
        defaults = {"lr": lr, "betas": (beta,), "lam": lam, "gammas": gammas, "weight_decay": weight_decay}
        super().__init__(params, OverFisher(every=int(every)), defaults, move=self.decay(), **options)

    def _forget(self) -> None:
        super()._forget()
        self._read: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._elsewhere: set[int] = set()

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        state = self.state.get(p)
        elsewhere = "outputs" not in state if state else id(p) in self._elsewhere
        return AverageAlone() if elsewhere else self.direction

    @contextmanager
    def watching(self, closure: Callable[[], Any] | None) -> Iterator[None]:
        """Read the layers of which a parameter is due."""
        model, due = getattr(closure, "model", None), self._due()
        if model is None or not due:
            yield
            return
        if sharded(model):
            raise MissingOracle(f"{type(self).__name__} reads the layers of whole weights, and this network is sharded; use "
                                "DistributedDataParallel, or an optimizer that needs gradients only")
        found: dict[nn.Module, Moments] = {}

        def receive(module: nn.Module, x: Tensor, s: Tensor) -> None:
            if due.isdisjoint(module.parameters(recurse=False)) or not _has_moments(module):
                return
            new = moments(module, x, s)
            found[module] = found[module].pooled(new) if module in found else new

        with Taps(model, LAYERS, receive, evaluating=True):
            yield
        layers = {module: found[module] for module in model.modules() if module in found}
        if isinstance(model, DistributedDataParallel):
            layers = _mean_over_processes(layers, model.process_group)
        self._read = _by_parameter(layers)
        self._elsewhere = {id(p) for p in due - self._read.keys()}

    def _due(self) -> set[Tensor]:
        """The parameters whose next step takes new moments."""
        everything = (p for group in self.param_groups for p in group["params"] if p.requires_grad)
        return {p for p in everything if self.state.get(p, {}).get("step", 0) % self.direction.every == 0}  # type: ignore[attr-defined]

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        if not hasattr(realisation, "model"):
            raise MissingOracle(f"{type(self).__name__} needs the layers of a network: call step(objective(batch)), with objective = "
                                "fl.Objective(model, loss)")
        return {p: inputs if oracle == INPUTS else outputs for p, (inputs, outputs) in self._read.items()}


@register("adafisherw")
class AdaFisherW(AdaFisher):
    """AdaFisher with decoupled decay: θ ← (1 − η λ_w) θ − η / (1 − βᵗ) · m / F.

    Parameters
    ----------
    params, lr, beta, lam, gammas, every
        As for `AdaFisher`.
    weight_decay : float, default 0
        λ_w.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1), "weight_decay": LogUniform(1e-4, 1.0)}
    decay: ClassVar[type[Move]] = DecoupledDecay


def _has_moments(module: nn.Module) -> bool:
    """Whether the layer's parameters are (out, …) and (out,)."""
    return not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1


def _mean_over_processes(layers: Mapping[nn.Module, Moments], group: Any) -> dict[nn.Module, Moments]:
    """The same layers on all processes, which have as many samples each."""
    parts = [t for each in layers.values() for t in (each.inputs, each.outputs)]
    together = torch.cat(parts)
    torch.distributed.all_reduce(together, group=group)
    mean = iter((together / torch.distributed.get_world_size(group)).split([len(t) for t in parts]))
    return {module: Moments(next(mean), next(mean), each.rows) for module, each in layers.items()}


def _by_parameter(layers: Mapping[nn.Module, Moments]) -> dict[Tensor, tuple[Tensor, Tensor]]:
    """z(H) and z(S) in the shape of every parameter."""
    found: dict[Tensor, tuple[Tensor, Tensor]] = {}
    for module, (inputs, outputs, _) in layers.items():
        weight, bias = (getattr(module, name) for name in ("weight", "bias"))
        columns, rows = normalised(inputs), normalised(outputs)
        of_weight = columns if bias is None else columns[:-1]
        across = rows.reshape(-1, *[1] * (weight.ndim - 1)).expand(weight.shape)
        found.setdefault(weight, (of_weight.reshape(weight.shape[1:] or 1).expand(weight.shape), across))
        if bias is not None:
            found.setdefault(bias, (columns[-1:].expand(bias.shape), rows))
    return found
