"""The run machinery that claims, comparisons and tests share: every side tuned alike, every trial stored, none run twice.

For each side: rounds of settings are run at the tuning seeds, the setting with the best median score is run at fresh seeds.
A side with nothing to tune goes straight to the fresh seeds.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fallline.core.budget import Budget
from fallline.core.problem import Problem
from fallline.study import tuning
from fallline.study.executors import Executor, Lost, Processes, Serial
from fallline.study.settings import Contender, Trial, checked_budget, contender
from fallline.study.sources import ProblemSpec, StudyError, problem_spec
from fallline.study.spread import spread
from fallline.study.storage import Storage, open_storage
from fallline.study.trial import COUNTED, Record, counted_at_first, execute, failed, pick_metric

Plan = Generator[list[Trial], list[Record], "Side"]


@dataclass(frozen=True)
class Side:
    """All trials of one contender."""

    contender: Contender
    setting: Mapping[str, Any]
    tuning: tuple[Record, ...]
    evaluations: tuple[Record, ...]

    @property
    def values(self) -> list[float]:
        """The metric at the best setting, a value a fresh seed; ``inf`` where it diverged."""
        return [record.score for record in self.evaluations]


@dataclass(frozen=True)
class RunTable:
    """What `runs` gives: the sides in the order they were named, and what all of them were given."""

    problem: ProblemSpec
    sides: tuple[Side, ...]
    limits: Mapping[str, float]
    tune: int
    tuning_seeds: int
    seeds: int
    metric: str

    def __getitem__(self, title: str) -> Side:
        """The side called `title`."""
        return next(side for side in self.sides if side.contender.title == title)

    @property
    def records(self) -> list[Record]:
        """All records."""
        return [record for side in self.sides for record in (*side.tuning, *side.evaluations)]


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def start(self, total: Mapping[str, int]) -> None:
        """Planned trials by side."""

    def finished(self, record: Record, stored: bool) -> None:
        """One more trial is there; `stored` when an earlier run had made it."""

    def stop(self) -> None:
        """Nothing more will come."""


@dataclass(frozen=True)
class _Terms:
    """What every side is given."""

    problem: ProblemSpec
    identities: Mapping[str, str]
    limits: Mapping[str, float]
    tune: int
    tuning_seeds: int
    seeds: int
    seed: int
    metric: str

    def trial(self, side: Contender, setting: Mapping[str, Any], seed: int) -> Trial:
        return Trial(self.problem, side, self.identities[side.title], setting, self.limits, seed, self.metric)


def _plan(side: Contender, terms: _Terms) -> Plan:
    """Yield batches of trials, take their records, return the side."""
    best: Mapping[str, Any] = {}
    tuned: list[tuple[float, Mapping[str, Any]]] = []
    records: list[Record] = []
    tuning_seeds = range(terms.seed, terms.seed + terms.tuning_seeds)
    if side.ranges and terms.tune:
        asking = tuning.rounds(side.ranges, terms.tune, terms.seed)
        scores: list[float] | None = None
        while True:
            try:
                settings = next(asking) if scores is None else asking.send(scores)
            except StopIteration:
                break
            found = yield [terms.trial(side, setting, seed) for setting in settings for seed in tuning_seeds]
            records += found
            k = terms.tuning_seeds
            scores = [spread([r.score for r in found[i * k : (i + 1) * k]]).median for i in range(len(settings))]
            tuned += zip(scores, settings, strict=True)
        best = min(tuned, key=lambda entry: entry[0])[1]
    fresh = range(terms.seed + terms.tuning_seeds, terms.seed + terms.tuning_seeds + terms.seeds)
    evaluations = yield [terms.trial(side, best, seed) for seed in fresh]
    return Side(side, best, tuple(records), tuple(evaluations))


class _Schedule:
    """Drives the plans of all sides at once, so that no worker waits for another side's round."""

    def __init__(self, plans: Sequence[Plan], executor: Executor[Trial, Record], storage: Storage, watcher: Watcher | None):
        self._plans, self._executor, self._storage, self._watcher = plans, executor, storage, watcher
        self._batches: list[list[Trial]] = [[] for _ in plans]
        self._records: dict[str, Record] = {}
        self._running: set[str] = set()
        self.sides: dict[int, Side] = {}

    def run(self) -> list[Side]:
        for index, plan in enumerate(self._plans):
            self._take(index, next(plan))
        while len(self.sides) < len(self._plans):
            trial, outcome = self._executor.finished()
            record = failed(trial, "error", outcome.reason) if isinstance(outcome, Lost) else outcome
            self._running.discard(trial.id)
            self._storage.put(record)
            self._keep(trial, record, stored=False)
            for index in range(len(self._plans)):
                self._advance(index)
        return [self.sides[index] for index in range(len(self._plans))]

    def _take(self, index: int, batch: list[Trial]) -> None:
        self._batches[index] = batch
        known = self._storage.get(trial.id for trial in batch)
        for trial in batch:
            record = known.get(trial.id)
            if trial.id in self._records:
                continue
            if record is not None and record.status != "error":  # what raised is tried again: its cause may be gone
                self._keep(trial, record, stored=True)
            elif trial.id not in self._running:
                self._running.add(trial.id)
                self._executor.submit(trial)
        self._advance(index)

    def _keep(self, trial: Trial, record: Record, *, stored: bool) -> None:
        self._records[trial.id] = record
        if self._watcher:
            self._watcher.finished(record, stored)

    def _advance(self, index: int) -> None:
        batch = self._batches[index]
        if index in self.sides or not all(trial.id in self._records for trial in batch):
            return
        try:
            following = self._plans[index].send([self._records[trial.id] for trial in batch])
        except StopIteration as end:
            self.sides[index] = end.value
        else:
            self._take(index, following)


