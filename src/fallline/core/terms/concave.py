"""Weakly convex penalties that stop growing, so that large entries are not shrunk.

MCP, entry by entry, with γ > 1:

    λ|x| - x²/(2γ) for |x| <= γλ, then γλ²/2
    prox (t < γ): sign(x) max(|x| - tλ, 0) / (1 - t/γ) for |x| <= γλ, then x

SCAD, entry by entry, with a > 2:

    λ|x| for |x| <= λ;  (2aλ|x| - x² - λ²) / (2(a - 1)) for |x| <= aλ;  then λ²(a + 1)/2
    prox (t < a - 1): sign(x) max(|x| - tλ, 0) for |x| <= (1 + t)λ;
        ((a - 1)x - sign(x) t a λ) / (a - 1 - t) for |x| <= aλ;  then x

Both are λ|x| + q(x) with a smooth concave q:

    MCP: q' = -x/γ for |x| <= γλ, then -λ sign(x)
    SCAD: q' = 0 for |x| <= λ;  (λ sign(x) - x) / (a - 1) for |x| <= aλ;  then -λ sign(x)

Sources: C.-H. Zhang, Ann. Statist. 38 (2010) 894; J. Fan and R. Li, J. Amer. Statist. Assoc. 96 (2001) 1348.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fallline.core.terms.base import Term, check_weight, soft_threshold
from fallline.core.terms.norms import L1

__all__ = ["MCP", "SCAD"]


class MCP(Term):
    """The minimax concave penalty.

    Parameters
    ----------
    weight : float
        λ >= 0, the slope at zero.
    gamma : float
        γ > 1: the penalty is constant beyond γλ. It is 1/γ-weakly convex: proximal steps must be below γ.
    """

    separable = True

    def __init__(self, weight: float = 1.0, gamma: float = 3.0) -> None:
        if not (math.isfinite(gamma) and gamma > 1):
            raise ValueError(f"gamma must be a finite number > 1, got {gamma}; 3 is typical")
        self.weight = check_weight("weight", weight)
        self.gamma = float(gamma)
        self.weak_convexity = 1 / self.gamma

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty summed over all entries."""
        return self.entries(x).sum()

    def entries(self, x: Tensor) -> Tensor:
        """Return the penalty entry by entry."""
        size = x.abs().clamp(max=self.gamma * self.weight)
        return self.weight * size - size * size / (2 * self.gamma)

    def split(self) -> tuple[Term, Callable[[Tensor], Tensor]]:
        """Return λ‖·‖₁ and q'."""
        return L1(self.weight), lambda x: (-x / self.gamma).clamp(-self.weight, self.weight)

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        inner = soft_threshold(x, step * self.weight) / (1 - step / self.gamma)
        return torch.where(x.abs() <= self.gamma * self.weight, inner, x)

    def __repr__(self) -> str:
        return f"MCP({self.weight:g}, gamma={self.gamma:g})"


class SCAD(Term):
    """The smoothly clipped absolute deviation penalty.

    Parameters
    ----------
    weight : float
        λ >= 0, the slope at zero.
    a : float
        a > 2: the penalty is constant beyond aλ. It is 1/(a - 1)-weakly convex: proximal steps must be below a - 1.
    """

    separable = True

    def __init__(self, weight: float = 1.0, a: float = 3.7) -> None:
        if not (math.isfinite(a) and a > 2):
            raise ValueError(f"a must be a finite number > 2, got {a}; 3.7 is typical")
        self.weight = check_weight("weight", weight)
        self.a = float(a)
        self.weak_convexity = 1 / (self.a - 1)

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty summed over all entries."""
        return self.entries(x).sum()

    def entries(self, x: Tensor) -> Tensor:
        """Return the penalty entry by entry."""
        size, weight, a = x.abs().clamp(max=self.a * self.weight), self.weight, self.a
        bent = (2 * a * weight * size - size * size - weight**2) / (2 * (a - 1))
        return torch.where(size <= weight, weight * size, bent)

    def split(self) -> tuple[Term, Callable[[Tensor], Tensor]]:
        """Return λ‖·‖₁ and q'."""
        return L1(self.weight), lambda x: (-soft_threshold(x, self.weight) / (self.a - 1)).clamp(-self.weight, self.weight)

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        size, weight, a = x.abs(), self.weight, self.a
        bent = ((a - 1) * x - x.sign() * (step * a * weight)) / (a - 1 - step)
        beyond = torch.where(size <= a * weight, bent, x)
        return torch.where(size <= (1 + step) * weight, soft_threshold(x, step * weight), beyond)

    def __repr__(self) -> str:
        return f"SCAD({self.weight:g}, a={self.a:g})"
