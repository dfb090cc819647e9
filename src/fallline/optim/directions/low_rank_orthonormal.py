"""Dion's direction: an orthonormal step of low rank, whose error stays in the momentum.

    M ← M + G;   P = orth(M Q);   R = Mᵀ P;   M ← M − (1 − μ) P Rᵀ;   Q = R / (column norms + ε);   u = √(m / n) P Qᵀ

Ahn, Xu, Abreu, Fan, Magakyan, Sharma, Zhan, Langford: Dion: Distributed Orthonormalized Updates, arXiv 2504.05295.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, distributed

from fallline.core.keys import Key
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.placement import Processes
from fallline.optim.engine.state import State, like

TINY = 1e-8


class Traffic:
    """A count of bytes."""

    def __init__(self) -> None:
        self.bytes = 0


@dataclass(frozen=True)
class Mean:
    """The mean over processes, which counts the bytes that each gives to it."""

    processes: Processes
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def __call__(self, x: Tensor) -> Tensor:
        if self.processes.world == 1:
            return x
        x = x.clone()
        self.traffic.bytes += x.nbytes
        distributed.all_reduce(x, group=self.processes.group)
        return x / self.processes.world


def itself(x: Tensor) -> Tensor:
    """Where gradients have been averaged already."""
    return x


@dataclass(frozen=True)
class LowRankOrthonormal(Direction):
    """u = √(m / n) P Qᵀ of rank r for a matrix of m rows and n columns.

    ``mean`` is taken of M Q and of Mᵀ P, where every process has a gradient and a momentum of its own: that of all of them follows,
    for (m + n) r numbers. Of sharded matrices every process has the rows and columns of its part; M Q is gathered, and made orthonormal
    by all alike.
    """

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"
    in_parts: ClassVar[bool] = True

    rank: int
    rows: int
    columns: int
    seed: int = 0
    mean: Any = itself

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"mu": group["mu"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"momentum": like(p), "basis": State((p.shape[1], self.rank), initial=self._drawn, along=1)}

    def _drawn(self, p: Tensor, index: int) -> Tensor:
        generator = Key(self.seed).fold(index, "basis").generator()
        return torch.randn(p.shape[1], self.rank, generator=generator, dtype=torch.float64).to(p.device)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        M = s["momentum"] + g
        sketch = c.across.all_rows(self.mean(c.across.sum_columns(M @ s["basis"])))
        P = c.across.own_rows(torch.linalg.qr(sketch)[0])
        R = self.mean(c.across.sum_rows(M.mT @ P))
        M = torch.baddbmm(M, P, R.mT, alpha=c.mu - 1)
        norms = c.across.sum_columns(R.square().sum(-2, keepdim=True)).sqrt()
        Q = R / (norms + TINY)
        # Without a gradient so far there is nothing to learn a basis from, and 0 would never learn one.
        basis = torch.where(norms.sum(-1, keepdim=True) > 0, Q, s["basis"])
        return math.sqrt(self.rows / max(self.columns, 1)) * P @ Q.mT, {"momentum": M, "basis": basis}
