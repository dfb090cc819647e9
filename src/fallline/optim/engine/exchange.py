"""A step whose directions are computed by several processes, each a part, before any parameter moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .kernels import write
from .parts import Coefficients
from .plan import Bucket
from .units import Unit

Exchange = Callable[[Sequence[tuple[Unit, Tensor]]], None]


def step(exchange: Exchange, buckets: list[Bucket], values: list[dict[str, Any]]) -> list[tuple[Tensor, Unit]]:
    """Take the step; ``exchange`` completes the directions in place. Returns the alarms."""
    work = []
    for bucket, numbers in zip(buckets, values, strict=True):
        for unit in bucket.units:
            c = Coefficients(numbers)
            unit.describe(c)
            p, g = unit.load(), unit.pack([p.grad for p in unit.params if p.grad is not None])
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
