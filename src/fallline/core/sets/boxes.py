"""Boxes: low <= x <= high, entry by entry.

Projection: min(max(x, low), high). Linear minimisation: low where g > 0, high where g < 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fallline.core.sets.base import Set, check_radius

__all__ = ["Box", "LInfBall", "NonNegative"]


class Box(Set):
    """{x : low <= x <= high}.

    Parameters
    ----------
    low, high : float or Tensor
        Bounds, broadcast against x; ``-inf`` and ``inf`` for none.
    """

    separable = True

    def __init__(self, low: float | Tensor, high: float | Tensor) -> None:
        self.low = torch.as_tensor(low)
        self.high = torch.as_tensor(high)
        if not bool((self.low <= self.high).all()):
            raise ValueError(f"low must be <= high everywhere and neither NaN, got low={low}, high={high}")

    def entries(self, x: Tensor) -> Tensor:
        """Return 0 where an entry is within its bounds, up to the tolerance of ``contains``, and ∞ elsewhere."""
        inside = self._violation(x) <= torch.finfo(x.dtype).eps ** (2 / 3) * max(1.0, self._scale())
        return torch.where(inside, torch.zeros_like(x), math.inf)

    def restricted(self, index: Tensor) -> Box:
        """Return the box of the entries ``index`` of a vector."""
        if self.low.numel() == self.high.numel() == 1:
            return self
        low, high = (bound.to(index.device) for bound in torch.broadcast_tensors(self.low, self.high))
        return Box(low[index], high[index])

    def project(self, x: Tensor) -> Tensor:
        """Return min(max(x, low), high)."""
        low, high = self._bounds(x)
        return torch.minimum(torch.maximum(x, low), high)

    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return low where g > 0, high where g < 0, and the bounds' nearest point to 0 where g = 0.

        Raises
        ------
        ValueError
            If the bound that g asks for is infinite: ⟨g, s⟩ has no minimum.
        """
        low, high = self._bounds(g)
        centre = torch.minimum(torch.maximum(torch.zeros_like(g), low), high)
        s = torch.where(g > 0, low, torch.where(g < 0, high, centre))
        if not bool(torch.isfinite(s).all()):
            raise ValueError(f"{self!r} is unbounded along -g: the linear function has no minimum; use a bounded set")
        return s

    def _violation(self, x: Tensor) -> Tensor:
        low, high = self._bounds(x)
        return torch.maximum(low - x, x - high)

    def _scale(self) -> float:
        bounds = torch.cat([self.low.reshape(-1), self.high.reshape(-1)]).abs()
        finite = bounds[torch.isfinite(bounds)]
        return float(finite.max()) if finite.numel() else 1.0

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.low.to(x), self.high.to(x)

    def __repr__(self) -> str:
        def show(bound: Tensor) -> str:
            return f"{float(bound):g}" if bound.ndim == 0 else f"tensor of shape {tuple(bound.shape)}"

        return f"Box({show(self.low)}, {show(self.high)})"


class NonNegative(Box):
    """{x : x >= 0}. Unbounded: ``linear_minimize`` exists for g >= 0 only."""

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)

    def __repr__(self) -> str:
        return "NonNegative()"


class LInfBall(Box):
    """{x : max_i |x_i| <= radius}."""

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = check_radius("radius", radius)
        super().__init__(-self.radius, self.radius)

    def __repr__(self) -> str:
        return f"LInfBall({self.radius:g})"
