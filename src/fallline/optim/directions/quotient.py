"""Averages over averages: the direction behind most adaptive rules.

    u = numerator(g, m) / denominator(g, v)

Both sides are kept up to a factor, their ``scale``, so that debiasing costs one multiplication of u and not one of either side.

Numerators: the gradient; its debiased average m̂ = m / (1 − β₁ᵗ), m ← β₁ m + (1 − β₁) g; the average seen one step ahead.
Denominators: √v̂ + ε with v ← β₂ v + (1 − β₂) g² debiased; √(v + ε) as it is, of an average or of a sum; the decayed maximum of |g|.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.optim.engine.arithmetic import add_product, blend, over, scaled
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class Part:
    """One side of the quotient, with its own state: what ``__call__`` returns times ``scale``."""

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        """The factor of step ``t``."""
        return 1.0

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        """Host numbers of step ``t``."""
        return {}

    def init(self, p: Tensor) -> dict[str, State]:
        """Declare the state."""
        return {}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        """The value over its scale, and the new state."""
        return g, {}


@dataclass(frozen=True)
class Averaged(Part):
    """m̂ = m / (1 − β₁ᵗ) with m ← β₁ m + (1 − β₁) g."""

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        return 1 / (1 - group["betas"][0] ** t)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"new1": 1 - group["betas"][0]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_avg": like(p)}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = blend(s["exp_avg"], g, c.new1, out=over(s["exp_avg"]))
        return m, {"exp_avg": m}


@dataclass(frozen=True)
class LookAhead(Averaged):
    """β₁ m̂ + (1 − β₁) g / (1 − β₁ᵗ): the average as the next gradient will find it if nothing changes."""

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = blend(s["exp_avg"], g, c.new1, out=over(s["exp_avg"]))
        return blend(m, g, c.new1), {"exp_avg": m}


@dataclass(frozen=True)
class DebiasedSquares(Part):
    """√(v / (1 − β₂ᵗ)) + ε with v ← β₂ v + (1 − β₂) g²."""

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        return 1 / math.sqrt(1 - group["betas"][1] ** t)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta2 = group["betas"][1]
        return {"keep2": beta2, "new2": 1 - beta2, "scaled_eps": group["eps"] / self.scale(group, t)}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_avg_sq": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v = _average_of_squares(s["exp_avg_sq"], g, c)
        root = v.sqrt()
        return torch.add(root, c.scaled_eps, out=over(root)), {"exp_avg_sq": v}


def _average_of_squares(v: Tensor, g: Tensor, c: Any) -> Tensor:
    decayed = scaled(v, c.keep2, out=over(v))
    return add_product(decayed, c.new2, g, g, out=over(decayed))


@dataclass(frozen=True)
class Squares(Part):
    """√(v + ε) with v ← ρ v + (1 − ρ) g², not debiased."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"keep2": group["rho"], "new2": 1 - group["rho"], "eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"square_avg": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v = _average_of_squares(s["square_avg"], g, c)
        shifted = v + c.eps
        return torch.sqrt(shifted, out=over(shifted)), {"square_avg": v}


@dataclass(frozen=True)
class SummedSquares(Part):
    """√(Σ g² + ε)."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"sum": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        total = torch.addcmul(s["sum"], g, g, out=over(s["sum"]))
        shifted = total + c.eps
        return torch.sqrt(shifted, out=over(shifted)), {"sum": total}


@dataclass(frozen=True)
class Largest(Part):
    """max(β₂ u, |g| + ε)."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"keep2": group["betas"][1], "eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_inf": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        decayed = scaled(s["exp_inf"], c.keep2, out=over(s["exp_inf"]))
        u = torch.maximum(decayed, g.abs() + c.eps, out=over(decayed))
        return u, {"exp_inf": u}


@dataclass(frozen=True)
class Quotient(Direction):
    """u = numerator / denominator."""

    supports_complex: ClassVar[bool] = True

    numerator: Part = field(default_factory=Averaged)
    denominator: Part = field(default_factory=DebiasedSquares)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        scale = self.numerator.scale(group, t) / self.denominator.scale(group, t)
        return {**self.numerator.coefficients(group, t), **self.denominator.coefficients(group, t), "scale": scale}

    def init(self, p: Tensor) -> dict[str, State]:
        return self.numerator.init(p) | self.denominator.init(p)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        above, new = self.numerator(g, s, c)
        below, more = self.denominator(g, s, c)
        u = above / below
        return scaled(u, c.scale, out=over(u)) if self._scaled() else u, {**new, **more}

    def _scaled(self) -> bool:
        return any(type(part).scale is not Part.scale for part in (self.numerator, self.denominator))
