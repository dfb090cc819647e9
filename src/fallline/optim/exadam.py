"""EXAdam: moments that debias each other, a gradient that joins its average, and a step that grows with the logarithm of time.

    θ ← (1 − η λ) θ − η a_t (m + g) d₁ / (1 − β₁ᵗ) / (√(v d₂ / (1 − β₂ᵗ)) + ε),   a_t = ln(√2 √(t + 1))

with d₁ = 1 + v / (v + ε) β₂ᵗ and d₂ = 1 + m² / (m² + ε) β₁ᵗ. Adly: EXAdam: The Power of Adaptive Cross-Moments, arXiv 2412.20302.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.warning import warn
from fallline.optim.directions.cross_moments import CrossMoments, growth_at
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay, Direction

LONG_RUN = 100_000


@register("exadam")
class EXAdam(Optimizer):
    """θ ← (1 − η λ) θ − η a_t (m̃ + g̃) / (√ṽ + ε),  a_t = ln(√2 √(t + 1)).

    m̃ = m d₁ / (1 − β₁ᵗ), g̃ = g d₁ / (1 − β₁ᵗ), ṽ = v d₂ / (1 − β₂ᵗ), d₁ = 1 + v / (v + ε) β₂ᵗ, d₂ = 1 + m² / (m² + ε) β₁ᵗ. The first
    steps are an order of magnitude longer than Adam's, and a_t grows without bound: a long run needs a schedule that decays, and a
    warning says so at step 100,000. A later revision of the authors' code leaves the logarithm out (``growth=False``).

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
        A third of Adam's or less.
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
        Positive: d₁ and d₂ divide by it where moments are 0.
    weight_decay : float, default 0
    growth : bool, default True
        a_t, or 1.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-6, 3e-2)}
    positive: ClassVar[Mapping[str, str]] = {"eps": "moments that are 0 would be 0 / 0; 1e-8 is typical"}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, growth: bool = True, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, CrossMoments(growth), defaults, move=DecoupledDecay(), **options)

    def effective_lr(self, t: int) -> list[float]:
        """η a_t of every parameter group at step ``t`` (from 1)."""
        growth = growth_at(t) if self._grows() else 1.0
        return [float(group["lr"]) * growth for group in self.param_groups]

    def _grows(self) -> bool:
        return isinstance(self.direction, CrossMoments) and self.direction.growth

    def coefficients(self, direction: Direction, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        if t == LONG_RUN and self._grows():
            warn(f"EXAdam's step has grown by {growth_at(t):.1f} and goes on growing; let a schedule decay lr, or pass growth=False")
        return super().coefficients(direction, group, t)
