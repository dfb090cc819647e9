"""Running one trial: make the problem, solve it, say what came out as plain data.

The outcome of a trial is the problem's own observation at the solution (a validation loss, a gap), smaller being better. A
trial that ended in a value that is not finite, or above the one it started from, is *divergent*; one that raised, or whose method
gave up, is an *error*; one that a pruner stopped is *pruned*. All three have the worst score, and none is dropped.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fallline.core import tree
from fallline.core.budget import Budget
from fallline.core.counts import Counts
from fallline.core.driver import Moment, solve
from fallline.core.errors import NonFiniteError
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.processes import run_gloo
from fallline.core.result import Result
from fallline.core.tree import Tree
from fallline.study.environment import environment
from fallline.study.identity import fingerprint
from fallline.study.pruning import POINTS
from fallline.study.settings import Trial
from fallline.study.sources import StudyError

Status = Literal["finished", "divergent", "error", "pruned"]
METRICS = ("loss", "gap", "residual_norm", "upper", "value")
ORACLES = ("values", "gradients", "hvps", "jvps", "hessians", "per_sample_gradients", "prox", "projections",
           "linear_minimizations", "matvecs", "maps")
COUNTED = (*ORACLES, "samples", "bytes", "messages")
WARM_UP_STEPS = 2
_warmed: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Record:
    """What one trial gave."""

    id: str
    problem: str
    method: str
    hyperparameters: Mapping[str, Any]
    limits: Mapping[str, float]
    seed: int
    status: Status
    metric: str = ""
    value: float = math.inf
    start: float = math.inf
    steps: int = 0
    seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    state_bytes: int = 0
    message: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_point(self) -> dict[int, float]:
        """The curve as a pruner sees it: the metric by the point of the budget."""
        return {int(point): value for point, value in zip(self.curve.get("point", ()), self.curve.get("value", ()), strict=True)}

    @property
    def score(self) -> float:
        """What trials are ordered by, smaller being better: the metric, or infinity."""
        return self.value if self.status == "finished" else math.inf


def pick_metric(observed: Mapping[str, float], wanted: str | None) -> str:
    """The observed figure that trials are judged by: the one asked for or declared, or the first of loss, gap, residual, value."""
    if wanted is not None and wanted not in observed:
        raise StudyError(f"metric must be something the problem observes, got {wanted!r}; it observes {list(observed)}")
    return wanted or next((name for name in METRICS if name in observed), next(iter(observed)))


def execute(trial: Trial) -> Record:
    """Run one trial to its end; whatever the method raises becomes a record with status ``"error"``."""
    try:
        return _execute(trial)
    except NonFiniteError as raised:
        return failed(trial, "divergent", str(raised))
    except (Exception, SystemExit) as raised:  # the other trials go on, and this one is reported with what it raised
        return failed(trial, "error", "".join(traceback.format_exception(raised)))


def as_stored(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as JSON gives them back, other objects and numbers that are not finite as their text."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        finite = isinstance(value, str | int | bool | None) or (isinstance(value, float) and math.isfinite(value))
        return value if finite else repr(value)

    return {name: plain(value) for name, value in hyperparameters.items()}


def failed(trial: Trial, status: Status, message: str) -> Record:
    """The record of a trial that gave no solution."""
    return Record(**_inputs(trial), status=status, message=message)


def _inputs(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "problem": trial.problem.name,
        "method": trial.contender.title,
        "hyperparameters": as_stored(trial.hyperparameters),
        "limits": dict(trial.limits),
        "seed": trial.seed,
        "versions": environment(),
    }


def _execute(trial: Trial) -> Record:
    outcome = _outcome(trial) if trial.processes == 1 else run_gloo(_outcome_in_group, trial.processes, trial)[0]
    return Record(**_inputs(trial), **outcome)


def _outcome_in_group(rank: int, trial: Trial) -> dict[str, Any]:
    return _outcome(trial, torch.distributed.group.WORLD)


def _outcome(trial: Trial, group: Any = None) -> dict[str, Any]:
    """What a record says beyond the trial's inputs, as plain data, which crosses processes."""
    problem, method = trial.problem(trial.seed), trial.contender.method(trial.setting)
    before = problem.observe(problem.x0)
    metric = pick_metric(before, trial.metric)
    start = _finite(_settled(problem, metric, before[metric]))
    if "seconds" in trial.limits:
        _meet(trial, group)
    watch = _Watch(problem, trial, metric)
    result = solve(problem, method, trial.budget, key=Key(trial.seed), trace=2, callback=watch, group=group)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "failed":
        return {"status": "error", "message": f"{trial.contender.title} gave up at step {result.nit}: {result.message}"}
    value = _observed(problem, result.x, metric)
    watch.end(result, value)
    diverged = result.status == "nonfinite" or math.isinf(value) or value > start
    pruned = result.status == "stopped"  # by the watch, the one callback there is
    return {
        "status": "pruned" if pruned else "divergent" if diverged else "finished",
        "metric": metric,
        "value": value,
        "start": start,
        "steps": result.nit,
        "seconds": result.seconds,
        "counts": {name: int(number) for name, number in result.counts.items()},
        "curve": watch.curve,
        "state_bytes": watch.state_bytes,
        "message": result.message,
    }


