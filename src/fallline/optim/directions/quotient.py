"""Averages over averages: the direction behind most adaptive rules.

    u = numerator(g) / denominator(g, m)

The numerators are in :mod:`.averages`, the denominators in :mod:`.scalings`; each brings its own state and coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.optim.directions.averages import Averaged, Numerator, Part
from fallline.optim.directions.scalings import DebiasedSquares, Denominator
from fallline.optim.engine.arithmetic import add_scaled, over, scaled
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State


@dataclass(frozen=True)
class Quotient(Direction):
    """u = numerator / denominator."""

    supports_complex: ClassVar[bool] = True

    numerator: Numerator = field(default_factory=Averaged)
    denominator: Denominator = field(default_factory=DebiasedSquares)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        scale = self.numerator.scale(group, t) / self.denominator.scale(group, t)
        return {**self.numerator.coefficients(group, t), **self.denominator.coefficients(group, t), "scale": scale}

    def init(self, p: Tensor) -> dict[str, State]:
        return self.numerator.init(p) | self.denominator.init(p)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        above, new = self.numerator(g, s, c)
        below, more = self.denominator(g, new.get("exp_avg", g), s, c)
        return self.finish(above, above / below, c), {**new, **more}

    def finish(self, above: Tensor, u: Tensor, c: Any) -> Tensor:
        """The direction, from the numerator and the quotient over their scales."""
        return scaled(u, c.scale, out=over(u)) if self._scaled() else u

    def _scaled(self) -> bool:
        return any(type(part).scale is not Part.scale for part in (self.numerator, self.denominator))


@dataclass(frozen=True)
class Rectified(Quotient):
    """r_t m̂ / (√v̂ + ε) once the variance of the second moment is finite, m̂ before (RAdam, Liu et al., arXiv 1908.03265).

    ρ_∞ = 2 / (1 − β₂) − 1,  ρ_t = ρ_∞ − 2 t β₂ᵗ / (1 − β₂ᵗ);  for ρ_t > 4  r_t² = (ρ_t − 4) (ρ_t − 2) ρ_∞ / ((ρ_∞ − 4) (ρ_∞ − 2) ρ_t).
    """

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        values, beta2 = super().coefficients(group, t), group["betas"][1]
        limit = 2 / (1 - beta2) - 1
        length = limit - 2 * t * beta2**t / (1 - beta2**t)
        finite = length > 4
        rectifier = math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)) if finite else 0.0
        return {**values, "scale": rectifier * values["scale"], "plain": 0.0 if finite else self.numerator.scale(group, t)}

    def finish(self, above: Tensor, u: Tensor, c: Any) -> Tensor:
        return add_scaled(super().finish(above, u, c), c.plain, above)


@dataclass(frozen=True)
class Preconditioned(Quotient):
    """B⁻¹ g for a diagonal B that is a denominator, and 0 where B is 0."""

    numerator: Numerator = field(default_factory=Numerator)

    def finish(self, above: Tensor, u: Tensor, c: Any) -> Tensor:
        return super().finish(above, torch.where(u.isfinite() | ~above.isfinite(), u, 0.0), c)
