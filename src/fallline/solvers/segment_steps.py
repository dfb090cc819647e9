"""Step sizes along a segment of a convex set, for objectives that may be infinite on part of it.

    φ(γ) = f(x + γ d),   0 ≤ γ ≤ γ_max,   φ'(0) = ⟨∇f(x), d⟩ ≤ 0
    open loop:      γ = 2 / (t + 2)
    monotone:       γ = 2 / (t + 2) where φ(γ) ≤ φ(0), else 0
    backtracking:   γ = min(γ_max, −φ'(0) / (L‖d‖²)),   L first × 0.9, then × 2 until φ(γ) ≤ φ(0) + γ φ'(0) + γ² L‖d‖² / 2
    line search:    γ = argmin φ, by golden section

t counts all steps, those of length 0 too. A value that is NaN or infinite lies outside the domain of f, which is convex: every longer
step is outside as well, and none of these rules but the open loop, which looks at no value, ends there.

Sources: A. Carderera, M. Besançon and S. Pokutta, NeurIPS 2021, arXiv 2105.13913; F. Pedregosa, G. Negiar, A. Askari and M. Jaggi,
AISTATS 2020, arXiv 1806.05123 (backtracking); J. Kiefer, Proc. Amer. Math. Soc. 4 (1953) 502 (golden section).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch

from fallline.core import tree
from fallline.core.problem import Problem
from fallline.core.tree import Tree

__all__ = ["BacktrackingStep", "LineSearchStep", "MonotoneStep", "OpenLoopStep", "SegmentStep"]

MOST_DOUBLINGS = 100
FIRST_PROBE = 1e-3  # the share of the segment over which the first L is measured
NO_LOWER = "f has no lower value on the segment, by rounding or because the gradient is not that of f"
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Segment:
    """The points x + γ d, and what is known of f at x."""

    problem: Problem
    point: Callable[[float], Tree]
    direction: Tree
    value: float | None
    slope: float
    longest: float = 1.0

    def at(self, gamma: float) -> float:
        """Return φ(γ), infinite outside the domain."""
        value = float(self.problem.value(self.point(gamma)))
        return value if math.isfinite(value) else math.inf

    @property
    def span(self) -> float:
        """‖d‖²."""
        return float(tree.norm(self.direction)) ** 2

    @property
    def start(self) -> float:
        """φ(0), for the rules that ask for it by ``compares``."""
        assert self.value is not None
        return self.value

    @property
    def noise(self) -> float:
        """√ε of φ, below which differences of values say less than slopes do."""
        return torch.finfo(tree.precision(self.direction)).eps ** 0.5 * max(1.0, abs(self.start))

    def slope_at(self, gamma: float) -> float:
        """Return φ'(γ); one gradient."""
        return float(tree.dot(self.problem.gradient(self.point(gamma)), self.direction))


class Move(NamedTuple):
    """A chosen γ, φ(γ) where it was evaluated, a number for the next step, and why there is no step if none ever will be."""

    gamma: float
    value: float | None
    memory: float | None = None
    failure: str = ""


class SegmentStep(Protocol):
    """A rule that chooses γ. What it learns over a run is one number, which it is handed back at the next step."""

    compares: ClassVar[bool]
    """Whether it needs φ(0)."""

    def __call__(self, segment: Segment, t: int, memory: float | None) -> Move:
        """Return the step at step number ``t``, from 0."""
        ...


@dataclass(frozen=True)
class OpenLoopStep:
    """γ = 2/(t + 2), whatever f is there. Evaluates nothing; the first step discards x."""

    compares: ClassVar[bool] = False

    def __call__(self, segment: Segment, t: int, memory: float | None) -> Move:
        """Return the step."""
        return Move(min(2 / (t + 2), segment.longest), None)


@dataclass(frozen=True)
class MonotoneStep:
    """γ = 2/(t + 2) where f is finite and no larger there, else 0: one value a step, no constant of f."""

    compares: ClassVar[bool] = True

    def __call__(self, segment: Segment, t: int, memory: float | None) -> Move:
        """Return the step."""
        gamma = min(2 / (t + 2), segment.longest)
        value = segment.at(gamma)
        return Move(gamma, value) if value <= segment.start else Move(0.0, segment.start)


