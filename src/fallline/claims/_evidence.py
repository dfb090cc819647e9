"""Evidence: the figures behind a verdict, and the verdict computed from them.

Every judged figure has a *slack* for each seed, nonnegative where the relation is satisfied:

    measured <= t :  t - measured            measured >= t :  measured - t
    measured == t :  tolerance - |measured - t|       measured in [a, b] :  min(measured - a, b - measured)

A claim speaks of every seed, so the whole range of the slack decides, however many seeds there are. A figure *holds* when
that range is nonnegative, *fails* when it is negative, and is *inconclusive* when zero lies inside: the margin is then
within the spread. A value that is not finite satisfies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from fallline.study.spread import Spread, whole_range

Relation = Literal["<=", ">=", "==", "in", "recorded"]
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


class Outcome(StrEnum):
    """What became of one figure."""

    HOLDS = "holds"
    FAILS = "fails"
    INCONCLUSIVE = "inconclusive"
    RECORDED = "recorded"


class Verdict(StrEnum):
    """What became of a claim, or of a paper."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    FAILS = "does not hold here"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Figure:
    """One measured quantity: its values over seeds (or one exact number), and what it is held against.

    Made by `at_most`, `at_least`, `exactly`, `between` and `recorded`.
    """

    name: str
    relation: Relation
    measured: tuple[float, ...]
    threshold: tuple[float, ...] = ()
    tolerance: float = 0.0

    @property
    def slacks(self) -> tuple[float, ...]:
        """By how much every seed satisfies the relation; ``-inf`` where the measurement is not finite."""
        return tuple(self._slack(i, value) for i, value in enumerate(self.measured))

    def _slack(self, index: int, value: float) -> float:
        if self.relation == "in":
            slack = min(value - self.threshold[0], self.threshold[1] - value)
        else:
            bound = self.threshold[index % len(self.threshold)]
            if self.relation == "==":
                slack = self.tolerance - abs(value - bound)
            else:
                slack = bound - value if self.relation == "<=" else value - bound
        return slack if math.isfinite(value) and not math.isnan(slack) else -math.inf

    @property
    def spread(self) -> Spread:
        """Median and whole range of the measured values."""
        return whole_range(self.measured)

    @property
    def outcome(self) -> Outcome:
        """Whether the relation holds, fails, or is undecided because seeds disagree."""
        if self.relation == "recorded":
            return Outcome.RECORDED
        slack = whole_range(self.slacks)
        if slack.low >= 0:
            return Outcome.HOLDS
        return Outcome.FAILS if slack.high < 0 else Outcome.INCONCLUSIVE


