"""SGD-SaI: momentum, and a learning rate for each tensor that its first gradient sets for good.

    G_i = ‖g_i‖ / (std(g_i) + ε) at the first gradients;   b ← β b + (1 − β) g;   θ ← (1 − η λ) θ − η (G_i / max G) b

Xu, Zhang, Cai et al.: No More Adam: Learning Rate Scaling at Initialization is All You Need, arXiv 2412.11768.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.warning import warn
from fallline.optim.directions.scaled_momentum import ScaledGradient, ScaledMomentum
from fallline.optim.engine.hooks import First
from fallline.optim.engine.layout import is_sharded
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay, Direction


@register("sgd-sai")
class SGDSaI(Optimizer):
    """b ← β b + (1 − β) g, from b = g₁;  θ ← (1 − η λ) θ − η (G_i / max_j G_j) b,  G_i = ‖g_i‖ / (std(g_i) + ε) at the first step.

    Half of AdamW's state; the scales do not depend on that of the loss. Since ‖g‖ = √n std √(1 + mean² / std²), G_i is about the root
    of the number of entries; ``gsnr_report`` shows both. Where a gradient has no spread (a single entry, equal entries, or all 0) G_i
    is that root, with a warning: by the formula such tensors would have all of the learning rate, or none.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-2
    momentum : float, default 0.9
        β; 0 keeps no average.
    eps : float, default 1e-8
    weight_decay : float, default 1e-2
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.

    Notes
    -----
    Parameters whose first gradient comes later are divided by the largest G so far; those before keep theirs.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 10.0), "weight_decay": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, lr: float = 1e-2, momentum: float = 0.9, eps: float = 1e-8, weight_decay: float = 1e-2,
                 **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, ScaledMomentum(), defaults, move=DecoupledDecay(), **options)

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return self.direction if group["momentum"] > 0 else ScaledGradient()

    def measure(self, firsts: Sequence[First], states: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, float]]:
        ratios = [signal_to_noise(g, float(group["eps"])) for g, group in firsts]
        plain = sum(ratio is None and g.numel() > 0 for ratio, (g, _) in zip(ratios, firsts, strict=True))
        if plain:
            warn(f"{plain} of {len(ratios)} tensors have a first gradient without spread; their scale is the root of their number of "
                 "entries instead of ‖g‖ / std(g)")
        found = [math.sqrt(g.numel()) if ratio is None else ratio for ratio, (g, _) in zip(ratios, firsts, strict=True)]
        before = [float(state["largest"]) for state in states if "largest" in state]
        largest = max(filter(math.isfinite, [*found, *before]), default=0.0)
        return [{"scale": ratio / largest if largest else 1.0, "largest": largest} for ratio in found]


def signal_to_noise(g: Tensor, eps: float = 1e-8) -> float | None:
    """Return ‖g‖ / (std(g) + ε), std with n − 1; ``None`` where g has no spread."""
    g = torch.view_as_real(g) if g.is_complex() else g
    n = g.numel()
    if n < 2:
        return None
    g = g.double()
    total, squares = (_whole(x) for x in (g.sum(), (g * g).sum()))
    variance = (squares - total * total / n) / (n - 1)
    if not variance > 1e-14 * squares / n:
        return None if math.isfinite(squares) else math.nan
    return math.sqrt(squares) / (math.sqrt(variance) + eps)


def _whole(x: Any) -> float:
    return float(x.full_tensor() if is_sharded(x) else x)


@dataclass(frozen=True)
class GSNRReport:
    """The scales that SGD-SaI would give: ``rows`` of name, G, its share of the largest, and the root of the number of entries."""

    rows: tuple[tuple[str, float, float, float], ...]

    def __repr__(self) -> str:
        width = max((len(name) for name, *_ in self.rows), default=4)
        lines = [f"{name:<{width}}  {ratio:>9.3g}  {share:>9.3g}  {root:>9.3g}" for name, ratio, share, root in self.rows]
        return "\n".join([f"{'':<{width}}  {'G':>9}  {'G / max':>9}  {'√n':>9}", *lines])


def gsnr_report(realisation: Any, eps: float = 1e-8) -> GSNRReport:
    """Return the scale of every tensor at one batch.

    Parameters
    ----------
    realisation : ``objective(inputs, targets)`` with ``objective = fl.Objective(model, loss)``
    eps : float, default 1e-8
    """
    found = {name: (signal_to_noise(g, eps), math.sqrt(g.numel())) for name, g in realisation.gradient().items()}
    ratios = {name: root if ratio is None else ratio for name, (ratio, root) in found.items()}
    largest = max(ratios.values())
    return GSNRReport(tuple((name, ratio, ratio / largest, found[name][1]) for name, ratio in ratios.items()))
