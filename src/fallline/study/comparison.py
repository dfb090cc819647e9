"""Comparison: what `compare` gives, for people to read, for machines to take over, and from a storage again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fallline.core.budget import Budget
from fallline.core.problem import Problem
from fallline.study import words
from fallline.study.curves import axes, checked_axis
from fallline.study.effort import best_after, setting_scores
from fallline.study.leaderboard import Row, leaderboard, not_told_apart, winner
from fallline.study.methods import chosen
from fallline.study.progress import watcher_for
from fallline.study.runs import runs
from fallline.study.settings import Contender
from fallline.study.sources import ProblemSpec, StudyError, problem_spec
from fallline.study.storage import Storage, open_storage
from fallline.study.table import RunTable, read_table
from fallline.study.trial import ORACLES, as_stored

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from rich.table import Table


@dataclass(frozen=True)
class Comparison:
    """What `compare` gives; printing it shows the leaderboard.

    Attributes
    ----------
    table
        Every trial, and what each side was given.
    axis
        The cost that the leaderboard shows and that curves are drawn against first: steps, seconds, oracle calls, samples,
        gradients, values, hvps, bytes, or anything else that was counted. By default samples where all count them, else oracle calls.
    """

    table: RunTable
    axis: str | None = None

    def __post_init__(self) -> None:
        if self.axis is not None:
            checked_axis(self.table, self.axis)

    @cached_property
    def leaderboard(self) -> list[Row]:
        """Rows, best median first."""
        return leaderboard(self.table)

    @property
    def leaders(self) -> list[Row]:
        """The best row and all that cannot be told apart from it; empty when every side diverged."""
        return not_told_apart(self.leaderboard)

    @property
    def winner(self) -> str | None:
        """The one method that the seeds tell apart from every other; none otherwise."""
        return winner(self.leaderboard)

    @property
    def environment(self) -> Mapping[str, str]:
        """Versions and machine."""
        return self.table.environment

    @property
    def spending(self) -> str:
        """The cost that the leaderboard shows."""
        if self.axis is not None:
            return self.axis
        counts = [row.counts for row in self.leaderboard if row.counts]
        return "samples" if counts and all(found.get("samples") for found in counts) else "oracle calls"

    def spent(self, row: Row) -> float:
        """How much of ``spending`` a run of this side took, the median over fresh seeds."""
        if self.spending == "oracle calls":
            return sum(row.counts.get(name, 0) for name in ORACLES)
        own = {"seconds": row.seconds, "steps": row.steps}
        return own.get(self.spending, row.counts.get(self.spending, 0))

    @property
    def headline(self) -> str:
        """`outcome` and `given`, two sentences."""
        return f"{self.outcome} {self.given}"

    @property
    def outcome(self) -> str:
        """Who won or that nobody did, by how much, against which spread."""
        return words.outcome(self.table, self.leaderboard)

    @property
    def given(self) -> str:
        """What each side was given."""
        return words.given(self.table)

    @property
    def limits(self) -> list[str]:
        """What a reader should know before believing the leaderboard."""
        return words.limits_of_the_answer(self.table, self.leaderboard, self._unequal)

    @property
    def _unequal(self) -> str:
        """What to know when the same budget let sides spend different amounts; empty when they spent the same."""
        spent = {row.method: self.spent(row) for row in self.leaderboard if row.reached}
        most, least = max(spent.values(), default=0), min(spent.values(), default=0)
        if self.spending == "seconds" or most <= words.SAME * least:
            return ""
        amounts = f"{max(spent, key=spent.__getitem__)} {most:,.0f}, {min(spent, key=spent.__getitem__)} {least:,.0f}"
        other = "of seconds" if "gradients" in self.table.terms.limits else "of gradients or seconds"
        remedy = "of samples makes them equal" if self.spending == "samples" else f"{other} may be fairer"
        return f"They spent different amounts of {self.spending} a run ({amounts}); a budget {remedy}."

    @property
    def errors(self) -> dict[str, tuple[str, ...]]:
        """What trials raised, by method; the last line of each distinct error."""
        return {row.method: row.errors for row in self.leaderboard if row.errors}

    def rich_table(self) -> Table:
        """The leaderboard as a rich table."""
        from fallline.study.terminal import leaderboard_table

        return leaderboard_table(self)

    def __repr__(self) -> str:
        from fallline.study.terminal import as_text

        return as_text(self)

    def to_frame(self) -> Any:
        """Every trial as a row of a pandas DataFrame; a hyperparameter called like a column is ``setting NAME``."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'fallline[frames]'") from error
        stages = [(record, "tuning") for side in self.table.sides for record in side.tuning]
        stages += [(record, "seeds") for side in self.table.sides for record in side.evaluations]
        frame = [
            {
                "method": record.method,
                "stage": stage,
                "seed": record.seed,
                "status": record.status,
                self.table.terms.metric: record.value,
                "steps": record.steps,
                "seconds": record.seconds,
                "state_bytes": record.state_bytes,
                **record.counts,
            }
            for record, stage in stages
        ]
        for row, (record, _) in zip(frame, stages, strict=True):
            row |= {f"setting {name}" if name in row else name: value for name, value in record.hyperparameters.items()}
        return pandas.DataFrame(frame)

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain data for another program; a value that is not finite is None."""
        terms = self.table.terms
        head = {"problem": terms.problem, "kind": terms.kind, "metric": terms.metric, "winner": self.winner}
        said = {"headline": self.headline, "limits_of_the_answer": self.limits}
        given = {"budget": dict(terms.limits), "tune": terms.tune, "tuning_seeds": terms.tuning_seeds, "seeds": terms.seeds,
                 "first_seed": terms.seed, "prune": terms.prune, "environment": dict(self.environment)}
        return {**head, **said, "given": given, "leaderboard": [self._row_content(row) for row in self.leaderboard]}

    def _row_content(self, row: Row) -> dict[str, Any]:
        side = self.table[row.method]
        effort = best_after(setting_scores(side, self.table)) if side.tuning else []
        return {
            "rank": row.rank,
            "method": row.method,
            "median": _finite(row.spread.median),
            "low": _finite(row.spread.low),
            "high": _finite(row.spread.high),
            "values": [_finite(value) for value in side.values],
            "p": row.p,
            "not_told_apart_from_the_best": row in self.leaders,
            "seeds": row.spread.count,
            "diverged": row.diverged,
            "failed": row.failed,
            "reached": row.reached,
            "tuning_trials": row.tuning_trials,
            "tuning_diverged": row.tuning_diverged,
            "tuning_failed": row.tuning_failed,
            "tuning_pruned": row.tuning_pruned,
            "best_after_trials": [_finite(found.median) for found in effort],
            "seconds": row.seconds,
            "state_bytes": row.state_bytes,
            "counts": dict(row.counts),
            "spent": {self.spending: self.spent(row)},
            "different_runs": row.different,
            "setting": dict(row.setting),
            "fixed": as_stored(side.entrant.fixed),
            "code": side.code,
            "errors": list(row.errors),
        }

    def plot(self, axis: str | None = None) -> Any:
        """A plotly figure of the median curves with their spread, against a cost axis: steps, seconds, gradients …"""
        from fallline.study.curves import figure

        return figure(self.table, axis or self.axis or "steps")

    def report(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML file; returns its path."""
        from fallline.study.report import write_report

        return write_report([self], Path(path))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def stored(storage: str | Path | Storage) -> list[Comparison]:
    """The comparisons that a storage holds, the latest last.

    Raises
    ------
    StudyError
        When there is none, or the storage cannot be read.
    """
    opened = open_storage(storage, create=False)
    found, broken = [], []
    for study in opened.studies():
        try:
            found.append(Comparison(read_table(study.content, opened)))
        except StudyError as error:  # records were deleted; the other studies are whole
            broken.append(error)
    if not found:
        reason = str(broken[0]) if broken else "run `fallline compare … --storage` with it"
        raise StudyError(f"storage {str(storage)!r} holds no whole comparison; {reason}")
    return found