@dataclass(frozen=True)
class BacktrackingStep:
    """γ = min(γ_max, −φ'(0)/(L‖d‖²)), L decreased a little each step, then raised until f lies below the parabola that L gives.

    Parameters
    ----------
    L : float, optional
        Where the estimate starts; by default the curvature of f along the first segment, from a second gradient.
    decrease : float, default 0.9
        Factor of L from one step to the next, in (0, 1].
    increase : float, default 2
        Factor of L at a refused trial, > 1.

    Notes
    -----
    Where a decrease of √ε |f| or less is at stake, slopes decide, φ'(γ) ≤ φ'(0) + γ L‖d‖², for a gradient a trial: values say too
    little there, and gaps beyond 1e-8 would be out of reach.
    """

    L: float | None = None
    decrease: float = 0.9
    increase: float = 2.0

    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.L is not None and not (math.isfinite(self.L) and self.L > 0):
            raise ValueError(f"L must be a finite number > 0, or None to measure it, got {self.L!r}")
        if not 0 < self.decrease <= 1:
            raise ValueError(f"decrease must be in (0, 1], got {self.decrease!r}; 0.9 is the papers'")
        if not (math.isfinite(self.increase) and self.increase > 1):
            raise ValueError(f"increase must be a finite number > 1, got {self.increase!r}; 2 is the papers'")

    def __call__(self, segment: Segment, t: int, memory: float | None) -> Move:
        """Return the step."""
        start, slope, span = segment.start, segment.slope, segment.span
        if not (slope < 0 and span > 0):
            return Move(0.0, start, memory)
        first = self.decrease * (self._first(segment) if memory is None else memory)
        for doubling in range(MOST_DOUBLINGS):
            L = first * self.increase**doubling
            gamma = min(segment.longest, -slope / (L * span))
            value = segment.at(gamma)
            below = value <= start + gamma * slope + gamma**2 * L * span / 2
            fine = value < math.inf and -gamma * slope <= segment.noise
            if below or (fine and segment.slope_at(gamma) <= slope + gamma * L * span):
                return Move(gamma, value, L)
        return Move(0.0, start, first, f"no step lowers f in {MOST_DOUBLINGS} trials: is the gradient that of f?")

    def _first(self, segment: Segment) -> float:
        if self.L is not None:
            return self.L
        probe = FIRST_PROBE * segment.longest
        curvature = (segment.slope_at(probe) - segment.slope) / (probe * segment.span)
        return curvature if math.isfinite(curvature) and curvature > 0 else -segment.slope / segment.span


@dataclass(frozen=True)
class LineSearchStep:
    """γ = argmin φ by golden section, to a bracket of relative width ``tol``; φ convex. Some 30 to 60 values a step.

    Parameters
    ----------
    tol : float, default 1e-6
        In (0, 1); below √ε of f's dtype the values' rounding decides.
    """

    tol: float = 1e-6

    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.tol < 1:
            raise ValueError(f"tol must be in (0, 1), got {self.tol!r}; 1e-6 is typical")

    def __call__(self, segment: Segment, t: int, memory: float | None) -> Move:
        """Return the step."""
        end = segment.at(segment.longest)
        low, high = 0.0, segment.longest
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        at_left, at_right = segment.at(left), segment.at(right)
        # With both infinite the domain ends before the left one.
        while high - low > self.tol * high and high > torch.finfo(torch.float32).tiny:
            if at_left <= at_right:
                high, right, at_right = right, left, at_left
                left = high - GOLDEN * (high - low)
                at_left = segment.at(left)
            else:
                low, left, at_left = left, right, at_right
                right = low + GOLDEN * (high - low)
                at_right = segment.at(right)
        value, gamma = min((segment.start, 0.0), (end, segment.longest), (at_left, left), (at_right, right))
        return Move(gamma, value, failure=NO_LOWER if gamma == 0 and segment.slope < 0 else "")
