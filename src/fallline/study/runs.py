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
from typing import TYPE_CHECKING, Any, Protocol

from fallline.core.budget import Budget
from fallline.core.problem import Problem
from fallline.core.warning import warn
from fallline.study import tuning
from fallline.study.buffered import Buffered
from fallline.study.executors import Executor, Lost, Serial
from fallline.study.processes import Processes
from fallline.study.pruning import RIVALS, Rivals, pruner_of
from fallline.study.settings import Contender, Trial, checked_budget, contender
from fallline.study.sources import ProblemSpec, StudyError, problem_spec
from fallline.study.spread import spread
from fallline.study.storage import Storage, open_storage
from fallline.study.table import RunTable, Side, Terms
from fallline.study.trial import COUNTED, Record, as_stored, counted_at_first, execute, failed, pick_metric

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

TIMES = ("steps", "seconds")
Plan = Generator[list[Trial], list[Record], Side]


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def start(self, total: Mapping[str, int]) -> None:
        """Planned trials by side."""

    def finished(self, record: Record, stored: bool) -> None:
        """One more trial is there; `stored` when an earlier run had made it."""

    def say(self, text: str) -> None:
        """Something the user should know while it goes on."""

    def stop(self) -> None:
        """Nothing more will come."""


@dataclass(frozen=True)
class _Planner:
    """Plans the trials of every side on the same terms."""

    problem: ProblemSpec
    example: Problem
    identities: Mapping[str, str]
    terms: Terms
    pruner: BasePruner | None

    def trial(self, side: Contender, setting: Mapping[str, Any], seed: int, rivals: Rivals | None = None) -> Trial:
        terms = self.terms
        return Trial(self.problem, side, self.identities[side.title], setting, terms.limits, seed, terms.metric, rivals)

    def planned(self, side: Contender) -> int:
        """How many trials the side will get."""
        terms = self.terms
        settings = tuning.planned(side.ranges, terms.tune) if side.ranges and terms.tune else 0
        return settings * terms.tuning_seeds + terms.seeds

    def plan(self, side: Contender) -> Plan:
        """Yield batches of trials, take their records, return the side."""
        terms, best, records = self.terms, dict[str, Any](), list[Record]()
        if side.ranges and terms.tune:
            best, records = yield from self._tuned(side)
        first = terms.seed + terms.tuning_seeds
        evaluations = yield [self.trial(side, best, seed) for seed in range(first, first + terms.seeds)]
        entrant = side.entrant(self.example)
        return Side(entrant, as_stored(best), tuple(records), tuple(evaluations), entrant.code(best, terms.limits))

    def _tuned(self, side: Contender) -> Generator[list[Trial], list[Record], tuple[dict[str, Any], list[Record]]]:
        """The setting with the best median score over the tuning seeds, and every tuning record."""
        terms, k = self.terms, self.terms.tuning_seeds
        seeds = range(terms.seed, terms.seed + k)
        scored: list[tuple[float, dict[str, Any]]] = []
        records: list[Record] = []
        asking = tuning.rounds(side.ranges, terms.tune, terms.seed, at_once=tuning.ROUND if self.pruner else None)
        settings = next(asking)
        while True:
            rivals = {seed: self._rivals(records, seed) for seed in seeds}
            found = yield [self.trial(side, setting, seed, rivals[seed]) for setting in settings for seed in seeds]
            records += found
            scores = [spread([r.score for r in found[i * k : (i + 1) * k]]).median for i in range(len(settings))]
            scored += zip(scores, settings, strict=True)
            try:
                settings = asking.send(scores)
            except StopIteration:
                return min(scored, key=lambda entry: entry[0])[1], records

    def _rivals(self, records: Sequence[Record], seed: int) -> Rivals | None:
        """What a trial at this seed is held against; nothing without a pruner, and in the first round."""
        if self.pruner is None or not records:
            return None
        earlier = [record for record in records if record.seed == seed and record.curve]
        return Rivals(self.pruner, tuple((record.status != "pruned", record.by_point) for record in earlier[-RIVALS:]))


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
            self._advance(index)
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
                self._keep(trial, self._records[trial.id], stored=True)
            elif record is not None and record.status != "error":  # what raised is tried again: its cause may be gone
                self._keep(trial, record, stored=True)
            elif trial.id not in self._running:
                self._running.add(trial.id)
                self._executor.submit(trial)

    def _keep(self, trial: Trial, record: Record, *, stored: bool) -> None:
        self._records[trial.id] = record
        if self._watcher:
            self._watcher.finished(record, stored)

    def _advance(self, index: int) -> None:
        """Go on with a side while all trials of its batch are there, which may be many batches of stored ones."""
        while index not in self.sides and all(trial.id in self._records for trial in self._batches[index]):
            try:
                following = self._plans[index].send([self._records[trial.id] for trial in self._batches[index]])
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
        remedy = "give one a label of its own: Contender(label=…), or LABEL=NAME in --methods"
        raise StudyError(f"methods must be different names, at least one, got {found}; {remedy}")
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
    prune: str | BasePruner | None = None,
    storage: str | Path | Storage | None = None,
    workers: int = 1,
    cluster: str | None = None,
    axis: str | None = None,
    watcher: Watcher | None = None,
) -> RunTable:
    """Tune every method alike and run its best setting over fresh seeds.

    Parameters
    ----------
    problem
        A name of ``fallline.problems``, a Python file with ``problem(seed)``, a function of the seed, or a Problem.
    methods
        Registered names, ``file.py:Class`` or ``module:Class``, Method or torch optimizer classes, or `Contender`.
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
    prune
        Whether hopeless tuning trials are stopped early: ``"median"``, or one of ``optuna.pruners``; none by default.
    storage
        A database URL, the path of an SQLite file, or None for memory. What is stored there is not run again.
    workers
        Processes; 1 runs in this one. A problem that is not importable runs in this process only.
    cluster
        The address of a Ray cluster that runs the trials instead, ``ray://host:10001``, or ``local``: a Ray on this machine, with
        as many processors as there are workers.
    axis
        A cost that the runs are to be shown against; refused if none of them counts it.

    Raises
    ------
    StudyError, UnknownName, MissingOracle, WrongProblem
        Before the first trial, when a name, the budget, the storage or a method does not fit.
    """
    numbers = {"tune": (tune, 0), "seeds": (seeds, 1), "tuning_seeds": (tuning_seeds, 1), "workers": (workers, 1), "seed": (seed, 0)}
    for name, (number, least) in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise StudyError(f"{name} must be a whole number of at least {least}, got {number!r}")
    if seed >= 2**62:
        raise StudyError(f"seed must be below 2**62, got {seed!r}")
    spec, sides, pruner = problem_spec(problem), _contenders(methods), pruner_of(prune)
    identities = {side.title: side.identity for side in sides}  # before anything of theirs runs and changes what they read
    example = spec(seed)
    limits = checked_budget(budget, example).limits
    for side in sides:
        _checked(side, probe(side, seed), example)
    chosen = pick_metric(example.observe(example.x0), metric or example.metric)
    said = prune if isinstance(prune, str) else type(prune).__name__ if prune is not None else ""
    terms = Terms(spec.name, example.kind, limits, tune, tuning_seeds, seeds, seed, chosen, said)
    planner = _Planner(spec, example, identities, terms, pruner)
    _counted(sides, planner, axis)
    say = watcher.say if watcher else warn
    opened = Buffered(open_storage(storage), say)
    if watcher:
        watcher.start({side.title: planner.planned(side) for side in sides})
    try:
        executor = _executor(workers, cluster, timed="seconds" in limits)
        try:
            found = _Schedule([planner.plan(side) for side in sides], executor, opened, watcher).run()
        finally:
            executor.close()
        table = RunTable(terms, tuple(found))
        opened.put_study(table.identity, terms.problem, table.content)
    finally:
        opened.close()
        if watcher:
            watcher.stop()
        if opened.trouble:
            say(f"{opened.unwritten} finished trials, or the study itself, are not kept; run the same command again: {opened.trouble}")
    return table


