"""A step in two passes, for step sizes that look at all parameters before any of them moves.

Pass 1 sums the statistics; the step size maps the sums to a multiplier of ``lr`` on the device; pass 2 moves. Where the statistics
are of the direction, pass 1 computes it and keeps it; where they are not, or the direction is the gradient, nothing is stored. A
search tries pass 2 several times.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import compiling
from .kernels import write
from .oracles import value_of
from .parts import Coefficients, Multiplier, Search, StepSize
from .plan import Bucket
from .reduction import reducing, whole
from .statistics import how, of_direction
from .units import Unit

States = MutableMapping[Tensor, dict[str, Any]]


def multiplied(values: Mapping[str, Any], multiplier: Multiplier) -> dict[str, Any]:
    """The coefficients with ``lr`` (and what contains it) scaled, or with those that the step size has made."""
    if isinstance(multiplier, Mapping):
        return {**values, **multiplier}
    return {**values, "lr": values["lr"] * multiplier}


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


@dataclass
class _Work:
    """One unit in a step."""

    bucket: Bucket
    values: dict[str, Any]
    unit: Unit
    gradient: Tensor
    compile: bool

    def first(self, needs: tuple[str, ...]) -> tuple[list[Tensor], Tensor | None]:
        """The statistics of every parameter of the unit, and the direction where pass 2 cannot make it from the gradient."""
        kernel, unit, g = self.bucket.kernel, self.unit, self.gradient
        keeps = of_direction(needs) and not self.bucket.direction.is_gradient
        p = unit.load()
        if self.compile and compiling.sums_compile(self.bucket, unit, p):
            sums, u = compiling.run_first(self.bucket, self.values, p, g, unit.pieces, needs, keeps)
            found = [x.reshape(1) for x in sums]
        else:
            c, u = self._coefficients(self.values), None
            with self._reducing():
                if keeps:
                    new, u, integrands = kernel.first(c, p, g, unit.pieces, needs)
                    write(unit.pieces, new)
                else:
                    integrands = kernel.before(c, p, g, unit.pieces, needs)
            found = [unit.segments(x, how(name)) for name, x in zip(needs, integrands, strict=True)]
        return [self.bucket.all_reduced(x, how(name)) for name, x in zip(needs, found, strict=True)], u

    def second(self, u: Tensor | None, values: dict[str, Any]) -> None:
        """Move, by coefficients that know the multiplier."""
        kernel, unit = self.bucket.kernel, self.unit
        p = unit.load()
        apart = isinstance(values["lr"], Tensor) and values["lr"].ndim > 0  # a number for each of many tensors
        if self.compile and not apart and compiling.compiles(self.bucket, unit, p, u is None and self.bucket.direction.reduces):
            given = self.gradient if u is None else u
            compiling.run_second(self.bucket, "move" if u is None else "second", values, p, given, unit.pieces)
        else:
            c = self._coefficients(values)
            with self._reducing():
                new = kernel.whole(c, p, self.gradient, unit.pieces)[0] if u is None else kernel.second(c, p, u, unit.pieces)
            write((p, *unit.pieces), new)
        unit.store(p)

    def _coefficients(self, values: Mapping[str, Any]) -> Coefficients:
        c = Coefficients(values)
        self.unit.describe(c)
        return c

    def _reducing(self) -> AbstractContextManager[None]:
        return reducing(self.bucket.reduction(self.unit)) if self.bucket.direction.reduces else nullcontext()


def step(
    rule: StepSize,
    buckets: list[Bucket],
    values: list[dict[str, Any]],
    gradients: dict[int, Tensor],
    scalars: list[dict[str, Tensor]],
    loss: Any,
    closure: Any,
    compile: bool,
) -> list[tuple[Tensor, Unit]]:
    """Take the step; ``gradients`` maps ``id(unit)`` to its packed gradient. Returns the alarms."""
    work = [_Work(b, v, u, gradients[id(u)], compile) for b, v in zip(buckets, values, strict=True) for u in b.units]
    needs = tuple(name for name in rule.needs if name != "loss")
    sums, scratch = zip(*(item.first(needs) for item in work), strict=True)
    if isinstance(rule, Search):
        slope = torch.stack([x.sum().to(sums[0][0]) for (x,) in sums]).sum()
        multipliers: list[Multiplier] = [_searched(rule, work, scratch, float(slope), scalars[0], loss, closure)] * len(work)
    else:
        multipliers = _multipliers(rule, work, needs, sums, scalars, loss)
    alarms, scaled = [], _Scaled()
    for item, found, u, multiplier in zip(work, sums, scratch, multipliers, strict=True):
        item.second(u, scaled(item.values, multiplier))
        if item.bucket.kernel.watch:  # a gradient or direction that is not finite has made the statistics so
            alarms.append((torch.stack([x.sum() for x in found]).sum(), item.unit))
    return alarms


class _Scaled:
    """Coefficients with their multiplier, made once for all units of a bucket."""

    def __init__(self) -> None:
        self.last: tuple[Any, Any, dict[str, Any]] | None = None

    def __call__(self, values: dict[str, Any], multiplier: Multiplier) -> dict[str, Any]:
        if self.last is None or self.last[0] is not values or self.last[1] is not multiplier:
            self.last = values, multiplier, multiplied(values, multiplier)
        return self.last[2]


def _searched(rule: Search, work: list[_Work], scratch: tuple[Tensor | None, ...], slope: float, s: dict[str, Tensor], loss: Any,
              closure: Any) -> Tensor:
    """The multiplier that the rule finds by trying; parameters are as they were afterwards."""
    params = [p for item in work for p in item.unit.params]
    before = [p.detach().clone() for p in params]

    def restore() -> None:
        for p, value in zip(params, before, strict=True):
            p.copy_(value)

    def trial(multiplier: float) -> float:
        restore()
        for item, u in zip(work, scratch, strict=True):
            tried = torch.tensor(multiplier, dtype=item.unit.working, device=item.unit.locals[0].device)
            item.second(u, multiplied(item.values, tried))
        return value_of(closure, params)

    try:
        multiplier, new = rule.search(trial, float(torch.as_tensor(loss)), slope, s, SimpleNamespace(**work[0].values))
    finally:
        restore()
    write([s[name] for name in new], list(new.values()))
    return torch.tensor(multiplier, dtype=work[0].unit.working, device=work[0].unit.locals[0].device)


def _multipliers(
    rule: StepSize,
    work: list[_Work],
    needs: tuple[str, ...],
    sums: tuple[list[Tensor], ...],
    scalars: list[dict[str, Tensor]],
    loss: Any,
) -> list[Multiplier]:
    extra = {"loss": torch.as_tensor(loss).reshape(())} if "loss" in rule.needs else {}
    if rule.over == "tensor":
        result: list[Multiplier] = []
        for item, own, s in zip(work, sums, scalars, strict=True):
            multiplier, new = rule(dict(zip(needs, own, strict=True)) | extra, s, item._coefficients(item.values))
            assert isinstance(multiplier, Tensor)
            write([s[name] for name in new], list(new.values()))
            result.append(item.unit.spread(multiplier))
        return result
    s = scalars[0]
    home = next(iter(s.values())) if s else sums[0][0]
    totals = {n: whole(sums[0][i] if len(sums) == 1 else torch.cat([own[i].to(home) for own in sums]), how(n))
              for i, n in enumerate(needs)}
    multiplier, new = rule(totals | {n: x.to(home) for n, x in extra.items()}, s, SimpleNamespace(**work[0].values))
    write([s[name] for name in new], list(new.values()))
    if isinstance(multiplier, Tensor):
        return [multiplier.to(item.unit.working) for item in work]
    kinds = {item.unit.working for item in work}
    shared = {kind: {n: x.to(kind) for n, x in multiplier.items()} for kind in kinds}
    return [shared[item.unit.working] for item in work]
