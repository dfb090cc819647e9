"""Which settings of a method are tried: rounds of settings, each asked for when the one before it has been scored.

A finite space with no more settings than trials is gone through whole. Otherwise the first half of the trials (at least
one) are points of a scrambled Halton sequence, spread evenly over the space, and the rest come from Optuna's TPE in rounds of
four. Rounds make tuning reproducible: what is asked depends on the scores of whole rounds, never on which worker was faster,
so a run that is continued asks for the same settings again and finds them stored.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fallline.core.space import Choice, Integers, LogUniform, Range

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ROUND = 4
Setting = dict[str, Any]
Point = dict[str, Any]


def planned(space: Mapping[str, Range], tune: int) -> int:
    """How many settings `rounds` will ask for."""
    size = _grid_size(space)
    return min(tune, size) if size is not None else tune


def _grid_size(space: Mapping[str, Range]) -> int | None:
    """How many settings a space of choices and whole numbers holds; None for a space that is not finite."""
    sizes = [_values(range_) for range_ in space.values()]
    return math.prod(len(size) for size in sizes if size is not None) if None not in sizes else None


def _values(range_: Range) -> range | None:
    """The whole numbers, or the indices of the options, of a range; None for real numbers."""
    if isinstance(range_, Choice):
        return range(len(range_.options))
    return range(range_.low, range_.high + 1) if isinstance(range_, Integers) else None


def rounds(
    space: Mapping[str, Range], tune: int, seed: int, at_once: int | None = None
) -> Generator[list[Setting], Sequence[float], None]:
    """Yield rounds of settings; send back the scores of each, smaller being better, ``inf`` for a divergent one.

    Parameters
    ----------
    space
        Name to range. An empty space has one setting, ``{}``.
    tune
        How many settings in all, at least 1.
    seed
        Of the Halton sequence and of TPE.
    at_once
        At most so many settings a round, for a pruner that learns from round to round; which settings come does not change.
    """
    size = _grid_size(space)
    if size is not None and size <= tune:
        values = [found for range_ in space.values() if (found := _values(range_)) is not None]
        points = [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]
        yield from _in_parts(space, points, at_once)
        return
    fresh = _Fresh(space, seed)
    first = [fresh(point) for point in _evenly(space, max(1, math.ceil(tune / 2)), seed)]
    scores = yield from _in_parts(space, first, at_once)
    if tune > len(first):
        yield from _refined(space, list(zip(first, scores, strict=True)), tune, seed, fresh)


def _in_parts(
    space: Mapping[str, Range], points: list[Point], at_once: int | None
) -> Generator[list[Setting], Sequence[float], list[float]]:
    """Yield the settings, at most so many at once; return all scores."""
    scores: list[float] = []
    size = at_once or len(points)
    for start in range(0, len(points), size):
        scores += yield [_decoded(space, point) for point in points[start : start + size]]
    return scores


class _Fresh:
    """Replaces a point of a finite space that was tried before by one that was not; real numbers do not repeat."""

    def __init__(self, space: Mapping[str, Range], seed: int) -> None:
        self._values = {name: found for name, range_ in space.items() if (found := _values(range_)) is not None}
        self._finite = len(self._values) == len(space)
        self._random, self._tried = random.Random(seed), set[tuple[Any, ...]]()

    def __call__(self, point: Point) -> Point:
        while self.known(point):
            point = {name: self._random.choice(values) for name, values in self._values.items()}
        self._tried.add(tuple(point.values()))
        return point

    def known(self, point: Point) -> bool:
        """Whether the point was tried before."""
        return self._finite and tuple(point.values()) in self._tried


def _evenly(space: Mapping[str, Range], count: int, seed: int) -> list[Point]:
    import numpy as np
    from scipy.stats import qmc

    points = qmc.Halton(len(space), rng=np.random.default_rng(seed)).random(count)
    return [
        {name: _at(range_, float(u)) for (name, range_), u in zip(space.items(), point, strict=True)} for point in points
    ]


def _at(range_: Range, u: float) -> Any:
    """The value, or the index of the option, at the fraction ``u`` in [0, 1) of a range."""
    if isinstance(range_, Choice):
        return int(u * len(range_.options))
    if isinstance(range_, LogUniform):
        return range_.low * (range_.high / range_.low) ** u
    if isinstance(range_, Integers):
        if range_.log:
            return min(range_.high, int(range_.low * ((range_.high + 1) / range_.low) ** u))
        return range_.low + int(u * (range_.high - range_.low + 1))
    return range_.low + u * (range_.high - range_.low)


def _refined(
    space: Mapping[str, Range], scored: list[tuple[Point, float]], tune: int, seed: int, fresh: _Fresh
) -> Generator[list[Setting], Sequence[float], None]:
    import optuna

    distributions = {name: _distribution(range_) for name, range_ in space.items()}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    optuna.logging.set_verbosity(level)

    def add(point: Point, score: float) -> None:
        study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=score))

    for point, score in scored:
        add(point, score)
    left = tune - len(scored)
    while left > 0:
        trials = [study.ask(distributions) for _ in range(min(ROUND, left))]
        points = []
        for trial in trials:
            point = {name: trial.params[name] for name in space}
            known = fresh.known(point)
            points.append(fresh(point))
            if known:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        scores = yield [_decoded(space, point) for point in points]
        for trial, point, score in zip(trials, points, scores, strict=True):
            if trial.params == point:
                study.tell(trial, score)
            else:
                add(point, score)
        left -= len(trials)


def _distribution(range_: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(range_, Choice):
        return CategoricalDistribution(list(range(len(range_.options))))
    if isinstance(range_, Integers):
        return IntDistribution(range_.low, range_.high, log=range_.log)
    return FloatDistribution(range_.low, range_.high, log=isinstance(range_, LogUniform))


def _decoded(space: Mapping[str, Range], point: Point) -> Setting:
    """The setting at a point, which holds a choice by its index, so that an option may be any object."""
    return {n: r.options[point[n]] if isinstance(r, Choice) else point[n] for n, r in space.items()}