def _executor(workers: int, cluster: str | None, *, timed: bool) -> Executor[Trial, Record]:
    if cluster is not None:
        from fallline.study.cluster import Cluster

        return Cluster(execute, cluster, size=_size, cpus=workers)
    if workers == 1:
        return Serial(execute)
    beside = min(workers, cores()) if timed else workers  # a timed trial has its core to itself
    return Processes(execute, beside, pin=timed, size=_size)


def cores() -> int:
    """How many cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(trial: Trial) -> int:
    return trial.processes


def _checked(side: Contender, setting: Mapping[str, Any], problem: Problem) -> None:
    try:
        method = side.method(setting)
    except (TypeError, ValueError) as error:
        given = {**side.fixed, **setting}
        raise StudyError(f"method {side.title!r} cannot be made with {given}: {error}; mend its fixed= or space=") from error
    method.check(problem)


def _counted(sides: Sequence[Contender], planner: _Planner, axis: str | None) -> None:
    """Refuse a budget, or an axis, of something that nothing here counts."""
    named = {"budget": set(planner.terms.limits) - {*TIMES, *COUNTED}, "axis": {axis or "steps"} - {*TIMES, "oracle calls"}}
    if not any(named.values()):
        return
    seed = planner.terms.seed
    found = set().union(*(counted_at_first(planner.trial(side, probe(side, seed), seed)) for side in sides))
    for what, name in ((what, name) for what, names in named.items() for name in sorted(names - found)):
        near = difflib.get_close_matches(name, [*TIMES, *COUNTED, *found], n=1)
        hint = f"did you mean {near[0]!r}? " if near and near[0] != name else ""
        raise StudyError(f"{what} {name!r} is counted by no method here; {hint}give steps, seconds, or something counted: "
                         f"{', '.join(sorted(found or COUNTED))}")


def probe(side: Contender, seed: int) -> Mapping[str, Any]:
    """Some setting of the side, to see at the door whether its method fits the problem."""
    return next(tuning.rounds(side.ranges, 1, seed))[0]
