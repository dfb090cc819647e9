"""Curves of a comparison: the median over seeds with its spread, on a common axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fallline.study.runs import RunTable, Side
from fallline.study.sources import StudyError
from fallline.study.spread import spread

AXES = ("step", "seconds", "oracle calls")
POINTS = 60


@dataclass(frozen=True)
class Band:
    """One side's median curve between its lower and upper ends."""

    title: str
    x: list[float]
    low: list[float]
    median: list[float]
    high: list[float]


def band(side: Side, axis: str) -> Band:
    """Median and spread of the seeds' curves, up to where the shortest ends; cut where the median is not finite."""
    import numpy as np

    curves = [record.curve for record in side.evaluations if record.curve]
    empty = Band(side.contender.title, [], [], [], [])
    end = min((max(curve[axis]) for curve in curves), default=0.0)
    if end <= 0:
        return empty
    grid = np.linspace(0.0, end, POINTS + 1)
    lines = [np.interp(grid, curve[axis], curve["value"]).tolist() for curve in curves]
    for x, values in zip(grid.tolist(), zip(*lines, strict=True), strict=True):
        here = spread(values)
        if not math.isfinite(here.median):
            break
        empty.x.append(x)
        empty.low.append(here.low)
        empty.median.append(here.median)
        empty.high.append(here.high if math.isfinite(here.high) else here.median)
    return empty


def bands(table: RunTable, axis: str) -> list[Band]:
    """The bands of all sides that have one, in the order of the table."""
    if axis not in AXES:
        raise StudyError(f"axis must be one of {', '.join(AXES)}, got {axis!r}")
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
    found = bands(table, axis)
    for index, entry in enumerate(found):
        colour = qualitative.Safe[index % len(qualitative.Safe)]
        filled = colour.replace("rgb", "rgba").replace(")", ", 0.2)")
        outline = {"x": entry.x + entry.x[::-1], "y": entry.high + entry.low[::-1]}
        drawn.add_scatter(**outline, fill="toself", fillcolor=filled, line={"width": 0}, hoverinfo="skip", showlegend=False)
        drawn.add_scatter(x=entry.x, y=entry.median, name=entry.title, line={"color": colour}, mode="lines")
    scale = "log" if logarithmic([v for entry in found for v in entry.median]) else "linear"
    drawn.update_layout(template="simple_white", xaxis_title=axis, yaxis_title=table.metric, yaxis_type=scale)
    return drawn
