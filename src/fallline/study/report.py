"""The report: one HTML file that needs no other and no network; several comparisons stand side by side in it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fallline.study.charts import Axis, Chart, Points, colour, interval_chart, line_chart, point_chart, spanning
from fallline.study.curves import Band, axes, bands
from fallline.study.effort import best_after, setting_scores
from fallline.study.numbers import amount, budget_text, interval, p_text, range_text, setting_text, short
from fallline.study.sources import StudyError
from fallline.study.table import Side

if TYPE_CHECKING:
    from fallline.study.comparison import Comparison
    from fallline.study.leaderboard import Row

PARAMETERS = ("lr", "step_size")
FEWEST_SETTINGS = 4
"""How many settings a side must have tried for its effort to be drawn."""


def ranked(comparison: Comparison) -> list[Side]:
    """The sides in the order of the leaderboard, which is the order of the colours."""
    return [comparison.table[row.method] for row in comparison.leaderboard]


def curve_charts(comparison: Comparison) -> list[dict[str, Any]]:
    """A chart for every cost axis, the comparison's own first."""
    order = {row.method: row.rank - 1 for row in comparison.leaderboard}
    own = [comparison.axis] if comparison.axis else []
    charts = []
    for axis in dict.fromkeys(own + axes(comparison.table)):
        found = sorted(((order[band.title], band) for band in bands(comparison.table, axis)), key=lambda entry: entry[0])
        if found:
            charts.append({"axis": axis, "chart": line_chart(found, axis, comparison.table.terms.metric, whole=axis != "seconds")})
    return charts


def sensitivity_chart(comparison: Comparison) -> tuple[str, Chart] | None:
    """The metric of every tuning trial over the learning rate, for the sides that tune one."""
    tuned = [side for side in ranked(comparison) if side.tuning]
    name = next((n for n in PARAMETERS if any(n in side.entrant.space for side in tuned)), None)
    if name is None:
        return None
    sides = []
    for rank, side in enumerate(ranked(comparison)):
        trials = [r for r in side.tuning if _is_number(r.hyperparameters.get(name))]
        best = next((i for i, r in enumerate(trials) if _same(r.hyperparameters, side)), -1)
        if trials:
            x = [float(r.hyperparameters[name]) for r in trials]
            sides.append(Points(side.title, rank, x, [r.score for r in trials], best))
    return (name, point_chart(sides, name, comparison.table.terms.metric)) if sides else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(hyperparameters: Any, side: Side) -> bool:
    return all(hyperparameters.get(name) == value for name, value in side.setting.items())


def effort_chart(comparison: Comparison) -> Chart | None:
    """The best score after k settings, median and quartiles over the orders in which they could have come."""
    found = []
    for rank, side in enumerate(ranked(comparison)):
        scores = setting_scores(side, comparison.table)
        kept = [(k, s) for k, s in enumerate(best_after(scores), 1) if math.isfinite(s.median)]
        if kept and len(scores) >= FEWEST_SETTINGS:
            x, low, median, high = zip(*((float(k), s.low, s.median, s.high) for k, s in kept), strict=True)
            found.append((rank, Band(side.title, list(x), list(low), list(median), list(high))))
    return line_chart(found, "settings tried", comparison.table.terms.metric, first=1.0, whole=True) if found else None


def memory_chart(comparison: Comparison) -> Chart | None:
    """The metric of every fresh seed over the bytes of state that the method keeps beside the variables."""
    sides = [
        Points(side.title, rank, [float(r.state_bytes) for r in side.evaluations], side.values, -1)
        for rank, side in enumerate(ranked(comparison))
    ]
    if not any(v for side in sides for v in side.x):
        return None
    return point_chart(sides, "bytes of state", comparison.table.terms.metric, joined=False)


def _settings(comparison: Comparison) -> list[dict[str, Any]]:
    """The settings worth copying: those of the sides that did not diverge."""
    return [
        {"side": row.rank - 1, "title": row.method, "kind": colour(row.rank - 1),
         "code": comparison.table[row.method].code}
        for row in comparison.leaderboard if row.finished
    ]


