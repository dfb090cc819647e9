"""Charts as inline SVG: lines with bands, points, and intervals; colours come from the page's style sheet.

A chart is drawn at 520 × 340 units and scaled by the page. Its points are also given as data, so that a few lines of script can
say what lies under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from fallline.study.curves import Band, logarithmic
from fallline.study.numbers import SUPERSCRIPTS, amount, short

WIDTH, HEIGHT = 520.0, 340.0
LEFT, TOP, BOTTOM = 66.0, 14.0, 46.0
COLOURS = 8
LABEL_GAP, LETTER, LONGEST = 16.0, 8.8, 15
SMALLEST, HIGHEST = 1e-15, 2.0
LONG = 1e8
FEW = 40


def colour(index: int) -> str:
    """The style class of the side at this rank, from 0; ranks past the palette share a quiet grey."""
    return f"s{index}" if index < COLOURS else "rest"


@dataclass(frozen=True)
class Axis:
    """A range of values laid over a range of units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False
    """Whether only whole numbers are ticked; where the range starts above 0, its start is then a tick too."""

    def place(self, value: float) -> float:
        """Where a value lies; values outside the range lie on its ends."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        share = 0.5 if high == low else min(1.0, (value - low) / (high - low))
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values within the range, with their text."""
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high, self.whole)