def _contenders(methods: Iterable[str | Contender | type]) -> list[Contender]:
    sides = [contender(method) for method in methods]
    titles = [side.title for side in sides]
    repeated = sorted({title for title in titles if titles.count(title) > 1})
    if not sides or repeated:
        found = f"{repeated} twice" if repeated else "none"
        raise StudyError(f"methods must be different names, at least one, got {found}; give a Contender its own label=")
    return sides


def runs(
    problem: str | Path | Problem | Callable[..., Problem] | ProblemSpec,
    methods: Iterable[str | Contender | type],
    *,
    budget: Budget | None = None,
    tune: int = 8,
    seeds: int = 3,
    tuning_seeds: int = 1,
    seed: int = 0,
    metric: str | None = None,
    storage: str | Path | Storage | None = None,
    workers: int = 1,
    watcher: Watcher | None = None,
) -> RunTable:
    """Tune every method alike and run its best setting over fresh seeds.

    Parameters
    ----------
    problem
        A name of ``fallline.problems``, a Python file with ``problem(seed)``, a function of the seed, or a Problem.
    methods
        Registered names, Method or torch optimizer classes, or `Contender`.
    budget
        Of every trial; the problem's own by default.
    tune
        How many settings of each method are tried, 8 by default; 0 keeps the methods' own defaults.
    seeds, tuning_seeds
        How many fresh seeds the best setting is run at, and how many seeds each setting is tuned at.
    seed
        The first tuning seed; the fresh seeds follow the tuning seeds.
    metric
        Which figure of ``problem.observe`` decides, smaller being better; the first of loss, gap, residual_norm, upper, value
        by default.
    storage
        A database URL, the path of an SQLite file, or None for memory. What is stored there is not run again.
    workers
        Processes; 1 runs in this one. A problem that is not importable runs in this process only.

    Raises
    ------
    StudyError, UnknownName, MissingOracle, WrongProblem
        Before the first trial, when a name, the budget, the storage or a method does not fit.
    """
    for name, number, least in (("tune", tune, 0), ("seeds", seeds, 1), ("tuning_seeds", tuning_seeds, 1), ("workers", workers, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise StudyError(f"{name} must be a whole number of at least {least}, got {number!r}")
    spec, sides = problem_spec(problem), _contenders(methods)
    identities = {side.title: side.identity for side in sides}  # before anything of theirs runs and changes what they read
    example = spec(seed)
    limits = checked_budget(budget, example).limits
    for side in sides:
        _checked(side, probe(side, seed), example)
    chosen = pick_metric(example.observe(example.x0), metric or example.metric)
    terms = _Terms(spec, identities, limits, tune, tuning_seeds, seeds, seed, chosen)
    _counted(sides, terms)
    opened = open_storage(storage)
    if watcher:
        watcher.start({side.title: _planned(side, terms) for side in sides})
    timed = "seconds" in limits
    beside = min(workers, os.cpu_count() or 1) if timed else workers  # a timed trial has its core to itself
    executor: Executor[Trial, Record] = Serial(execute) if workers == 1 else Processes(execute, beside, pin=timed)
    try:
        found = _Schedule([_plan(side, terms) for side in sides], executor, opened, watcher).run()
    finally:
        executor.close()
        if watcher:
            watcher.stop()
    return RunTable(spec, tuple(found), limits, tune, tuning_seeds, seeds, chosen)


def _planned(side: Contender, terms: _Terms) -> int:
    settings = tuning.planned(side.ranges, terms.tune) if side.ranges and terms.tune else 0
    return settings * terms.tuning_seeds + terms.seeds


def _checked(side: Contender, setting: Mapping[str, Any], problem: Problem) -> None:
    try:
        method = side.method(setting)
    except (TypeError, ValueError) as error:
        given = {**side.fixed, **setting}
        raise StudyError(f"method {side.title!r} cannot be made with {given}: {error}; mend its fixed= or space=") from error
    method.check(problem)


def _counted(sides: Sequence[Contender], terms: _Terms) -> None:
    """Refuse a budget of something that nothing here counts."""
    unknown = set(terms.limits) - {"steps", "seconds", *COUNTED}
    if not unknown:
        return
    found = set().union(*(counted_at_first(terms.trial(side, probe(side, terms.seed), terms.seed)) for side in sides))
    for name in sorted(unknown - found):
        near = difflib.get_close_matches(name, ["steps", "seconds", *COUNTED, *found], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise StudyError(f"budget {name!r} is counted by no method here; {hint}give steps, seconds, or something counted: "
                         f"{', '.join(sorted({*COUNTED, *found}))}")


def probe(side: Contender, seed: int) -> Mapping[str, Any]:
    """Some setting of the side, to see at the door whether its method fits the problem."""
    return next(tuning.rounds(side.ranges, 1, seed))[0]