def _leaderboard(comparison: Comparison) -> list[dict[str, Any]]:
    rows = comparison.leaderboard
    ends = [v for row in rows for v in (row.spread.low, row.spread.median, row.spread.high)]
    axis = spanning(ends, 8.0, 152.0, margin=0.02)
    return [_leaderboard_row(row, axis, comparison) for row in rows]


def _leaderboard_row(row: Row, axis: Axis, comparison: Comparison) -> dict[str, Any]:
    """Texts of a row's cells, each with the number that its column is sorted by."""
    kind, spent = colour(row.rank - 1), comparison.spent(row)
    cells = [
        ("median", row.median, row.spread.median),
        ("spread", interval(row.spread), row.spread.high - row.spread.low),
        ("p", p_text(row.p), -1.0 if row.p is None else row.p),
        ("spent", amount(spent), spent),
        ("state", _bytes(row.state_bytes), row.state_bytes),
        ("lost", row.lost, int(row.lost.split()[0])),
        ("seconds", short(row.seconds), row.seconds),
    ]
    return {
        "row": row,
        "side": row.rank - 1,
        "leads": row in comparison.leaders,
        "kind": kind,
        "picture": interval_chart(row.spread.low, row.spread.median, row.spread.high, axis, kind),
        "cells": [(name, text, key if math.isfinite(key) else 1e300) for name, text, key in cells],
    }


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _given(side: Side, row: Row) -> dict[str, Any]:
    space = "; ".join(f"{name}: {range_text(range_)}" for name, range_ in side.entrant.space.items())
    statuses = [record.status for record in side.tuning]
    return {
        "title": side.title,
        "space": space or "nothing to tune",
        "fixed": setting_text(dict(side.entrant.fixed)) if side.entrant.fixed else "",
        "calls": ", ".join(f"{count:,.0f} {name}" for name, count in row.counts.items()) or "nothing counted",
        "trials": len(statuses),
        "bad": statuses.count("divergent") + statuses.count("error"),
        "pruned": statuses.count("pruned"),
        "seeds": len(side.evaluations),
    }


def _study(comparison: Comparison, name: str) -> dict[str, Any]:
    """Everything that the page says of one comparison, which it calls by this name."""
    terms = comparison.table.terms
    curves, sensitivity = curve_charts(comparison), sensitivity_chart(comparison)
    return {
        "comparison": comparison,
        "name": name,
        "terms": terms,
        "rows": _leaderboard(comparison),
        "kind": comparison.leaderboard[0].spread.kind,
        "curves": curves,
        "parameter": sensitivity[0] if sensitivity else "",
        "sensitivity": sensitivity[1] if sensitivity else None,
        "effort": effort_chart(comparison),
        "memory": memory_chart(comparison),
        "settings": _settings(comparison),
        "given": [_given(comparison.table[row.method], row) for row in comparison.leaderboard],
        "limits": budget_text(terms.limits),
    }


def _names(comparisons: Sequence[Comparison]) -> list[str]:
    """The problems' names, those that several comparisons share with the comparison's number."""
    problems = [entry.table.terms.problem for entry in comparisons]
    return [name if problems.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(problems, 1)]


def _overview(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Methods by problems: the median, and whether it is the best there or cannot be told apart from it."""
    methods = dict.fromkeys(row.method for entry in comparisons for row in entry.leaderboard)
    found = [{row.method: row for row in entry.leaderboard} for entry in comparisons]
    return [
        {"method": method, "cells": [
            {"text": rows[method].median if method in rows else "", "leads": rows.get(method) in entry.leaders}
            for entry, rows in zip(comparisons, found, strict=True)]}
        for method in methods
    ]


def render(comparisons: Sequence[Comparison]) -> str:
    """The page as text."""
    import jinja2

    loader = jinja2.PackageLoader("fallline.study", "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.do"])
    pages.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    overview = _overview(comparisons) if len(comparisons) > 1 else []
    studies = [_study(entry, name) for entry, name in zip(comparisons, _names(comparisons), strict=True)]
    return pages.get_template("report.html").render(studies=studies, overview=overview)


def write_report(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Write the page; an old one stays whole until the new one is complete."""
    text = render(comparisons)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".html")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise StudyError(f"report {str(path)!r} cannot be written: {error.strerror}; choose another folder") from error
    return path
