"""Running one trial: make the problem, solve it, say what came out as plain data.

The outcome of a trial is the problem's own observation at the solution (a validation loss, a gap), smaller being better. A
trial that ended in a value that is not finite, or above the one it started from, is *divergent*; one that raised, or whose method
gave up, is an *error*.
Both have the worst score, and neither is dropped.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fallline.core import tree
from fallline.core.budget import Budget
from fallline.core.driver import Moment, solve
from fallline.core.errors import NonFiniteError
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.result import Result
from fallline.core.tree import Tree
from fallline.study.environment import versions
from fallline.study.settings import Trial
from fallline.study.sources import StudyError

Status = Literal["finished", "divergent", "error"]
METRICS = ("loss", "gap", "residual_norm", "upper", "value")
ORACLES = ("values", "gradients", "hvps", "jvps", "hessians", "per_sample_gradients", "prox", "projections",
           "linear_minimizations", "matvecs")
COUNTED = (*ORACLES, "samples", "bytes", "messages")
CURVE_POINTS, WARM_UP_STEPS = 60, 2
_warmed: set[tuple[str, str]] = set()


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
    curve: Mapping[str, list[float]] = field(default_factory=dict)
    message: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

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


def failed(trial: Trial, status: Status, message: str) -> Record:
    """The record of a trial that gave no solution."""
    return Record(**_inputs(trial), status=status, message=message)


def _inputs(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "problem": trial.problem.name,
        "method": trial.contender.title,
        "hyperparameters": trial.hyperparameters,
        "limits": dict(trial.limits),
        "seed": trial.seed,
        "versions": versions(),
    }


def _execute(trial: Trial) -> Record:
    problem, method = trial.problem(trial.seed), trial.contender.method(trial.setting)
    before = problem.observe(problem.x0)
    metric = pick_metric(before, trial.metric)
    start = _settled(problem, metric, before[metric])
    _meet(trial)
    points: list[dict[str, float]] = []
    watch = _sampling(problem, trial.budget, metric, points)
    result = solve(problem, method, trial.budget, key=Key(trial.seed), trace=2, callback=watch)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "failed":
        return failed(trial, "error", f"{trial.contender.title} gave up at step {result.nit}: {result.message}")
    value = _observed(problem, result.x, metric)
    points.append({"step": result.nit, "seconds": result.seconds, "value": value, **_costs(result.counts)})
    diverged = result.status == "nonfinite" or not math.isfinite(value) or value > start
    return Record(
        **_inputs(trial),
        status="divergent" if diverged else "finished",
        metric=metric,
        value=value,
        start=start,
        steps=result.nit,
        seconds=result.seconds,
        counts={name: int(number) for name, number in result.counts.items()},
        curve={name: [float(point.get(name, 0)) for point in points] for name in points[-1]},
        message=result.message,
    )


def counted_at_first(trial: Trial) -> set[str]:
    """The names of what a few steps of a trial count, if they can be taken."""
    try:
        return set(_warm_up(trial).counts)
    except (Exception, SystemExit):  # what a method raises is the outcome of its trials, and is reported with them
        return set()


def _warm_up(trial: Trial) -> Result:
    """Take a few steps: what is imported or compiled once is not timed."""
    budget = Budget(steps=WARM_UP_STEPS)
    return solve(trial.problem(trial.seed), trial.contender.method(trial.setting), budget, key=trial.seed)


def _meet(trial: Trial) -> None:
    """Warm up the first time that this process meets a method."""
    met = (trial.problem.identity, trial.method)
    if met not in _warmed:
        _warm_up(trial)
        _warmed.add(met)


def _sampling(
    problem: Problem, budget: Budget, metric: str, points: list[dict[str, float]]
) -> Callable[[Moment], None]:
    """A callback that observes the metric evenly over the budget, whatever the budget limits."""

    def observe(moment: Moment) -> None:
        if budget.fraction(moment.step, moment.seconds, moment.counts) * CURVE_POINTS >= len(points):
            value = _observed(problem, moment.report.resolve(), metric)
            here = {"step": moment.step, "seconds": moment.seconds, "value": value}
            points.append({**here, **_costs(moment.counts)})

    return observe


def _costs(counts: Mapping[str, int]) -> dict[str, int]:
    """All calls of oracles as one number, the axis on which methods of different cost per step compare."""
    return {"oracle calls": sum(counts.get(name, 0) for name in ORACLES)}


def _observed(problem: Problem, x: Tree, metric: str) -> float:
    try:
        return _settled(problem, metric, problem.observe(x)[metric])
    except ArithmeticError:
        return math.nan


def _settled(problem: Problem, metric: str, figure: float) -> float:
    """The figure, or zero for a gap below zero by no more than a thousand roundings of the best known value."""
    best = problem.facts.get("best_value")
    if metric != "gap" or best is None:
        return figure
    rounding = 1e3 * torch.finfo(tree.leaves(problem.x0)[0].dtype).eps * abs(float(best))
    return 0.0 if -rounding <= figure < 0 else figure
