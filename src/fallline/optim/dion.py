"""Dion: orthonormal steps of low rank for matrices, which processes share without sending their gradients.

    M ← M + G;   P = orth(M Q);   R = Mᵀ P;   M ← M − (1 − μ) P Rᵀ;   Q = R / ‖R‖ by columns;   X ← (1 − η λ) X − η √(m / n) P Qᵀ

Ahn, Xu, Abreu, Fan, Magakyan, Sharma, Zhan, Langford: Dion: Distributed Orthonormalized Updates, arXiv 2504.05295.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, Unpack, cast

import torch
from torch import Tensor, nn

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.by_role import ByRole
from fallline.optim.directions.low_rank_orthonormal import LowRankOrthonormal, Mean, itself
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.signed import MappedMomentum
from fallline.optim.engine.arithmetic import scaled
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import Around, Direction, Tensors
from fallline.optim.engine.placement import Processes
from fallline.optim.engine.roles import roles

SCALARS: dict[str, Direction] = {"adamw": Quotient(), "lion": MappedMomentum()}


@dataclass(frozen=True)
class Shortened(Around):
    """The inner direction times a number."""

    factor: float

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        u, new = self.inner(g, p, s, c)
        return scaled(u, self.factor), new


@register("dion")
class Dion(ByRole):
    """X ← (1 − η λ) X − η √(m / n) P Qᵀ for matrices of m rows and n columns; AdamW or Lion for everything else.

    Embeddings, heads, norms and biases are told from matrices by their groups' ``role`` (from ``roles(model)``, or
    ``Dion.for_model(model)``); without roles every tensor of two dimensions is a matrix. State: m n + n r numbers for rank r.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.01
        For matrices and others alike, unless groups have their own; with ``scalar_algo="lion"`` a head's steps are divided by the root
        of its inputs, and its decay is not.
    mu : float, default 0.95
        μ: what is left of the sent part in the momentum.
    rank_fraction : float, default 0.25
        r as a share of min(m, n), at least 1; larger models do with less.
    weight_decay : float, default 0.01
        Decoupled.
    scalar_algo : {"adamw", "lion"}, default "adamw"
    betas : pair of float, default (0.9, 0.95)
        Of AdamW or Lion.
    eps : float, default 1e-8
        Of AdamW.
    process_group : ProcessGroup, optional
        Processes whose gradients are *not* averaged (a model under no ``DistributedDataParallel``, or its ``no_sync``): each keeps a
        momentum of its own, and they send (m + n) r numbers for a matrix in place of m n. The result is that of averaged gradients.
        Gradients of everything else are averaged here, after the closure; the same parameters must have gradients everywhere. Call
        ``synchronize_momentum`` before a checkpoint.
    seed : int, default 0
        Of the first bases, which are Gaussian.

    Notes
    -----
    Matrices sharded by ``fully_shard`` or tensor parallelism stay sharded, with their momentum and basis: M Q is gathered by rows,
    (m r numbers), orthonormalised by every process alike (the authors use a randomised Cholesky factorisation), and Mᵀ P is summed.
    The authors let Q live on the side that is longer; here it is the columns', as in the paper's algorithm.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 1e-1)}

    def __init__(self, params: Any, lr: float = 0.01, mu: float = 0.95, rank_fraction: float = 0.25, weight_decay: float = 0.01,
                 scalar_algo: Literal["adamw", "lion"] = "adamw", betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 process_group: Any = None, seed: int = 0, **options: Unpack[EngineOptions]) -> None:
        if isinstance(rank_fraction, bool) or not isinstance(rank_fraction, int | float) or not 0 < rank_fraction <= 1:
            raise ValueError(f"rank_fraction must be a number in (0, 1], got {rank_fraction!r}; 0.25 is typical")
        if scalar_algo not in SCALARS:
            raise ValueError(f"scalar_algo must be 'adamw' or 'lion', got {scalar_algo!r}")
        check("seed", seed)
        self.rank_fraction, self.scalar_algo = float(rank_fraction), scalar_algo
        mean = itself if process_group is None else Mean(Processes.of(process_group))
        defaults = {"lr": lr, "mu": mu, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, LowRankOrthonormal(1, 1, 1, seed, mean), SCALARS[scalar_algo], defaults, options)

    @classmethod
    def for_model(cls, model: nn.Module, **hyperparameters: Any) -> Self:
        """Make the optimizer of a network: embeddings, head, norms, biases and kernels of convolutions are not matrices."""
        groups = []
        for group in roles(model):
            flat = [p for p in group["params"] if p.ndim == 2 or group["role"] != "matrix"]
            kernels = [p for p in group["params"] if p.ndim != 2 and group["role"] == "matrix"]
            groups += [{**group, "params": own, "role": role} for own, role in ((flat, group["role"]), (kernels, "kernel")) if own]
        return cls(groups, **hyperparameters)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rank_fraction": self.rank_fraction, "scalar_algo": self.scalar_algo}

    def check_group(self, group: Mapping[str, Any]) -> None:
        mu = group["mu"]
        if isinstance(mu, bool) or not isinstance(mu, int | float) or not 0 <= mu <= 1:
            raise ValueError(f"mu must be a number in [0, 1], got {mu!r}; 0.95 is typical")
        for p in group["params"] if group.get("role") == "matrix" else ():
            if p.ndim != 2:
                raise ValueError(f"params of role 'matrix' must have two dimensions for Dion, got shape {tuple(p.shape)}; give kernels "
                                 "another role, such as role='kernel', or use Dion.for_model(model)")

    def is_matrix(self, p: Tensor, group: Mapping[str, Any]) -> bool:
        return super().is_matrix(p, group) and p.ndim == 2 and p.numel() > 0

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        if self.is_matrix(p, group):
            rank = max(1, round(self.rank_fraction * min(p.shape)))
            return replace(cast(LowRankOrthonormal, self.direction), rank=rank, rows=p.shape[0], columns=p.shape[1])
        if self.scalar_algo == "lion" and group.get("role") == "head":
            return Shortened(self.others, 1 / math.sqrt(p.shape[-1]))
        return self.others

    @property
    def _mean(self) -> Any:
        return cast(LowRankOrthonormal, self.direction).mean

    @contextmanager
    def watching(self, closure: Any) -> Iterator[None]:
        yield
        if isinstance(self._mean, Mean):
            with torch.no_grad():
                self._average()

    def _average(self) -> None:
        """Average the gradients of all but matrices, and make a number that is not finite in one process known to all."""
        self._mean.traffic.bytes = 0
        present = [(p, group, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        others = [g for p, group, g in present if not self.is_matrix(p, group)]
        matrices = [g for p, group, g in present if self.is_matrix(p, group)]
        alarm = sum((0 * g.abs().amax() for g in matrices), torch.zeros((), device=present[0][2].device if present else "cpu"))
        parts = [alarm.reshape(1).to(others[0] if others else alarm), *(g.flatten().to(others[0]) for g in others)]
        known, *averaged = self._mean(torch.cat(parts)).split([part.numel() for part in parts])
        for g, part in zip(others, averaged, strict=True):
            g.copy_(part.view(g.shape))
        if matrices:
            matrices[0].add_(known)  # 0, or NaN where any process has one: all skip the step, or report it

    @property
    def reduced_bytes(self) -> int:
        """What this process gave to means in the last step; 0 where gradients are averaged already."""
        return self._mean.traffic.bytes if isinstance(self._mean, Mean) else 0

    @torch.no_grad()
    def synchronize_momentum(self) -> None:
        """Give all processes the mean of their momenta, which changes no later step, so that a checkpoint of one is that of all."""
        for group in self.param_groups:
            for p in group["params"]:
                if self.is_matrix(p, group) and "momentum" in self.state.get(p, {}):
                    momentum = self.state[p]["momentum"]
                    momentum.copy_(self._mean(momentum))
