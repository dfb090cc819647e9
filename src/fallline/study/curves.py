"""Curves of a comparison: the median over seeds with its spread, on a common axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fallline.study.runs import RunTable, Side
from fallline.study.sources import StudyError
from fallline.study.spread import spread

NOT_COSTS = ("point", "value")
FIRST = ("steps", "seconds", "oracle calls", "samples")
POINTS = 60


@dataclass(frozen=True)
class Band:
    """One side's median curve between its lower and upper ends; an upper end may be infinite."""

    title: str
    x: list[float]
    low: list[float]
    median: list[float]
    high: list[float]


def band(side: Side, axis: str) -> Band:
    """Median and spread of the seeds' curves, up to where the shortest that finished ends; cut where the median is not finite.

    A run that diverged or failed is infinite from the end of its curve on, and altogether if it has none.
    """
    import numpy as np

    finished = [r.curve for r in side.evaluations if r.status == "finished" and axis in r.curve]
    lost = [r.curve for r in side.evaluations if r.status != "finished"]
    empty = Band(side.title, [], [], [], [])
    ends = [max(curve[axis]) for curve in finished]
    end = min(ends) if ends else max((max(curve[axis]) for curve in lost if axis in curve), default=0.0)
    if end <= 0:
        return empty
    grid = np.linspace(0.0, end, POINTS + 1)
    lines = [np.interp(grid, curve[axis], curve["value"]) for curve in finished] + [_lost(grid, curve, axis) for curve in lost]
    for x, values in zip(grid.tolist(), np.stack(lines, axis=1).tolist(), strict=True):
        here = spread(values)
        if not math.isfinite(here.median):
            break
        empty.x.append(x)
        empty.low.append(here.low)
        empty.median.append(here.median)
        empty.high.append(here.high)
    return empty


def _lost(grid: Any, curve: Mapping[str, Sequence[float]], axis: str) -> Any:
    """A curve that ended before its time, infinite from there on."""
    import numpy as np

    if axis not in curve:
        return np.full(len(grid), np.inf)
    return np.where(grid < max(curve[axis]), np.interp(grid, curve[axis], curve["value"]), np.inf)


def axes(table: RunTable) -> list[str]:
    """What curves can be drawn against: steps, seconds, oracle calls, samples, and everything else that a run counted."""
    found = {name for side in table.sides for r in side.evaluations for name in r.curve if any(r.curve[name])} - {*NOT_COSTS}
    return [name for name in FIRST if name in found] + sorted(found - {*FIRST})


def checked_axis(table: RunTable, axis: str) -> str:
    """The axis, if these runs counted it."""
    if axis not in axes(table):
        raise StudyError(f"axis must be something these runs counted, got {axis!r}; they counted {', '.join(axes(table))}")
    return axis


def bands(table: RunTable, axis: str) -> list[Band]:
    """The bands of all sides that have one, in the order of the table."""
    return [found for side in table.sides if (found := band(side, axis)).x]


def logarithmic(values: list[float]) -> bool:
    """Whether an axis for these values reads better on a logarithmic scale; zeros are then drawn at its lower end."""
    positive = [v for v in values if v > 0]
    return bool(positive) and min(values) >= 0 and max(values) / min(positive) > 8


def figure(table: RunTable, axis: str) -> Any:
    """A plotly figure of the bands."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    drawn = go.Figure()
    found = bands(table, checked_axis(table, axis))
    top = max((v for entry in found for v in (*entry.median, *entry.high) if math.isfinite(v)), default=0.0)
    for index, entry in enumerate(found):
        colour = qualitative.Safe[index % len(qualitative.Safe)]
        filled = colour.replace("rgb", "rgba").replace(")", ", 0.2)")
        outline = {"x": entry.x + entry.x[::-1], "y": [min(v, top) for v in entry.high] + entry.low[::-1]}
        drawn.add_scatter(**outline, fill="toself", fillcolor=filled, line={"width": 0}, hoverinfo="skip", showlegend=False)
        drawn.add_scatter(x=entry.x, y=entry.median, name=entry.title, line={"color": colour}, mode="lines")
    scale = "log" if logarithmic([v for entry in found for v in entry.median]) else "linear"
    drawn.update_layout(template="simple_white", xaxis_title=axis, yaxis_title=table.terms.metric, yaxis_type=scale)
    return drawn
