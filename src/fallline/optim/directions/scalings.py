"""Diagonal scalings: the denominators of adaptive rules, each with its own state.

    √v̂ + ε with v ← β₂ v + (1 − β₂) x², debiased;   the same with ε joining v at every step, or with the largest v so far
    √(v + ε), not debiased, of an average or of a sum;   max(β₂ u, |g| + ε)

What is squared, x, is the gradient g, its surprise g − m, or its average m, fresh and not debiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.optim.directions.averages import Part
from fallline.optim.engine.arithmetic import add_product, over, scaled
from fallline.optim.engine.hyperparameters import check_nonnegative
from fallline.optim.engine.parts import Scalars, Tensors
from fallline.optim.engine.state import State, like

Source = Callable[[Tensor, Tensor], Tensor]


def gradient(g: Tensor, m: Tensor) -> Tensor:
    """x = g."""
    return g


def surprise(g: Tensor, m: Tensor) -> Tensor:
    """x = g − m."""
    return g - m


def momentum(g: Tensor, m: Tensor) -> Tensor:
    """x = m."""
    return m


@dataclass(frozen=True)
class Denominator(Part):
    """A scaling of the gradient."""

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        """The value over its scale, and the new state; ``m`` is the numerator's new average, or the gradient if it has none."""
        raise NotImplementedError


@dataclass(frozen=True)
class DebiasedSquares(Denominator):
    """√(v / (1 − β₂ᵗ)) + ε with v ← β₂ v + (1 − β₂) x²."""

    source: Source = gradient

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        return 1 / math.sqrt(1 - group["betas"][1] ** t)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta2 = group["betas"][1]
        return {"keep2": beta2, "new2": 1 - beta2, "eps": group["eps"], "scaled_eps": group["eps"] / self.scale(group, t)}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_avg_sq": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v, new = self.settled(average_of_squares(s["exp_avg_sq"], self.source(g, m), c), s, c)
        return self.root(v, c), new

    def settled(self, v: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        """What stands under the root, and the new state, from the new average."""
        return v, {"exp_avg_sq": v}

    def root(self, v: Tensor, c: Any) -> Tensor:
        """√v + ε over the scale."""
        root = v.sqrt()
        return torch.add(root, c.scaled_eps, out=over(root))


@dataclass(frozen=True)
class GrowingSquares(DebiasedSquares):
    """The same with ε in v as well, at every step: v ← β₂ v + (1 − β₂) x² + ε, so that v̂ never falls below ε."""

    def settled(self, v: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v = torch.add(v, c.eps, out=over(v))
        return super().settled(v, s, c)


@dataclass(frozen=True)
class LargestGrowingSquares(GrowingSquares):
    """The same with the largest v so far under the root (AMSGrad)."""

    def init(self, p: Tensor) -> dict[str, State]:
        return {**super().init(p), "max_exp_avg_sq": like(p, nonnegative=True)}

    def settled(self, v: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v, new = super().settled(v, s, c)
        largest = torch.maximum(s["max_exp_avg_sq"], v, out=over(s["max_exp_avg_sq"]))
        return largest, {**new, "max_exp_avg_sq": largest}


@dataclass(frozen=True)
class RootOfGrowingSquares(GrowingSquares):
    """√v̂ with ε only in v, at every step."""

    def root(self, v: Tensor, c: Any) -> Tensor:
        return v.sqrt()


def average_of_squares(v: Tensor, x: Tensor, c: Any) -> Tensor:
    """v ← β₂ v + (1 − β₂) x²."""
    decayed = scaled(v, c.keep2, out=over(v))
    return add_product(decayed, c.new2, x, x, out=over(decayed))


@dataclass(frozen=True)
class Squares(Denominator):
    """√(v + ε) with v ← ρ v + (1 − ρ) g², not debiased; v starts at ``initial``."""

    initial: float = 0.0

    def __post_init__(self) -> None:
        check_nonnegative("v0", self.initial, "0 is typical")

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"keep2": group["rho"], "new2": 1 - group["rho"], "eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"square_avg": like(p, nonnegative=True, initial=self.initial)}

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v = average_of_squares(s["square_avg"], g, c)
        shifted = v + c.eps
        return torch.sqrt(shifted, out=over(shifted)), {"square_avg": v}


@dataclass(frozen=True)
class SummedSquares(Denominator):
    """√(Σ g² + ε)."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"sum": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        total = torch.addcmul(s["sum"], g, g, out=over(s["sum"]))
        shifted = total + c.eps
        return torch.sqrt(shifted, out=over(shifted)), {"sum": total}


@dataclass(frozen=True)
class RootOfSum(SummedSquares):
    """√(Σ g²) + ε."""

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        total = torch.addcmul(s["sum"], g, g, out=over(s["sum"]))
        return self.of_sum(total) + c.eps, {"sum": total}

    def of_sum(self, total: Tensor) -> Tensor:
        """What ε is added to."""
        return total.sqrt()


@dataclass(frozen=True)
class Sum(RootOfSum):
    """Σ g² + ε."""

    def of_sum(self, total: Tensor) -> Tensor:
        return total


@dataclass(frozen=True)
class DebiasedVariance(DebiasedSquares):
    """v / (1 − β₂ᵗ) + ε, without a root."""

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        return float(1 / (1 - group["betas"][1] ** t))

    def root(self, v: Tensor, c: Any) -> Tensor:
        return v + c.scaled_eps


@dataclass(frozen=True)
class Largest(Denominator):
    """max(β₂ u, |g| + ε)."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"keep2": group["betas"][1], "eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_inf": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        decayed = scaled(s["exp_inf"], c.keep2, out=over(s["exp_inf"]))
        u = torch.maximum(decayed, g.abs() + c.eps, out=over(decayed))
        return u, {"exp_inf": u}
