"""Polyak's step sizes: as far as brings a model of the loss to its target f*, along any direction u.

With the loss f and its gradient g of one batch, and n = ⟨g, u⟩ (u = B⁻¹ g makes it the nearest point in the norm of B):

    plain       τ = (f − f*)₊ / n                             quadratic   τ = 1 − √(1 − 2 (f − f*) / n), or 1 where there is no root
    slack, L1   γ = (f − σ + λ)₊ / (1 + n),  τ = min(γ, f / n),  σ ← (σ − λ + γ)₊
    slack, L2   δ = 1 / (1 + λ),  τ = (f − δ σ)₊ / (δ + n),  σ ← δ (σ + τ)
    level       f* = least f so far − δ;  δ ← ρ δ where f came below the last f*, else max(β δ, δ_min)

Polyak: Introduction to Optimization, 1987. Loizou, Vaswani, Laradji, Lacoste-Julien: Stochastic Polyak Step-size for SGD, arXiv
2002.10542. Abdukhakimov, Xiang, Kamzolov, Takáč: Stochastic Gradient Descent with Preconditioned Polyak Step-size, arXiv 2310.02093.
Quadratic: Abdukhakimov, Xiang, Kamzolov, Gower, Takáč: SANIA, arXiv 2312.17369. Level: Bertsekas: Convex Optimization Algorithms, 2015.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core.warning import warn
from fallline.optim.engine.hyperparameters import check_nonnegative, check_positive
from fallline.optim.engine.parts import Scalars, StepSize, Tensors


@dataclass(frozen=True)
class Polyak(StepSize):
    """(f − f*)₊ / ⟨g, u⟩; 0 where u leads uphill, or the loss is at its target. The group has f* as ``f_star``."""

    needs: ClassVar[tuple[str, ...]] = ("loss", "direction_dot_gradient")
    defaults: ClassVar[Mapping[str, float]] = {"f_star": 0.0}

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"f_star": group["f_star"], "sign": -1.0 if group["maximize"] else 1.0}

    def check_loss(self, loss: float, group: Mapping[str, Any]) -> None:
        f_star = float(group["f_star"])
        loss = -loss if group["maximize"] else loss
        if loss < 0 == f_star:
            raise ValueError(f"f_star=0 is no lower bound of this loss, which is {loss:g}; give one below every batch's loss")
        if loss < f_star:
            warn(f"the loss of this batch, {loss:g}, is below f_star={f_star:g}: no step is taken; a lower f_star reaches further")

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return self.length(self.gap(statistics, c), statistics["direction_dot_gradient"]), {}

    def gap(self, statistics: Tensors, c: Any) -> Tensor:
        """f − f* of what is minimised, at least 0."""
        return (c.sign * statistics["loss"] - c.f_star).clamp(min=0)

    def length(self, gap: Tensor, n: Tensor) -> Tensor:
        """τ."""
        return _over(gap, n)


@dataclass(frozen=True)
class QuadraticPolyak(Polyak):
    """The step to f + ⟨g, Δ⟩ + ½ ⟨Δ, B Δ⟩ = f* along −u = −B⁻¹ g, or to that model's minimum, τ = 1, where it stays above f*."""

    def length(self, gap: Tensor, n: Tensor) -> Tensor:
        # 1 − √(1 − 2 q) without its cancellation for small q.
        ratio = _over(2 * gap, n).clamp(max=1.0)
        return ratio / (1 + (1 - ratio).sqrt())


@dataclass(frozen=True)
class PolyakSlackL1(Polyak):
    """With a slack σ that is charged λ a unit: for losses that cannot all be f* at once. The group has λ as ``lam``."""

    defaults: ClassVar[Mapping[str, float]] = {**Polyak.defaults, "lam": 0.1}

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**super().coefficients(group, t), "lam": group["lam"]}

    def scalars(self) -> dict[str, float]:
        return {"slack": 0.0}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        f, n = self.gap(statistics, c), statistics["direction_dot_gradient"].clamp(min=0)
        charge = (f - s["slack"] + c.lam).clamp(min=0) / (1 + n)
        return torch.minimum(charge, _over(f, n)), {"slack": (s["slack"] - c.lam + charge).clamp(min=0)}


@dataclass(frozen=True)
class PolyakSlackL2(PolyakSlackL1):
    """With a slack σ that is charged λ σ²."""

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        f, n = self.gap(statistics, c), statistics["direction_dot_gradient"].clamp(min=0)
        share = 1 / (1 + c.lam)
        taken = (f - share * s["slack"]).clamp(min=0) / (share + n)
        return torch.where(n > 0, taken, 0.0), {"slack": share * (s["slack"] + taken)}


@dataclass(frozen=True)
class TargetLevel(Polyak):
    """With the target estimated: δ below the least loss so far, δ growing by ``grow`` while targets are met, else shrinking.

    For losses of one function; of batches the least loss so far is the luckiest batch's. ``first`` is the first δ, as a share of the
    first loss's size.
    """

    defaults: ClassVar[Mapping[str, float]] = {}
    first: float = 0.5
    grow: float = 1.5
    shrink: float = 0.5
    least: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("first", self.first, "0.5 is typical")
        check_nonnegative("least", self.least, "1e-12 is typical")
        if not (self.grow >= 1 > self.shrink > 0):
            raise ValueError(f"grow must be at least 1 and shrink between 0 and 1, got {self.grow} and {self.shrink}; 1.5 and 0.5 are "
                             "typical")

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"sign": -1.0 if group["maximize"] else 1.0}

    def check_loss(self, loss: float, group: Mapping[str, Any]) -> None:
        """Any loss will do."""

    def scalars(self) -> dict[str, float]:
        return {"best": math.inf, "level": 0.0}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        f = c.sign * statistics["loss"]
        met = f <= s["best"] - s["level"]
        level = torch.where(met, self.grow * s["level"], (self.shrink * s["level"]).clamp(min=self.least))
        level = torch.where(s["best"].isinf(), self.first * f.abs().clamp(min=self.least), level)
        best = torch.minimum(s["best"], f)
        return _over(f - best + level, statistics["direction_dot_gradient"]), {"best": best, "level": level}


def _over(gap: Tensor, n: Tensor) -> Tensor:
    """gap / n, and 0 where u leads uphill or n is so small that the quotient overflows."""
    ratio = gap / torch.where(n > 0, n, 1.0)
    return torch.where((n > 0) & ~ratio.isinf(), ratio, 0.0)
