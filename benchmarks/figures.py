"""What benchmarks find, and its one shape as JSON.

``results/<name>.json`` is a `Benchmark`:

    name, description   the file, and its docstring: what is measured and how
    machine             processor, cores, memory, system, torch, python, fallline, date, and the share of the
                        cores' time that other processes took during the run
    libraries           versions of the peers
    settings            the options of the command
    tables              title, reference, rows and goals of each

A row has a name; ``ratio``, the median and quartiles of ``ratios``, one a repeat, in order; ``milliseconds``; ``peak_bytes``;
further ``figures`` by name; and ``missing``, the reason why there are none. What was not measured is null.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Quartiles:
    """The middle half of some values, and their median."""

    lower: float
    median: float
    upper: float


def quartiles(values: tuple[float, ...]) -> Quartiles:
    """Quartiles of one or more values, interpolated between neighbours."""
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else Quartiles(*values * 3)


@dataclass(frozen=True)
class Row:
    """One contestant."""

    name: str
    ratios: tuple[float, ...] = ()
    milliseconds: float | None = None
    peak_bytes: int | None = None
    figures: Mapping[str, float | None] = field(default_factory=dict)
    missing: str | None = None

    @property
    def ratio(self) -> Quartiles | None:
        """Of the contestant's time to the reference's, over the repeats."""
        return quartiles(self.ratios) if self.ratios else None

    def figure(self, name: str) -> float | None:
        """One figure by name; ``ratio`` is its median."""
        if name == "ratio":
            return self.ratio.median if self.ratio else None
        own = {"milliseconds": self.milliseconds, "peak_bytes": self.peak_bytes}
        return own[name] if name in own else self.figures.get(name)


@dataclass(frozen=True)
class Goal:
    """A figure of a row that shall be at most a number, or at most that of another row, and why."""

    row: str
    figure: str
    at_most: float | str
    why: str


@dataclass(frozen=True)
class Table:
    """Contestants that were measured alike."""

    title: str
    reference: str | None
    rows: tuple[Row, ...]
    goals: tuple[Goal, ...] = ()

    def figure(self, row: str, name: str) -> float | None:
        """A figure of the row of that name; None where it was not measured."""
        return next((found.figure(name) for found in self.rows if found.name == row), None)

    def judged(self, goal: Goal) -> tuple[float | None, float | None]:
        """What was measured, and what it is held against."""
        limit = self.figure(goal.at_most, goal.figure) if isinstance(goal.at_most, str) else goal.at_most
        return self.figure(goal.row, goal.figure), limit


@dataclass(frozen=True)
class Benchmark:
    """All tables of one file, and where they come from."""

    name: str
    description: str
    machine: Mapping[str, Any]
    libraries: Mapping[str, str]
    settings: Mapping[str, Any]
    tables: tuple[Table, ...]

    def write(self, folder: Path = RESULTS) -> Path:
        """Write ``<name>.json``."""
        content = asdict(self)
        for table, plain in zip(self.tables, content["tables"], strict=True):
            for row, entry in zip(table.rows, plain["rows"], strict=True):
                entry["ratio"] = asdict(row.ratio) if row.ratio else None
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def read(path: Path) -> Benchmark:
    """What `Benchmark.write` wrote; medians and quartiles are taken anew from the ratios."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Benchmark(**content | {"tables": tuple(_table(**plain) for plain in content["tables"])})


def _table(rows: list[dict[str, Any]], goals: list[dict[str, Any]], **rest: Any) -> Table:
    return Table(rows=tuple(_row(**plain) for plain in rows), goals=tuple(Goal(**plain) for plain in goals), **rest)


def _row(ratio: object, ratios: list[float], **rest: Any) -> Row:
    return Row(ratios=tuple(ratios), **rest)
