"""Comparison: who came out ahead, by how much, against which spread; and whether that may be said at all.

Sides are ranked by the median of their metric over fresh seeds. A winner is named only when its spread (range below five seeds,
quartiles from five on) lies apart from every other side's; one seed has no spread and names none. Runs that are the same at every
seed, of a method and a problem without randomness, are one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fallline.core import registry
from fallline.core.budget import Budget
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.problem import Problem
from fallline.study.environment import environment
from fallline.study.numbers import quantity, short
from fallline.study.progress import watcher_for
from fallline.study.runs import RunTable, Side, probe, runs
from fallline.study.settings import Contender
from fallline.study.sources import ProblemSpec, StudyError, problem_spec
from fallline.study.spread import Spread, spread
from fallline.study.storage import Storage
from fallline.study.trial import ORACLES

if TYPE_CHECKING:
    from rich.table import Table

SAME = 1.05
"""Sides whose spending differs by less than this factor have spent the same: the last step of a run may overshoot."""


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard."""

    rank: int
    method: str
    spread: Spread
    setting: Mapping[str, Any]
    diverged: int
    tuning_diverged: int
    tuning_trials: int
    errors: tuple[str, ...]
    seconds: float
    counts: Mapping[str, float]
    different: int
    """How many of the runs at fresh seeds differ from each other."""


def _row(rank: int, side: Side) -> Row:
    records = side.evaluations
    names = {name for record in records for name in record.counts}
    everything = (*side.tuning, *records)
    return Row(
        rank=rank,
        method=side.contender.title,
        spread=spread(side.values),
        setting=side.setting,
        diverged=sum(record.status == "divergent" for record in records),
        tuning_diverged=sum(record.status == "divergent" for record in side.tuning),
        tuning_trials=len(side.tuning),
        errors=tuple(dict.fromkeys(r.message.strip().splitlines()[-1] for r in everything if r.status == "error")),
        seconds=spread([record.seconds for record in records]).median,
        counts={name: spread([record.counts.get(name, 0) for record in records]).median for name in sorted(names)},
        different=len({(r.status, r.value, r.start, *r.curve.get("value", ())) for r in records}),
    )


