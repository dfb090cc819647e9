"""Gradients over an average of Hutchinson's diagonal (OASIS).

    D ← β₂ D + (1 − β₂) z ∘ (H z), from a mean of such estimates;   D̂ = max(|D|, α);   u = g / D̂  or  m / D̂

Jahani, Rusakov, Shi, Richtárik, Mahoney, Takáč: Doubly Adaptive Scaled Algorithm, ICLR 2022, arXiv 2109.05198.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fallline.optim.directions.averages import Numerator
from fallline.optim.directions.variance_reduced import PREVIOUS
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like, working_dtype

HUTCHINSON = "hutchinson"


@dataclass(frozen=True)
class OverCurvature(Direction):
    """u = numerator / max(|D|, α)."""

    numerator: Numerator = field(default_factory=Numerator)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**self.numerator.coefficients(group, t), "new2": 1.0 if t == 1 else 1 - group["beta2"], "alpha": group["alpha"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {**self.numerator.init(p), "curvature": like(p)}

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (HUTCHINSON,)

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        return {"curvature": s["curvature"] + c.new2 * (value - s["curvature"])}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        above, new = self.numerator(g, s, c)
        return above / s["curvature"].abs().clamp(min=c.alpha), new


@dataclass(frozen=True)
class WithPrevious(OverCurvature):
    """The same, keeping the point and the gradient for the next step's comparison; at the first there is nothing to compare with.

    ``resampled`` asks for the gradient of the next realisation at this point; else the one that is known counts.
    """

    resampled: bool = True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**super().coefficients(group, t), "known": float(t > 1)}

    def init(self, p: Tensor) -> dict[str, State]:
        point = like(p, precision=working_dtype(p.dtype), initial="parameter")  # a rounded one would be another point
        return {**super().init(p), "previous_point": point, "previous_gradient": like(p)}

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (HUTCHINSON, PREVIOUS) if self.resampled and t > 1 else (HUTCHINSON,)

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        if name == PREVIOUS:
            return {"previous_gradient": value + c.weight_decay * s["previous_point"]}  # as this step's gradient has it
        return super().observe(name, value, s, c)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        u, new = super().__call__(g, p, s, c)
        return u, {**new, "previous_point": p.clone(), "previous_gradient": g}
