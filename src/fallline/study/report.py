"""The report: one HTML file that needs no other, no network, and hardly any script."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fallline.core import registry
from fallline.core.space import Choice, Integers, LogUniform, Range
from fallline.study.charts import Chart, Points, colour, interval_chart, line_chart, point_chart, spanning
from fallline.study.curves import bands
from fallline.study.numbers import interval, plain, setting_text, short
from fallline.study.runs import Side
from fallline.study.sources import StudyError

if TYPE_CHECKING:
    from fallline.study.comparison import Comparison, Row

PARAMETERS = ("lr", "step_size")


def ranked(comparison: Comparison) -> list[Side]:
    """The sides in the order of the leaderboard, which is the order of the colours."""
    return [comparison.table[row.method] for row in comparison.leaderboard]


def curve_charts(comparison: Comparison) -> list[dict[str, Any]]:
    """A chart for every cost axis: steps, seconds, and oracle calls where methods differ in calls per step."""
    axes = {"step": "steps", "seconds": "seconds"}
    if len({_calls_per_step(side) for side in comparison.table.sides}) > 1:
        axes["oracle calls"] = "oracle calls"
    order = {side.contender.title: rank for rank, side in enumerate(ranked(comparison))}
    charts = []
    for axis, name in axes.items():
        found = sorted(((order[band.title], band) for band in bands(comparison.table, axis)), key=lambda entry: entry[0])
        if found:
            charts.append({"title": f"Against {name}", "chart": line_chart(found, name, comparison.table.metric)})
    return charts


def _calls_per_step(side: Side) -> float:
    ends = [r.curve["oracle calls"][-1] / r.steps for r in side.evaluations if r.curve and r.steps]
    return round(max(ends, default=1.0), 1)


def sensitivity_chart(comparison: Comparison) -> tuple[str, Chart] | None:
    """The metric of every tuning trial over the learning rate, for the sides that tune one."""
    tuned = [side for side in ranked(comparison) if side.tuning]
    name = next((n for n in PARAMETERS if any(n in side.contender.ranges for side in tuned)), None)
    if name is None:
        return None
    sides = []
    for rank, side in enumerate(ranked(comparison)):
        trials = [r for r in side.tuning if _is_number(r.hyperparameters.get(name))]
        chosen = next((i for i, r in enumerate(trials) if _same(r.hyperparameters, side)), -1)
        if trials:
            x = [float(r.hyperparameters[name]) for r in trials]
            sides.append(Points(side.contender.title, rank, x, [r.score for r in trials], chosen))
    return (name, point_chart(sides, name, comparison.table.metric)) if sides else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(hyperparameters: Any, side: Side) -> bool:
    return all(hyperparameters.get(name) == value for name, value in side.setting.items())


def code(side: Side, comparison: Comparison) -> str:
    """The best setting as Python."""
    made: Any = side.contender.factory or registry.lookup(side.contender.name)
    values = {**side.contender.fixed, **side.setting}
    given = "".join(f", {name}={plain(value)}" for name, value in values.items())
    name = _public(made)
    if isinstance(made, type) and issubclass(made, torch.optim.Optimizer):
        return f"{name}(model.parameters(){given})"
    limits = ", ".join(f"{limit}={value:g}" for limit, value in comparison.table.limits.items())
    return f"fl.solve(problem, {name}({given[2:]}), fl.Budget({limits}))"


def _settings(comparison: Comparison, sides: list[Side]) -> list[dict[str, str]]:
    """The settings worth copying: those of the sides that did not diverge."""
    rows = comparison.leaderboard
    return [
        {"title": side.contender.title, "kind": colour(rank), "code": code(side, comparison)}
        for rank, (side, row) in enumerate(zip(sides, rows, strict=True))
        if math.isfinite(row.spread.median)
    ]


def _public(made: Any) -> str:
    """How a user writes the name: ``fl.optim.Lion``, ``torch.optim.SGD``."""
    module, name = made.__module__, getattr(made, "__qualname__", repr(made))
    parts = module.split(".")
    if parts[0] == "fallline" and len(parts) > 1:
        return f"fl.{parts[1]}.{name}"
    return f"torch.optim.{name}" if module.startswith("torch.optim") else name


def range_text(range_: Range) -> str:
    """A range in words."""
    if isinstance(range_, Choice):
        return "one of " + ", ".join(plain(option) for option in range_.options)
    low, high = plain(range_.low), plain(range_.high)
    log = isinstance(range_, LogUniform) or (isinstance(range_, Integers) and range_.log)
    return f"{low} to {high}" + (", logarithmic" if log else "")


def _leaderboard(comparison: Comparison) -> list[dict[str, Any]]:
    rows = comparison.leaderboard
    ends = [v for row in rows for v in (row.spread.low, row.spread.median, row.spread.high)]
    axis = spanning(ends, 8.0, 152.0, margin=0.02)
    leading = {row.method for row in comparison.leaders}
    return [_leaderboard_row(row, i, axis, row.method in leading) for i, row in enumerate(rows)]


def _leaderboard_row(row: Row, index: int, axis: Any, leads: bool) -> dict[str, Any]:
    calls = ", ".join(f"{count:,.0f} {name}" for name, count in row.counts.items())
    return {
        "row": row,
        "leads": leads,
        "kind": colour(index),
        "median": short(row.spread.median),
        "interval": interval(row.spread),
        "picture": interval_chart(row.spread.low, row.spread.median, row.spread.high, axis, colour(index)),
        "divergent": f"{row.diverged} of {row.spread.count}",
        "seconds": short(row.seconds),
        "calls": calls or "—",
        "setting": setting_text(dict(row.setting)),
    }


def _given(side: Side) -> dict[str, Any]:
    space = "; ".join(f"{name}: {range_text(range_)}" for name, range_ in side.contender.ranges.items())
    bad = sum(record.status != "finished" for record in side.tuning)
    fixed = setting_text(dict(side.contender.fixed)) if side.contender.fixed else ""
    return {
        "title": side.contender.title,
        "space": space or "nothing to tune",
        "fixed": fixed,
        "trials": len(side.tuning),
        "bad": bad,
        "seeds": len(side.evaluations),
    }


def render(comparison: Comparison) -> str:
    """The page as text."""
    import jinja2

    loader = jinja2.PackageLoader("fallline.study", "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    curves, sensitivity = curve_charts(comparison), sensitivity_chart(comparison)
    charts = [entry["chart"] for entry in curves] + ([sensitivity[1]] if sensitivity else [])
    sides = ranked(comparison)
    return pages.get_template("report.html").render(
        problem=comparison.table.problem.name,
        metric=comparison.table.metric,
        verdict=comparison.outcome,
        given=comparison.terms,
        unequal=comparison.unequal,
        rows=_leaderboard(comparison),
        kind=comparison.leaderboard[0].spread.kind,
        table=comparison.table,
        curves=curves,
        sensitivity=sensitivity,
        data=_script_data([chart.series for chart in charts]),
        settings=_settings(comparison, sides),
        given_rows=[_given(side) for side in sides],
        limits=", ".join(f"{limit:g} {name}" for name, limit in comparison.table.limits.items()),
        errors=comparison.errors,
        environment=comparison.environment,
    )


def _script_data(content: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def write_report(comparison: Comparison, path: Path) -> Path:
    """Write the page; an old one stays whole until the new one is complete."""
    text = render(comparison)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".html")
    except OSError as error:
        raise StudyError(f"report {str(path)!r} cannot be written: {error.strerror}; choose another folder") from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
    return path