@dataclass(frozen=True)
class Comparison:
    """What `compare` gives; printing it shows the leaderboard.

    Attributes
    ----------
    table
        Every trial.
    leaderboard
        Rows, best first.
    environment
        Versions and machine.
    """

    table: RunTable
    environment: Mapping[str, str] = field(default_factory=environment)

    @property
    def leaderboard(self) -> list[Row]:
        """Rows, best median first; equal medians in the order in which the methods were named."""
        ordered = sorted(self.table.sides, key=lambda side: spread(side.values).median)
        return [_row(rank, side) for rank, side in enumerate(ordered, 1)]

    @property
    def leaders(self) -> list[Row]:
        """The best row and all whose spread overlaps its; empty when every side diverged."""
        rows = self.leaderboard
        if not math.isfinite(rows[0].spread.median):
            return []
        return [row for row in rows if row is rows[0] or row.spread.overlaps(rows[0].spread)]

    @property
    def winner(self) -> str | None:
        """The one method whose spread lies apart from every other's; none otherwise."""
        leaders = self.leaders
        alone = len(leaders) == 1 and len(self.leaderboard) > 1 and self.table.seeds > 1 and not self.repeated
        return leaders[0].method if alone else None

    @property
    def repeated(self) -> list[str]:
        """The methods that finished and whose runs at all seeds are one and the same run."""
        return [row.method for row in self.leaderboard if row.different == 1 and math.isfinite(row.spread.median)]

    @property
    def spending(self) -> str:
        """What the sides' spending is shown in: samples where all count them, else oracle calls."""
        counts = [row.counts for row in self.leaderboard if row.counts]
        return "samples" if counts and all(found.get("samples") for found in counts) else "oracle calls"

    def spent(self, row: Row) -> float:
        """How much of ``spending`` a run of this side took, the median over fresh seeds."""
        return row.counts.get("samples", 0) if self.spending == "samples" else sum(row.counts.get(name, 0) for name in ORACLES)

    @property
    def headline(self) -> str:
        """`outcome`, `terms` and `unequal`."""
        return " ".join(filter(None, (self.outcome, self.terms, self.unequal)))

    @property
    def outcome(self) -> str:
        """Who won or that nobody did, by how much, against which spread."""
        rows, leaders, metric = self.leaderboard, self.leaders, self.table.metric
        if not leaders:
            return "Every method diverged or failed, so there is nothing to rank."
        best = rows[0]
        if len(rows) == 1:
            return f"{best.method} reached a {metric} of {quantity(best.spread)}; nothing was compared with it."
        if self.table.seeds == 1:
            lowest = f"{best.method} has the lowest {metric}, {short(best.spread.median)}"
            return f"{lowest}, at the one seed run: no winner can be named."
        if len(leaders) > 1:
            names = ", ".join(row.method for row in leaders[:-1]) + f" and {leaders[-1].method}"
            figures = ", ".join(f"{row.method} {quantity(row.spread)}" for row in leaders[:4])
            return f"No clear winner between {names}: their spreads overlap ({metric}: {figures})."
        second = rows[1]
        if self.repeated:
            lowest = f"{best.method} has the lowest {metric}, {short(best.spread.median)}"
            return f"{lowest}; every seed gave {' and '.join(self.repeated)} the same run, which is one seed: no winner can be named."
        if not math.isfinite(second.spread.median):
            return f"{best.method} alone finished: {metric} {quantity(best.spread)}; every other method diverged or failed."
        return (
            f"{best.method} wins: {metric} {quantity(best.spread)}, {_margin(best.spread.median, second.spread.median)} "
            f"{second.method} at {quantity(second.spread)}, and their spreads do not overlap."
        )

    @property
    def terms(self) -> str:
        """What each side was given."""
        table = self.table
        limits = ", ".join(f"{limit:g} {name}" for name, limit in table.limits.items())
        tuned = any(side.tuning for side in table.sides)
        effort = f"tuned with {table.tune} settings" if tuned else "run at its own settings"
        return f"Each method was {effort} and then run at {table.seeds} fresh seed{'s' * (table.seeds > 1)} of {limits} each."

    @property
    def unequal(self) -> str:
        """What to know when the same budget let sides spend different amounts; empty when they spent the same."""
        spent = {row.method: self.spent(row) for row in self.leaderboard if math.isfinite(row.spread.median)}
        most, least = max(spent.values(), default=0), min(spent.values(), default=0)
        if most <= SAME * least:
            return ""
        given = f"{max(spent, key=spent.__getitem__)} {most:,.0f}, {min(spent, key=spent.__getitem__)} {least:,.0f}"
        remedy = "of samples makes them equal" if self.spending == "samples" else "of gradients or seconds may be fairer"
        return f"They spent different amounts of {self.spending} a run ({given}); a budget {remedy}."

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
        """Every trial as a row of a pandas DataFrame."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        stages = [(record, "tuning") for side in self.table.sides for record in side.tuning]
        stages += [(record, "seeds") for side in self.table.sides for record in side.evaluations]
        return pandas.DataFrame(
            {
                "method": record.method,
                "stage": stage,
                "seed": record.seed,
                "status": record.status,
                self.table.metric: record.value,
                "steps": record.steps,
                "seconds": record.seconds,
                **record.counts,
                **record.hyperparameters,
            }
            for record, stage in stages
        )

    def plot(self, axis: str = "step") -> Any:
        """A plotly figure of the median curves with their spread, against ``"step"``, ``"seconds"`` or ``"oracle calls"``."""
        from fallline.study.curves import figure

        return figure(self.table, axis)

    def report(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML file; returns its path."""
        from fallline.study.report import write_report

        return write_report(self, Path(path))


def _margin(best: float, second: float) -> str:
    if 0 < best < second:
        return f"{short(second / best)} times below" if second > 2 * best else f"{100 * (1 - best / second):.2g}% below"
    return f"{short(second - best)} below"


def fitting(problem: Problem) -> list[str]:
    """The registered methods that can solve this problem."""
    found = []
    for name in registry.names():
        side = Contender(name)
        try:
            side.method(probe(side, 0)).check(problem)
        except (MissingOracle, WrongProblem, TypeError):  # TypeError: it has hyperparameters without defaults
            continue
        found.append(name)
    if not found:
        raise StudyError(f"no registered method can solve problem {problem.name!r}; `fallline papers` lists them by room")
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
    storage: str | Path | Storage | None = None,
    workers: int = 1,
    progress: bool | None = None,
) -> Comparison:
    """Compare methods on a problem: the same budget and tuning effort for all, several seeds, medians and spread.

    Parameters
    ----------
    problem, budget, tune, seeds, tuning_seeds, seed, metric, storage, workers
        As in `runs`.
    methods
        Names, Method or torch optimizer classes, `Contender`; or ``"all"``, every registered method that fits.
    progress
        True for a live table, False for silence; by default a live table in a terminal and plain lines elsewhere.

    Examples
    --------
    >>> table = fl.compare(problem, ["adamw", "lion"], budget=fl.Budget(steps=2_000), tune=8, seeds=3)
    >>> table.winner, table.report("report.html")
    """
    spec = problem_spec(problem)
    if methods == "all":
        methods = fitting(spec(seed))
    elif isinstance(methods, str):
        methods = [methods]
    table = runs(
        spec,
        methods,
        budget=budget,
        tune=tune,
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        seed=seed,
        metric=metric,
        storage=storage,
        workers=workers,
        watcher=watcher_for(progress),
    )
    return Comparison(table)