def counted_at_first(trial: Trial) -> set[str]:
    """The names of what a few steps of a trial count, if they can be taken."""
    try:
        return set(_warm_up(trial, None).counts) if trial.processes == 1 else set()
    except (Exception, SystemExit):  # what a method raises is the outcome of its trials, and is reported with them
        return set()


def _warm_up(trial: Trial, group: Any) -> Result:
    """Take a few steps: what is imported or compiled once is not timed."""
    budget = Budget(steps=WARM_UP_STEPS)
    result = solve(trial.problem(trial.seed), trial.contender.method(trial.setting), budget, key=trial.seed, group=group)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result


def _meet(trial: Trial, group: Any) -> None:
    """Warm up the first time that this process meets a method with such options, which may choose other code; numbers do not."""
    numbers = {name for name, value in trial.hyperparameters.items() if type(value) in (int, float)}
    chosen = fingerprint({name: value for name, value in trial.hyperparameters.items() if name not in numbers})
    met = (trial.problem.identity, trial.method, chosen)
    if met not in _warmed:
        _warm_up(trial, group)
        _warmed.add(met)


class _Watch:
    """A callback that observes the metric evenly over the budget, whatever the budget limits, and lets a pruner see it."""

    def __init__(self, problem: Problem, trial: Trial, metric: str) -> None:
        self._problem, self._metric, self._budget = problem, metric, trial.budget
        self._hopeless = trial.rivals.judge() if trial.rivals is not None else None
        self._rows: list[dict[str, float]] = []
        self.state_bytes = 0

    def __call__(self, moment: Moment) -> bool:
        point = self._point(moment.step, moment.seconds, moment.counts)
        if self._rows and point <= self._rows[-1]["point"]:
            return False
        value = _observed(self._problem, moment.report.resolve(), self._metric)
        self._add(point, moment.step, moment.seconds, value, moment.counts)
        self.state_bytes = max(self.state_bytes, moment.state_bytes())
        return self._hopeless is not None and 0 < point < POINTS and self._hopeless(point, value)

    def end(self, result: Result, value: float) -> None:
        """Take in where the run ended, in place of a look at the same step."""
        if self._rows and self._rows[-1]["steps"] == result.nit:
            self._rows.pop()
        self._add(self._point(result.nit, result.seconds, Counts(result.counts)), result.nit, result.seconds, value, result.counts)

    def _point(self, step: int, seconds: float, counts: Mapping[str, float]) -> int:
        return int(self._budget.fraction(step, seconds, counts) * POINTS)

    def _add(self, point: int, step: int, seconds: float, value: float, counts: Mapping[str, int]) -> None:
        calls = sum(counts.get(name, 0) for name in ORACLES)
        self._rows.append({"point": point, "steps": step, "seconds": seconds, "value": value, "oracle calls": calls, **counts})

    @property
    def curve(self) -> dict[str, list[float]]:
        """Every column; what was not counted yet is 0."""
        return {name: [float(row.get(name, 0)) for row in self._rows] for name in self._rows[-1]}


def _observed(problem: Problem, x: Tree, metric: str) -> float:
    """The figure, infinite where it is not a number: a record reads the same whether it was just made or stored."""
    try:
        found = _settled(problem, metric, problem.observe(x)[metric])
    except ArithmeticError:
        return math.inf
    return _finite(found)


def _finite(figure: float) -> float:
    return figure if math.isfinite(figure) else math.inf


def _settled(problem: Problem, metric: str, figure: float) -> float:
    """The figure, or zero for a gap below zero by no more than a thousand roundings of the best known value."""
    best = problem.facts.get("best_value")
    if metric != "gap" or best is None:
        return figure
    rounding = 1e3 * torch.finfo(tree.leaves(problem.x0)[0].dtype).eps * abs(float(best))
    return 0.0 if -rounding <= figure < 0 else figure