def compare(
    problem: str | Path | Problem | Callable[..., Problem] | ProblemSpec,
    methods: str | Iterable[str | Contender | type] = "all",
    budget: Budget | None = None,
    *,
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
    progress: bool | None = None,
) -> Comparison:
    """Compare methods on a problem: the same budget and tuning effort for all, several seeds, medians and spread.

    Parameters
    ----------
    problem, budget, tune, seeds, tuning_seeds, seed, metric, prune, storage, workers, cluster
        As in `runs`.
    methods
        Names, ``file.py:Class`` or ``module:Class``, Method or torch optimizer classes, `Contender`; ``"all"`` for every
        registered method that fits, or a room (``"optim"``) for those of that room; methods that need a dense Hessian are then
        left out above 2,000 variables.
    axis
        The cost shown first, as in `Comparison`.
    progress
        True for a live table, False for silence; by default a live table in a terminal and plain lines elsewhere.

    Examples
    --------
    >>> table = fl.compare(problem, ["adamw", "lion"], budget=fl.Budget(steps=2_000), tune=8, seeds=3)
    >>> table.winner, table.report("report.html")
    """
    spec = problem_spec(problem)
    table = runs(
        spec,
        chosen(methods, spec(seed)),
        budget=budget,
        tune=tune,
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        seed=seed,
        metric=metric,
        prune=prune,
        storage=storage,
        workers=workers,
        cluster=cluster,
        axis=axis,
        watcher=watcher_for(progress),
    )
    return Comparison(table, axis if axis in axes(table) else None)
