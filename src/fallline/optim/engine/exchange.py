"""A step whose directions are computed by several processes, each a part, before any parameter moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .kernels import write
from .layout import full, is_sharded
from .parts import Coefficients
from .plan import Bucket, gradient_of
from .stacked import StackedUnit
from .units import Unit

Exchange = Callable[[Sequence[tuple[Unit, Tensor]]], None]


def step(exchange: Exchange, buckets: list[Bucket], values: list[dict[str, Any]]) -> list[tuple[Tensor, Unit]]:
    """Take the step; ``exchange`` completes the directions in place. Returns the alarms."""
    work, wholes = [], _wholes([unit for bucket in buckets for unit in bucket.units])
    for bucket, numbers in zip(buckets, values, strict=True):
        for unit in bucket.units:
            c = Coefficients(numbers)
            unit.describe(c)
            p, g = wholes(unit)
            new, u, _ = bucket.kernel.first(c, p, g, unit.pieces, ())
            write(unit.pieces, new)
            work.append((bucket, unit, c, p, g, u))
    exchange([(unit, u) for _, unit, *_, u in work])
    alarms = []
    for bucket, unit, c, p, g, u in work:
        write((p, *unit.pieces), bucket.kernel.second(c, p, u, unit.pieces))
        alarm = bucket.kernel.alarm(p, u, g)
        alarms += [] if alarm is None else [(alarm, unit)]
        unit.store(p)
    return alarms


def _wholes(units: Sequence[Unit]) -> Callable[[Unit], tuple[Tensor, Tensor]]:
    """What gives a unit its point and gradient. Sharded ones are gathered here, in the order of the parameters: units, and so the order
    in which they would gather, depend on what a process owns."""
    sharded = {i: p for unit in units for i, p in zip(unit.indices, unit.params, strict=True) if is_sharded(p)}
    found = {i: (full(sharded[i]), full(gradient_of(sharded[i]))) for i in sorted(sharded)}

    def whole(unit: Unit) -> tuple[Tensor, Tensor]:
        if not isinstance(unit, StackedUnit) or unit.indices[0] not in found:
            return unit.load(), unit.pack(list(map(gradient_of, unit.params)))
        points, gradients = zip(*(found[i] for i in unit.indices), strict=True)
        return unit.stack(points), unit.stack(gradients)

    return whole
