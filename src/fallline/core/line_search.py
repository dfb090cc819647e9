"""Line searches on φ(α) = f(x + α d): a step that decreases f enough.

    sufficient decrease (Armijo):  φ(α) <= φ(0) + c₁ α φ'(0)
    curvature (strong Wolfe):      |φ'(α)| <= c₂ |φ'(0)|

``backtracking`` shrinks the step until the first holds. ``strong_wolfe`` brackets a step with both and zooms in by the
minimiser of the cubic through the values and slopes at both ends. NaN and infinite values mean "too far".

Source: J. Nocedal and S. J. Wright, *Numerical Optimization*, 2nd edition, section 3.5, algorithms 3.1, 3.5 and 3.6.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["LineSearch", "backtracking", "strong_wolfe"]

_PRECISION = 2 * sys.float_info.epsilon


@dataclass(frozen=True)
class LineSearch:
    """What a line search found.

    Attributes
    ----------
    step : float
        The accepted α; without success, the best step with sufficient decrease, or 0 if there was none.
    value : float
        φ(step), always finite.
    slope : float or None
        φ'(step); None where it was not evaluated.
    evaluations : int
        Calls of the function.
    success : bool
    message : str
        Why it stopped.
    """

    step: float
    value: float
    slope: float | None
    evaluations: int
    success: bool
    message: str


@dataclass(frozen=True)
class _Point:
    step: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.slope)


def backtracking(
    function: Callable[[float], float],
    value: float,
    slope: float,
    *,
    step: float = 1.0,
    c1: float = 1e-4,
    shrink: float = 0.5,
    rounding: float = 0.0,
    max_evaluations: int = 50,
) -> LineSearch:
    """Shrink the step until it gives sufficient decrease: φ(α) <= φ(0) + c₁ α φ'(0).

    Parameters
    ----------
    function : float -> float
        φ(α); only values are needed.
    value, slope : float
        φ(0) and φ'(0) < 0.
    step : float
        First trial.
    c1 : float
        0 < c₁ < 1.
    shrink : float
        Factor between trials, 0 < shrink < 1.
    rounding : float
        Relative error of the values; the condition is relaxed by ``rounding * |φ(0)|``. Near a minimum, where decrease
        drowns in rounding, a few machine precisions keep a good step from being refused.
    max_evaluations : int
        Trials.

    Returns
    -------
    LineSearch
        With ``slope`` None where the step is not 0.

    Raises
    ------
    ValueError
        If slope >= 0: not a descent direction.
    """
    _check_start(value, slope, step, rounding, max_evaluations)
    if not 0 < c1 < 1:
        raise ValueError(f"c1 must be between 0 and 1, got {c1}; 1e-4 is typical")
    if not 0 < shrink < 1:
        raise ValueError(f"shrink must be between 0 and 1, got {shrink}; 0.5 is typical")
    slack = rounding * abs(value)
    for evaluations in range(1, max_evaluations + 1):
        trial = float(function(step))
        if math.isfinite(trial) and trial <= value + c1 * step * slope + slack:
            return LineSearch(step, trial, None, evaluations, True, "sufficient decrease")
        step *= shrink
    message = f"no sufficient decrease in {max_evaluations} trials, down to a step of {step / shrink:.3g}"
    return LineSearch(0.0, value, slope, max_evaluations, False, message)


def strong_wolfe(
    function: Callable[[float], tuple[float, float]],
    value: float,
    slope: float,
    *,
    step: float = 1.0,
    c1: float = 1e-4,
    c2: float = 0.9,
    max_step: float = math.inf,
    rounding: float = 0.0,
    max_evaluations: int = 30,
) -> LineSearch:
    """Find a step with sufficient decrease and a small slope, the strong Wolfe conditions.

    Parameters
    ----------
    function : float -> (float, float)
        α to (φ(α), φ'(α)).
    value, slope : float
        φ(0) and φ'(0) < 0.
    step : float
        First trial; 1 for Newton-like directions.
    c1, c2 : float
        0 < c₁ < c₂ < 1; c₂ is 0.9 for quasi-Newton and 0.1 for nonlinear conjugate gradient directions.
    max_step : float
        No longer step is tried.
    rounding : float
        Relative error of the values, as in ``backtracking``.
    max_evaluations : int
        Calls of the function.

    Raises
    ------
    ValueError
        If slope >= 0: not a descent direction.
    """
    _check_start(value, slope, step, rounding, max_evaluations)
    if not 0 < c1 < c2 < 1:
        raise ValueError(f"c1 and c2 must satisfy 0 < c1 < c2 < 1, got c1={c1}, c2={c2}; 1e-4 and 0.9 are typical")
    if not max_step > 0:
        raise ValueError(f"max_step must be > 0, got {max_step}")
    search = _Search(function, _Point(0.0, float(value), float(slope)), c1, c2, rounding, max_evaluations)
    return search.run(min(step, max_step), max_step)


class _Search:
    def __init__(
        self,
        function: Callable[[float], tuple[float, float]],
        start: _Point,
        c1: float,
        c2: float,
        rounding: float,
        max_evaluations: int,
    ) -> None:
        self.function = function
        self.start = start
        self.c1, self.c2, self.rounding = c1, c2, rounding
        self.left = self.max_evaluations = max_evaluations

    def run(self, step: float, max_step: float) -> LineSearch:
        """Lengthen the step until an interval holds a solution (algorithm 3.5)."""
        previous = self.start
        while self.left:
            trial = self.evaluate(step)
            if not self.decreases(trial) or (previous.step > 0 and trial.value >= previous.value):
                return self.zoom(previous, trial)
            if self.flat(trial):
                return self.result(trial, True, "strong Wolfe conditions")
            if trial.slope >= 0:
                return self.zoom(trial, previous)
            if step >= max_step:
                return self.result(trial, False, f"φ still falls at max_step = {max_step:g}")
            # The cubic's minimiser, but at least twice and at most ten times as far.
            minimiser = _cubic_minimiser(previous, trial)
            previous, step = trial, min(max(minimiser, 2 * step), 10 * step, max_step)
        return self.result(previous, False, f"φ still falls after {self.max_evaluations} evaluations")

    def zoom(self, low: _Point, high: _Point) -> LineSearch:
        """Shrink an interval that holds a solution; ``low`` is its better end (algorithm 3.6)."""
        width = math.inf
        while self.left:
            previous_width, width = width, abs(high.step - low.step)
            step = self._between(low, high, bisect=width > 0.66 * previous_width)
            if step in (low.step, high.step):
                return self.result(low, False, "the interval has shrunk to rounding")
            trial = self.evaluate(step)
            # Where values differ by rounding alone, the slope decides on which side the minimiser is.
            if not self.decreases(trial) or trial.value > low.value + self.noise(low, trial):
                high = trial
                continue
            if self.flat(trial):
                return self.result(trial, True, "strong Wolfe conditions")
            if trial.slope * (high.step - low.step) >= 0:
                high = low
            low = trial
        return self.result(low, False, f"no step with a small slope in {self.max_evaluations} evaluations")

    def evaluate(self, step: float) -> _Point:
        self.left -= 1
        value, slope = self.function(step)
        return _Point(step, float(value), float(slope))

    def decreases(self, point: _Point) -> bool:
        bound = self.start.value + self.c1 * point.step * self.start.slope + self.rounding * abs(self.start.value)
        return point.finite and point.value <= bound

    def noise(self, a: _Point, b: _Point) -> float:
        return max(self.rounding, _PRECISION) * max(abs(a.value), abs(b.value))

    def flat(self, point: _Point) -> bool:
        return abs(point.slope) <= self.c2 * abs(self.start.slope)

    def result(self, point: _Point, success: bool, message: str) -> LineSearch:
        return LineSearch(point.step, point.value, point.slope, self.max_evaluations - self.left, success, message)

    def _between(self, low: _Point, high: _Point, bisect: bool) -> float:
        length = high.step - low.step
        if not high.finite:
            return low.step + 0.1 * length
        if bisect:
            return low.step + 0.5 * length
        if low.slope * high.slope < 0 and abs(high.value - low.value) <= self.noise(low, high):
            fraction = low.slope / (low.slope - high.slope)
        else:
            fraction = (_cubic_minimiser(low, high) - low.step) / length
        # At least a tenth of the interval from its ends, so that it shrinks.
        return low.step + min(max(fraction, 0.1), 0.9) * length


def _cubic_minimiser(a: _Point, b: _Point) -> float:
    """Return the local minimiser of the cubic with a's and b's values and slopes, or their midpoint if it has none."""
    length = b.step - a.step
    d1 = a.slope + b.slope - 3 * (b.value - a.value) / length
    discriminant = d1 * d1 - a.slope * b.slope
    middle = a.step + 0.5 * length
    if not discriminant >= 0:
        return middle
    d2 = math.copysign(math.sqrt(discriminant), length)
    denominator = b.slope - a.slope + 2 * d2
    if denominator == 0:
        return middle
    minimiser = b.step - length * (b.slope + d2 - d1) / denominator
    return minimiser if math.isfinite(minimiser) else middle


def _check_start(value: float, slope: float, step: float, rounding: float, max_evaluations: int) -> None:
    if not math.isfinite(value):
        raise ValueError(f"value must be finite, got φ(0) = {value}")
    if not (math.isfinite(slope) and slope < 0):
        raise ValueError(f"not a descent direction: the slope φ'(0) must be finite and < 0, got {slope}")
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step must be a finite number > 0, got {step}")
    if not (math.isfinite(rounding) and rounding >= 0):
        raise ValueError(f"rounding must be a finite number >= 0, got {rounding}; a few machine precisions at most")
    if max_evaluations < 1:
        raise ValueError(f"max_evaluations must be >= 1, got {max_evaluations}")