def _linear_ticks(low: float, high: float, whole: bool) -> list[tuple[float, str]]:
    if high <= low:
        return [(low, short(low))]
    rough = max((high - low) / 4, 1.0) if whole else (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole and unit == 1 else (1, 2, 2.5, 5, 10)
    step = unit * next(m for m in factors if m * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
    if whole and low > 0 and low not in values:
        values = [low, *values]
    digits = max(0, -math.floor(math.log10(step)) + (step / 10 ** math.floor(math.log10(step)) == 2.5))
    return [(v, f"{v:,.{digits}f}" if digits < 5 and high < LONG else short(v)) for v in values]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((top - bottom) / 6))
    factors = (1,) if high / low > 300 else (1, 2, 5)
    values = [f * 10.0**e for e in range(bottom, top + 1, every) for f in factors]
    return [(v, _power(v)) for v in values if low * 0.999 <= v <= high * 1.001]


def _power(value: float) -> str:
    if 0.001 <= value < 10_000:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    digit = round(value / 10.0**exponent)
    return ("" if digit == 1 else f"{digit}·") + f"10{str(exponent).translate(SUPERSCRIPTS)}"


def spanning(values: Sequence[float], start: float, end: float, *, margin: float = 0.05, zeros: bool = False) -> Axis:
    """An axis around the finite values, logarithmic where that reads better; not if a zero must be seen to be one."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if logarithmic(finite) and not (zeros and low == 0):
        low = max(min(v for v in finite if v > 0), high * SMALLEST)
        room = (high / low) ** margin
        return Axis(low / room, high * room, start, end, log=True)
    room = (high - low) * margin or abs(low) * 0.1 or 1.0
    return Axis(low - room if low - room >= 0 or low < 0 else 0.0, high + room, start, end)


@dataclass(frozen=True)
class Chart:
    """An SVG element, and its points for the pointer: per series a title, a class and ``[x, y, text]`` entries."""

    svg: str
    series: list[dict[str, Any]] = field(default_factory=list)


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value, text in y.ticks():
        at = y.place(value)
        parts.append(f'<line class="grid" x1="{x.start:g}" x2="{x.end:g}" y1="{at:g}" y2="{at:g}"/>')
        parts.append(_text(x.start - 8, at + 4, text, "end"))
    for value, text in x.ticks():
        at = x.place(value)
        parts.append(f'<line class="tick" x1="{at:g}" x2="{at:g}" y1="{bottom:g}" y2="{bottom + 4:g}"/>')
        parts.append(_text(at, bottom + 18, text, "middle"))
    parts.append(f'<line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
    parts.append(_text((x.start + x.end) / 2, HEIGHT - 6, x_label, "middle", ' class="label"'))
    middle = (TOP + bottom) / 2
    turned = f' class="label" transform="rotate(-90 12 {middle:g})"'
    return [*parts, _text(12, middle, y_label, "middle", turned)]


def _svg(parts: Sequence[str], title: str) -> str:
    body = "".join(parts)
    view = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}"'
    return f'<svg class="chart" {view} role="img" tabindex="0" aria-label="{escape(title)}">{body}</svg>'


def _clipped(title: str) -> str:
    return title if len(title) <= LONGEST else title[: LONGEST - 1] + "…"


def _side(index: int, drawn: str) -> str:
    """What belongs to the side of this rank, which the page can hide."""
    return f'<g data-side="{index}">{drawn}</g>'


def _end_labels(ends: list[tuple[float, int, str]], x: float) -> list[str]:
    """Names at the ends of their lines, moved apart where they would touch."""
    ordered = sorted(ends)
    places: list[float] = []
    for y, _, _ in ordered:
        places.append(max(y, places[-1] + LABEL_GAP) if places else y)
    over = max(0.0, (places[-1] if places else 0.0) - (HEIGHT - BOTTOM - 4))
    return [
        _side(index, _text(x + 8, place - over + 4, _clipped(title), extra=f' class="name {colour(index)}"'))
        for place, (_, index, title) in zip(places, ordered, strict=True)
    ]


def _below(band: Band, ceiling: float) -> Band:
    """The band up to where its median goes above the ceiling for good: a line that leaves the chart at the top."""
    n = 2 + max((i for i, v in enumerate(band.median) if v <= ceiling), default=0)
    capped = [[min(v, ceiling) for v in values[:n]] for values in (band.low, band.median, band.high)]
    return Band(band.title, band.x[:n], *capped)


def line_chart(
    given: Sequence[tuple[int, Band]], x_label: str, y_label: str, *, first: float = 0.0, whole: bool = False
) -> Chart:
    """Median lines within their bands, each with its rank (from 0), which is its colour, and its name at its end.

    The horizontal axis starts at ``first``, and is ticked at whole numbers if it has no others. Lines that stay above twice the highest
    start leave the chart: a run that diverges says nothing by how much.
    """
    ceiling = HIGHEST * max(abs(band.median[0]) for _, band in given)
    ranks, bands = [rank for rank, _ in given], [_below(band, ceiling) for _, band in given]
    right = 14 + LETTER * max(len(_clipped(band.title)) for band in bands)
    x = Axis(first, max(band.x[-1] for _, band in given), LEFT, WIDTH - right, whole=whole)
    medians = [v for band in bands for v in band.median]
    y = spanning(medians, HEIGHT - BOTTOM, TOP)
    parts, ends, series = _frame(x, y, x_label, y_label), [], []
    for index, band in reversed(list(zip(ranks, bands, strict=True))):
        xs = [x.place(v) for v in band.x]
        low, line, high = ([y.place(v) for v in values] for values in (band.low, band.median, band.high))
        outline = " ".join(f"{a:g},{b:g}" for a, b in [*zip(xs, high, strict=True), *zip(xs[::-1], low[::-1], strict=True)])
        path = " ".join(f"{a:g},{b:g}" for a, b in zip(xs, line, strict=True))
        kind = colour(index)
        drawn = f'<polygon class="band {kind}" points="{outline}"/><polyline class="line {kind}" points="{path}"/>'
        parts.append(_side(index, drawn))
        if index < COLOURS:
            ends.append((line[-1], index, band.title))
        texts = [short(v) for v in band.median]
        points = [list(point) for point in zip(xs, line, texts, map(amount, band.x), strict=True)]
        series.append({"side": index, "title": band.title, "kind": kind, "points": points})
    parts += _end_labels(ends, x.end)
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{TOP:g}" y2="{HEIGHT - BOTTOM:g}"/>')
    return Chart(_svg(parts, f"{y_label} against {x_label}"), series[::-1])


@dataclass(frozen=True)
class Points:
    """One side's trials: a parameter or a cost, the metric (``inf`` if divergent), and which one was chosen, -1 for none."""

    title: str
    rank: int
    x: list[float]
    y: list[float]
    best: int


def point_chart(sides: Sequence[Points], x_label: str, y_label: str, *, joined: bool = True) -> Chart:
    """Points, joined by a line a side or not, divergent ones as crosses along the top, the chosen ones ringed."""
    x = spanning([v for side in sides for v in side.x], LEFT, WIDTH - 16, zeros=True)
    y = spanning([v for side in sides for v in side.y], HEIGHT - BOTTOM, TOP + 22)
    parts, series = _frame(x, y, x_label, y_label), []
    if any(not math.isfinite(v) for side in sides for v in side.y):
        parts.append(f'<line class="grid dashed" x1="{LEFT:g}" x2="{x.end:g}" y1="{TOP + 12:g}" y2="{TOP + 12:g}"/>')
        parts.append(_text(LEFT - 8, TOP + 10, "diver-", "end") + _text(LEFT - 8, TOP + 23, "gent", "end"))
    for side in reversed(sides):
        kind, points, drawn = colour(side.rank), [], []
        if joined:
            ordered = sorted((x.place(a), y.place(b)) for a, b in zip(side.x, side.y, strict=True) if math.isfinite(b))
            drawn.append(f'<polyline class="faint {kind}" points="{" ".join(f"{a:g},{b:g}" for a, b in ordered)}"/>')
        for number, (a, b) in enumerate(zip(side.x, side.y, strict=True)):
            at, height = x.place(a), y.place(b) if math.isfinite(b) else TOP + 12
            if math.isfinite(b):
                drawn.append(f'<circle class="dot {kind}" cx="{at:g}" cy="{height:g}" r="4"/>')
            else:
                drawn.append(f'<path class="cross {kind}" d="M{at - 4:g} {height - 4:g}l8 8m0 -8l-8 8"/>')
            if number == side.best:
                drawn.append(f'<circle class="ring {kind}" cx="{at:g}" cy="{height:g}" r="8"/>')
            points.append([at, height, short(b), f"{x_label} {amount(a)}"])
        parts.append(_side(side.rank, "".join(drawn)))
        series.append({"side": side.rank, "title": side.title, "kind": kind, "points": points})
    return Chart(_svg(parts, f"{y_label} against {x_label}"), series[::-1])


STANDALONE = """
svg { --ink: #1f2328; --quiet: #59636e; --rule: #d1d9e0; font: 13px system-ui, sans-serif; fill: var(--quiet); }
@media (prefers-color-scheme: dark) { svg { --ink: #f0f6fc; --quiet: #9198a1; --rule: #3d444d; } }
.grid, .tick, .axis { stroke: var(--rule); } .label { fill: var(--ink); }
.line { fill: none; stroke-width: 2; }
"""
PALETTE = ("#3b82c4", "#d9722e", "#2f9e6e", "#b34fa8", "#b8960b", "#d1495b", "#5f6caf", "#7a7a7a")
"""Colours that are told apart on white and on black."""


def curve_picture(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, axes: Sequence[str] = ("", "")
) -> str:
    """Lines through ``(x, y)`` as a file of its own, for pages whose style sheet is not ours; names stand below the lines."""
    x = spanning([v for xs, _ in curves.values() for v in xs], LEFT, WIDTH - 16, margin=0.02)
    y = spanning([v for _, ys in curves.values() for v in ys], HEIGHT - BOTTOM, TOP)
    parts = _frame(x, y, *axes)
    for index, (name, (xs, ys)) in enumerate(curves.items()):
        paint = PALETTE[index % len(PALETTE)]
        places = [(x.place(a), y.place(b)) for a, b in zip(xs, ys, strict=True) if math.isfinite(a) and math.isfinite(b)]
        path = " ".join(f"{a:g},{b:g}" for a, b in places)
        parts.append(f'<polyline class="line" stroke="{paint}" points="{path}"/>')
        if len(places) <= FEW:
            parts += [f'<circle class="dot" fill="{paint}" cx="{a:g}" cy="{b:g}" r="3.5"/>' for a, b in places]
        row = HEIGHT + 8 + LABEL_GAP * index
        parts.append(f'<line stroke="{paint}" stroke-width="3" x1="{LEFT:g}" x2="{LEFT + 18:g}" y1="{row - 4:g}" y2="{row - 4:g}"/>')
        parts.append(_text(LEFT + 26, row, name, extra=' class="label"'))
    height = HEIGHT + 8 + LABEL_GAP * len(curves)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}">'
    return f"{head}<style>{STANDALONE}</style>{''.join(parts)}</svg>\n"


def interval_chart(low: float, median: float, high: float, axis: Axis, kind: str) -> str:
    """A dot between two ends, for a row of a table; an arrow where the end is not finite."""
    if not math.isfinite(median):
        return '<svg class="interval" viewBox="0 0 160 20" aria-hidden="true"></svg>'
    a, m = axis.place(low), axis.place(median)
    b = axis.place(high) if math.isfinite(high) else axis.end
    parts = f'<line class="line {kind}" x1="{a:g}" x2="{b:g}" y1="10" y2="10"/>'
    if not math.isfinite(high):
        parts += f'<path class="line {kind}" d="M{b - 5:g} 6l5 4l-5 4"/>'
    parts += f'<circle class="dot {kind}" cx="{m:g}" cy="10" r="4.5"/>'
    return f'<svg class="interval" viewBox="0 0 160 20" aria-hidden="true">{parts}</svg>'
