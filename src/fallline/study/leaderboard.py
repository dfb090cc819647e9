"""The leaderboard: sides by the median of their metric over fresh seeds, each held against the best by a paired test.

Sides are told apart where the test's p is at most 0.05. A winner is a side that is told apart from every other over three
seeds or more; runs that are the same at every seed, of a method and a problem without randomness, are one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fallline.study.numbers import short
from fallline.study.significance import FEWEST, LEVEL, paired_p
from fallline.study.spread import Spread, spread
from fallline.study.table import RunTable, Side


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the leaderboard.

    ``p`` is that of the paired test against the best side: None for the best itself, for a side that finished at no seed, and
    where both have one run at all seeds.
    """

    rank: int
    method: str
    spread: Spread
    p: float | None
    setting: Mapping[str, Any]
    diverged: int
    failed: int
    tuning_trials: int
    tuning_diverged: int
    tuning_failed: int
    tuning_pruned: int
    errors: tuple[str, ...]
    seconds: float
    steps: float
    counts: Mapping[str, float]
    state_bytes: int
    reached: int
    """At how many fresh seeds it finished."""
    different: int
    """How many of the runs at fresh seeds differ from each other."""

    @property
    def finished(self) -> bool:
        """Whether the median run came to something finite."""
        return math.isfinite(self.spread.median)

    @property
    def lost(self) -> str:
        """How many of all its trials diverged or failed, as text."""
        lost = self.diverged + self.failed + self.tuning_diverged + self.tuning_failed
        return f"{lost} of {self.spread.count + self.tuning_trials}"

    @property
    def median(self) -> str:
        """The median as text, or why there is none."""
        return "failed" if self.failed and not self.finished else short(self.spread.median)

    @property
    def repeated(self) -> bool:
        """Whether it finished and its runs at all seeds are one and the same run."""
        return self.different == 1 and self.finished


def leaderboard(table: RunTable) -> list[Row]:
    """Rows, best median first; equal medians in the order in which the methods were named."""
    ordered = sorted(table.sides, key=lambda side: (spread(side.values).median, min(side.values)))
    return [_row(rank, side, ordered[0]) for rank, side in enumerate(ordered, 1)]


def _row(rank: int, side: Side, best: Side) -> Row:
    records = side.evaluations
    names = {name for record in records for name in record.counts}
    everything = (*side.tuning, *records)
    statuses = [record.status for record in side.tuning]
    different = _different(side)
    reached = sum(math.isfinite(value) for value in side.values)
    untested = side is best or not reached or (different == 1 and _different(best) == 1)
    ran = [record for record in records if record.status != "error"] or records
    return Row(
        rank=rank,
        method=side.title,
        spread=spread(side.values),
        p=None if untested else paired_p(best.values, side.values),
        setting=side.setting,
        diverged=sum(record.status == "divergent" for record in records),
        failed=sum(record.status == "error" for record in records),
        tuning_trials=len(statuses),
        tuning_diverged=statuses.count("divergent"),
        tuning_failed=statuses.count("error"),
        tuning_pruned=statuses.count("pruned"),
        errors=tuple(dict.fromkeys(_last_line(r.message) for r in everything if r.status == "error")),
        seconds=spread([record.seconds for record in ran]).median,
        steps=spread([record.steps for record in ran]).median,
        counts={name: spread([record.counts.get(name, 0) for record in ran]).median for name in sorted(names)},
        state_bytes=max(record.state_bytes for record in records),
        reached=reached,
        different=different,
    )


def _last_line(message: str) -> str:
    return (message.strip().splitlines() or ["no message"])[-1]


def _different(side: Side) -> int:
    return len({(r.status, r.value, r.start, *r.curve.get("value", ())) for r in side.evaluations})


def not_told_apart(rows: list[Row]) -> list[Row]:
    """The best row and all that the test does not tell apart from it; empty when no side finished at any seed."""
    if not rows[0].reached:
        return []
    best = rows[0].spread.median
    return [row for row in rows if row.reached and (row.spread.median == best or (row.p is not None and row.p > LEVEL))]


def winner(rows: list[Row]) -> str | None:
    """The side that is told apart from every other; none otherwise, and among one.

    One that finished at every seed is ahead of one that finished at none, without a test.
    """
    best, others = rows[0], rows[1:]
    whole = best.reached == best.spread.count
    ahead = all((whole and not row.reached) or (row.p is not None and row.p <= LEVEL) for row in others)
    return best.method if best.finished and others and ahead and best.spread.count >= FEWEST else None
