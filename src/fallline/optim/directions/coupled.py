"""Accelerated descent by two coupled points, w that takes the primal step and v that remembers:

    y = w + τ (v − w);   w⁺ = y − η_w d(g);   v⁺ = κ v + (1 − κ) y − η_v g,   with g the gradient at y

The parameters hold y. Only the gap q = v − w is kept besides: with τ⁺ of the next step

    q⁺ = κ (1 − τ) q − η_v g + η_w d(g);   y⁺ = y − (η_w d(g) − τ⁺ q⁺);   w = y − τ q

The gap starts at 0 and dies out at the minimum, so it may be kept in few bits where v may not.

Estimate sequence (arXiv 2404.02378): α from α² = η_d γ⁺, γ⁺ = (1 − α) γ + α μ; then η_w = 1 / (ρ L), η_v = α / γ⁺,
κ = (1 − α) γ / γ⁺ and τ = α γ / (γ + α μ). Constant coefficients with a tail average of w (arXiv 2311.14222): κ = 1 − β, τ = 1 − α.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from fallline.optim.engine.arithmetic import add_scaled, blend, over, scaled
from fallline.optim.engine.parts import Direction, Gradient, Scalars, Tensors
from fallline.optim.engine.state import State, like, working_dtype

Variant = Literal["conservative", "abstract"]


class Steps(NamedTuple):
    """η_w, η_v and κ of one step."""

    primal: float
    dual: float
    keep: float


@dataclass(frozen=True)
class Coupled(Direction):
    """u = η_w d − τ⁺ q⁺, to be moved by ``p − u``; the answer is w. ``primal`` makes d of the gradient."""

    supports_complex: ClassVar[bool] = True

    primal: Direction = field(default_factory=Gradient)

    @abstractmethod
    def steps(self, group: Mapping[str, Any], t: int) -> Steps:
        """The numbers of step ``t``, before ``lr`` multiplies the first two."""

    @abstractmethod
    def mixing(self, group: Mapping[str, Any], t: int) -> float:
        """τ at the point where step ``t`` takes its gradient."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        primal, dual, keep = self.steps(group, t)
        return {**self.primal.coefficients(group, t), "primal_step": group["lr"] * primal, "dual_step": group["lr"] * dual,
                "carry": keep * (1 - self.mixing(group, t)), "ahead": self.mixing(group, t + 1)}

    def init(self, p: Tensor) -> dict[str, State]:
        return {**self.primal.init(p), "gap": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        d, new = self.primal(g, p, s, c)
        gap = scaled(s["gap"], c.carry, out=over(s["gap"]))
        gap = add_scaled(gap, -c.dual_step, g, out=over(gap))
        gap = add_scaled(gap, c.primal_step, d, out=over(gap))
        return add_scaled(d * c.primal_step, -c.ahead, gap), {**new, "gap": gap}

    def solution(self, p: Tensor, s: Tensors, c: Any) -> Tensor:
        return add_scaled(p, -c.ahead, s["gap"])


@dataclass(frozen=True)
class EstimateSequence(Coupled):
    """The coefficients that follow from L, μ, ρ and γ₀ of the parameter group; γ₀ is μ, or L where that is 0, if it is None.

    The progress constant η_d is 1 / (ρ² L), or, as the paper's abstract has it, 1 / (ρ L).
    """

    variant: Variant = "conservative"

    def steps(self, group: Mapping[str, Any], t: int) -> Steps:
        eta, mu, gamma = self._at(group, t)
        alpha = _alpha(eta, mu, gamma)
        following = (1 - alpha) * gamma + alpha * mu
        return Steps(1 / (group["growth"] * group["smoothness"]), alpha / following, (1 - alpha) * gamma / following)

    def mixing(self, group: Mapping[str, Any], t: int) -> float:
        eta, mu, gamma = self._at(group, t)
        alpha = _alpha(eta, mu, gamma)
        return alpha * gamma / (gamma + alpha * mu)

    def _at(self, group: Mapping[str, Any], t: int) -> tuple[float, float, float]:
        growth, mu = float(group["growth"]), float(group["mu"])
        eta = 1 / (growth ** (2 if self.variant == "conservative" else 1) * float(group["smoothness"]))
        start = group["gamma0"]
        return eta, mu, _gamma(eta, mu, float((mu or group["smoothness"]) if start is None else start), t - 1)


def _alpha(eta: float, mu: float, gamma: float) -> float:
    """The positive root of α² = η_d [(1 − α) γ + α μ]."""
    half = eta * (gamma - mu) / 2
    return eta * gamma / (half + math.sqrt(half**2 + eta * gamma))


@lru_cache(maxsize=64)
def _known(eta: float, mu: float, gamma0: float) -> array[float]:
    """γ_0, γ_1, … as far as they have been asked for."""
    return array("d", [gamma0])


def _gamma(eta: float, mu: float, gamma0: float, k: int) -> float:
    """γ_k of γ ← (1 − α) γ + α μ, whichever k is asked first."""
    known = _known(eta, mu, gamma0)
    for i in range(len(known), k + 1):
        gamma = known[i - 1]
        if i > 1 and gamma == known[i - 2]:
            return gamma
        alpha = _alpha(eta, mu, gamma)
        known[i : i + 1] = array("d", [(1 - alpha) * gamma + alpha * mu])  # the same from whichever thread
    return known[min(k, len(known) - 1)]


@dataclass(frozen=True)
class ConstantCoupling(Coupled):
    """δ, γ, β and α, or 1 / (1 + β), of the parameter group.

    With ``averages`` the answer is the mean of w over the steps after ``tail_start``.
    """

    averages: bool = False

    def steps(self, group: Mapping[str, Any], t: int) -> Steps:
        return Steps(group["primal_step"], group["dual_step"], 1 - group["beta"])

    def mixing(self, group: Mapping[str, Any], t: int) -> float:
        alpha = group["alpha"]
        return float(1 - (1 / (1 + group["beta"]) if alpha is None else alpha))

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**super().coefficients(group, t), "newest": 1 / max(1, t - int(group["tail_start"] or 0))}

    def init(self, p: Tensor) -> dict[str, State]:
        average = {"tail_average": like(p, precision=working_dtype(p.dtype), initial="parameter")}
        return super().init(p) | (average if self.averages else {})

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        u, new = super().__call__(g, p, s, c)
        if not self.averages:
            return u, new
        w = super().solution(p - u, new, c)
        average = blend(s["tail_average"], w, c.newest, out=over(s["tail_average"]))
        return u, {**new, "tail_average": average}

    def solution(self, p: Tensor, s: Tensors, c: Any) -> Tensor:
        return s["tail_average"] if self.averages else super().solution(p, s, c)
