"""A step in two passes, for step sizes that look at all parameters before any of them moves.

Pass 1 computes directions and sums of the statistics; the step size maps the sums to a multiplier of ``lr`` on the
device; pass 2 moves. If the direction is the gradient itself, nothing is stored between the passes.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .kernels import write
from .parts import Coefficients, StepSize
from .plan import Bucket
from .reduction import reducing, whole
from .statistics import how
from .units import Unit

States = MutableMapping[Tensor, dict[str, Any]]


def multiplied(c: Coefficients, multiplier: Tensor | float) -> Coefficients:
    """The coefficients with ``lr`` (and what contains it) scaled."""
    values = dict(vars(c))
    values["lr"] = values["lr"] * multiplier
    return Coefficients(values)


def adopt_scalars(rule: StepSize, buckets: list[Bucket], states: States) -> list[dict[str, Tensor]]:
    """Bring the step size's numbers into place: one dictionary for all units, or one with a vector for each unit."""
    units = [unit for bucket in buckets for unit in bucket.units]
    if rule.over == "tensor":
        return [_unit_scalars(rule, unit, states) for unit in units]
    shared: dict[str, Tensor] = {}
    active = [states[p] for unit in units for p in unit.params]
    for name, initial in rule.scalars().items():
        # Parameters without a gradient hold the number too, or it would be out of date when they return.
        known = [state for state in states.values() if name in state]
        device = units[0].locals[0].device
        value = known[0][name].detach().clone() if known else torch.tensor(initial, dtype=units[0].working, device=device)
        shared[name] = value
        for state in known + active:
            state[name] = value
    return [shared]


def _unit_scalars(rule: StepSize, unit: Unit, states: States) -> dict[str, Tensor]:
    own = {}
    for name, initial in rule.scalars().items():
        vector = torch.full((len(unit.params),), initial, dtype=unit.working, device=unit.locals[0].device)
        for i, p in enumerate(unit.params):
            if name in states[p]:
                vector[i].copy_(states[p][name])
            states[p][name] = vector[i]
        own[name] = vector
    return own


def step(
    rule: StepSize,
    buckets: list[Bucket],
    coefficients: list[Coefficients],
    gradients: dict[int, Tensor],
    scalars: list[dict[str, Tensor]],
    loss: Any,
) -> list[tuple[Tensor, Unit]]:
    """Take the step; ``gradients`` maps ``id(unit)`` to its packed gradient. Returns the alarms."""
    work = [(b, c, u) for b, c in zip(buckets, coefficients, strict=True) for u in b.units]
    needs = tuple(name for name in rule.needs if name != "loss")
    scratch: list[Tensor | None] = []
    sums: list[list[Tensor]] = []
    for bucket, c, unit in work:
        g, p = gradients[id(unit)], unit.load()
        with _reducing(bucket, unit):
            new, u, integrands = bucket.kernel.first(c, p, g, unit.pieces, needs)
        write(unit.pieces, new)
        scratch.append(None if bucket.direction.is_gradient else u)
        sums.append([bucket.all_reduced(unit.segments(x, how(n)), how(n)) for n, x in zip(needs, integrands, strict=True)])
    multipliers = _multipliers(rule, work, needs, sums, scalars, loss)
    alarms = []
    for (bucket, c, unit), kept, multiplier in zip(work, scratch, multipliers, strict=True):
        p = unit.load()
        scaled = multiplied(c, multiplier)
        if kept is None:
            moved, _ = bucket.kernel.whole(scaled, p, gradients[id(unit)], unit.pieces)
        else:
            moved = bucket.kernel.second(scaled, p, kept, unit.pieces)
        write((p, *unit.pieces), moved)
        unit.store(p)
        alarm = bucket.kernel.alarm(p, p, gradients[id(unit)])
        if alarm is not None:
            alarms.append((alarm, unit))
    return alarms


def _reducing(bucket: Bucket, unit: Unit) -> AbstractContextManager[None]:
    return reducing(bucket.reduction(unit)) if bucket.direction.reduces else nullcontext()


def _multipliers(
    rule: StepSize,
    work: list[tuple[Bucket, Coefficients, Unit]],
    needs: tuple[str, ...],
    sums: list[list[Tensor]],
    scalars: list[dict[str, Tensor]],
    loss: Any,
) -> list[Tensor]:
    extra = {"loss": torch.as_tensor(loss)} if "loss" in rule.needs else {}
    if rule.over == "tensor":
        result = []
        for (_, c, unit), own, s in zip(work, sums, scalars, strict=True):
            multiplier, new = rule(dict(zip(needs, own, strict=True)) | extra, s, c)
            write([s[name] for name in new], list(new.values()))
            result.append(unit.spread(multiplier))
        return result
    s = scalars[0]
    home = next(iter(s.values())) if s else sums[0][0]
    totals = {n: whole(torch.stack([whole(own[i], how(n)).to(home) for own in sums]), how(n)) for i, n in enumerate(needs)}
    multiplier, new = rule(totals | {n: x.to(home) for n, x in extra.items()}, s, SimpleNamespace(**vars(work[0][1])))
    write([s[name] for name in new], list(new.values()))
    return [multiplier.to(unit.working) for _, _, unit in work]
