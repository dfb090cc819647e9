"""Averages of gradients: the numerators of adaptive rules, each with its own state.

    g;   m̂ = m / (1 − β₁ᵗ) with m ← β₁ m + (1 − β₁) g;   m itself;   β₁ m̂ + (1 − β₁) g / (1 − β₁ᵗ);   m̂ + α(t) s with a slow average s

A value is kept up to a factor, its ``scale``, so that debiasing costs one multiplication of the quotient and not one of either side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fallline.optim.engine.arithmetic import add_scaled, blend, over
from fallline.optim.engine.parts import Scalars, Tensors
from fallline.optim.engine.state import State, like, working_dtype

TINY_BETA = 1e-8
"""Where a slow average's warm-up starts for β₁ = 0, whose half-life has no logarithm."""


@dataclass(frozen=True)
class Part:
    """One side of a quotient, with its own state: what ``__call__`` returns times ``scale``."""

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        """The factor of step ``t``."""
        return 1.0

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        """Host numbers of step ``t``."""
        return {}

    def init(self, p: Tensor) -> dict[str, State]:
        """Declare the state."""
        return {}


@dataclass(frozen=True)
class Numerator(Part):
    """The gradient itself."""

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        """The value over its scale, and the new state; an average of gradients is called ``exp_avg`` there."""
        return g, {}


@dataclass(frozen=True)
class Undebiased(Numerator):
    """m ← β₁ m + (1 − β₁) g."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"new1": 1 - group["betas"][0]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_avg": like(p)}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = blend(s["exp_avg"], g, c.new1, out=over(s["exp_avg"]))
        return m, {"exp_avg": m}


@dataclass(frozen=True)
class Averaged(Undebiased):
    """m̂ = m / (1 − β₁ᵗ)."""

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        return 1 / (1 - group["betas"][0] ** t)


@dataclass(frozen=True)
class LookAhead(Averaged):
    """β₁ m̂ + (1 − β₁) g / (1 − β₁ᵗ): the average as the next gradient will find it if nothing changes."""

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = blend(s["exp_avg"], g, c.new1, out=over(s["exp_avg"]))
        return blend(m, g, c.new1), {"exp_avg": m}


@dataclass(frozen=True)
class WithSlowAverage(Numerator):
    """fast + α(t) s, with any numerator as the fast part and s ← β₃(t) s + (1 − β₃(t)) g, which is not debiased.

    α(t) = α μ and β₃(t) = exp(ln β₁ ln β₃ / ((1 − μ) ln β₃ + μ ln β₁)) ≤ β₃ with μ = min(1, t / warmup_steps): linear in the half-life,
    which is also the length of the warm-up where that is None.
    """

    fast: Numerator

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        return self.fast.scale(group, t)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1, _, beta3 = group["betas"]
        steps = group["warmup_steps"]
        steps = max(1, round(half_life(beta3))) if steps is None else steps
        progress = min(1.0, t / steps) if steps else 1.0
        first, last = math.log(max(beta1, TINY_BETA)), math.log(max(beta3, TINY_BETA))
        slow = min(beta3, math.exp(first * last / ((1 - progress) * last + progress * first)))
        weight = group["alpha"] * progress / self.scale(group, t)
        return {**self.fast.coefficients(group, t), "new3": 1 - slow, "slow_weight": weight}

    def init(self, p: Tensor) -> dict[str, State]:
        # A ten-thousandth of the gradient is lost in a coarse average.
        return {**self.fast.init(p), "slow_avg": like(p, precision=working_dtype(p.dtype))}

    def __call__(self, g: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        above, new = self.fast(g, s, c)
        slow = blend(s["slow_avg"], g, c.new3, out=over(s["slow_avg"]))
        return add_scaled(above, c.slow_weight, slow), {**new, "slow_avg": slow}


def half_life(beta: float) -> float:
    """Steps in which an average forgets half: ln ½ / ln β."""
    return math.log(0.5) / math.log(beta) if 0 < beta < 1 else 0.0