def _values(name: str, argument: str, values: float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(values, int | float):
        return (float(values),)
    found = tuple(float(v) for v in values)
    if len(found) < 2:
        raise ValueError(
            f"{argument} of {name!r} must be one number, or values over at least two seeds, got {list(found)}; "
            "a figure that no seed can move is passed as a plain number"
        )
    return found


def _figure(
    name: str,
    relation: Relation,
    measured: float | Sequence[float],
    threshold: float | Sequence[float],
    tolerance: float = 0.0,
) -> Figure:
    values, bounds = _values(name, "measured", measured), _values(name, "threshold", threshold)
    if len(values) == 1 < len(bounds):
        values = values * len(bounds)
    if len(bounds) not in (1, len(values)):
        raise ValueError(
            f"threshold of {name!r} must be one number or as many as measured, "
            f"got {len(bounds)} against {len(values)}; pair the two sides seed by seed"
        )
    if len(bounds) == 1 and not math.isfinite(bounds[0]):
        raise ValueError(f"threshold of {name!r} must be finite, got {bounds[0]}; such a relation cannot fail")
    return Figure(name, relation, values, bounds, tolerance)


def at_most(name: str, measured: float | Sequence[float], threshold: float | Sequence[float]) -> Figure:
    """``measured <= threshold``; a sequence has one value a seed, and a sequence of thresholds is paired with it."""
    return _figure(name, "<=", measured, threshold)


def at_least(name: str, measured: float | Sequence[float], threshold: float | Sequence[float]) -> Figure:
    """``measured >= threshold``; a sequence has one value a seed, and a sequence of thresholds is paired with it."""
    return _figure(name, ">=", measured, threshold)


def exactly(
    name: str, measured: float | Sequence[float], expected: float | Sequence[float], tolerance: float = 0.0
) -> Figure:
    """``|measured - expected| <= tolerance``, an absolute tolerance, 0 by default."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance of {name!r} must be finite and >= 0, got {tolerance}; use 0 for equality")
    return _figure(name, "==", measured, expected, tolerance)


def between(name: str, measured: float | Sequence[float], low: float, high: float) -> Figure:
    """``low <= measured <= high``."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"the bounds of {name!r} must be finite and ordered, got [{low}, {high}]")
    return Figure(name, "in", _values(name, "measured", measured), (float(low), float(high)))


def recorded(name: str, measured: float | Sequence[float]) -> Figure:
    """A figure that is kept and shown, and does not enter the verdict."""
    values = (measured,) if isinstance(measured, int | float) else measured
    return Figure(name, "recorded", tuple(float(v) for v in values))


def judge(figures: Sequence[Figure]) -> Verdict:
    """The verdict that these figures allow.

    *holds*: all do. *does not hold here*: some fail and none holds. *holds in part*: some hold and some fail.
    *inconclusive*: none fails, but the margin of some is within their spread.
    """
    outcomes = {figure.outcome for figure in figures} - {Outcome.RECORDED}
    if not outcomes:
        raise ValueError("figures must hold at least one that can fail, got none; use at_most, at_least, exactly, between")
    if Outcome.FAILS in outcomes:
        return Verdict.IN_PART if Outcome.HOLDS in outcomes else Verdict.FAILS
    return Verdict.INCONCLUSIVE if Outcome.INCONCLUSIVE in outcomes else Verdict.HOLDS


class Evidence:
    """What a claim measured. The verdict is computed from the figures and cannot be passed in.

    Parameters
    ----------
    figures
        Made by `at_most`, `at_least`, `exactly`, `between`, `recorded`; names are unique and at least one is judged.
    curves
        Name to ``(x, y)``, two equally long sequences of numbers, to plot.
    axes
        What x and y are, for the titles of the plot's axes.
    notes
        Sentences a reader of the figures should know, such as how this scale differs from the paper's.

    Raises
    ------
    ValueError
        When nothing here could fail, when two figures share a name, when a curve's sides differ in length, or when axes are not two.
    """

    def __init__(self, figures: Sequence[Figure], *, curves: Curves | None = None, axes: Sequence[str] | None = None,
                 notes: Sequence[str] = ()) -> None:
        self.figures = tuple(figures)
        self.verdict = judge(self.figures)
        self.axes = None if axes is None else tuple(axes)
        self.notes = (notes,) if isinstance(notes, str) else tuple(notes)
        self.curves = {name: (list(map(float, x)), list(map(float, y))) for name, (x, y) in (curves or {}).items()}
        names = [figure.name for figure in self.figures]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"figures must have names of their own, got {repeated} twice")
        for name, (x, y) in self.curves.items():
            if len(x) != len(y):
                raise ValueError(f"curve {name!r} must have as many x as y, got {len(x)} and {len(y)}")
        if self.axes is not None and (isinstance(axes, str) or len(self.axes) != 2):
            raise ValueError(f"axes must be the titles of x and y, such as ('steps', 'loss'), got {axes!r}")

    def __repr__(self) -> str:
        lines = [f"Evidence: {self.verdict}", *(f"  {describe(figure)}" for figure in self.figures)]
        return "\n".join(lines)


def number(value: float) -> str:
    """A number as shown to readers: four significant digits, integers whole."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.4g}"


def measured_text(figure: Figure) -> str:
    """The measurement in words: ``0.97 (0.95 to 0.99 over 3 seeds)``."""
    found = figure.spread
    if found.count == 1:
        return number(found.median)
    ends = f"{number(found.low)} to {number(found.high)}"
    return f"{number(found.median)} ({ends} over {found.count} seeds)"


def threshold_text(figure: Figure) -> str:
    """What the figure is held against: ``<= 1.05``."""
    if figure.relation == "recorded":
        return "recorded"
    if figure.relation == "in":
        return f"in [{number(figure.threshold[0])}, {number(figure.threshold[1])}]"
    bound = number(whole_range(figure.threshold).median)
    bound += f" ± {number(figure.tolerance)}" if figure.tolerance else ""
    paired = " (paired by seed)" if len(figure.threshold) > 1 else ""
    return f"{figure.relation} {bound}{paired}"


def describe(figure: Figure) -> str:
    """One line: name, measurement, threshold, outcome."""
    if figure.relation == "recorded":
        return f"{figure.name}: {measured_text(figure)} (recorded)"
    return f"{figure.name}: {measured_text(figure)} {threshold_text(figure)}: {figure.outcome}"
