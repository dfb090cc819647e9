"""A step out of place, on tensors that autograd may follow, and the answer behind ``solution()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fallline.core.errors import MissingOracle

from . import door
from .hooks import First
from .joined import Joined, Owned
from .joint import entries_of, shapes_of
from .kernels import Kernel
from .parts import Coefficients, Direction, Search, StepSize, View, has_solution
from .plan import Bucket, Member, build
from .reduction import batched, reducing, whole
from .signature import hyperparameters
from .state import working_dtype
from .statistics import how, of_direction
from .storage import Codec, Storage
from .two_pass import multiplied

if TYPE_CHECKING:
    from .optimizer import Optimizer

States = list[dict[str, Any]]


class _Item:
    """One parameter with all that its step needs."""

    def __init__(
        self, optimizer: Optimizer, index: int, p: Tensor, own: Tensor, group: Mapping[str, Any], state: Mapping[str, Any],
        shapes: tuple[tuple[int, ...], ...],
    ) -> None:
        self.direction: Direction = optimizer.direction_for(own, group).with_shapes(shapes)
        self.group, self.index = group, index
        self.shape, self.dtype = p.shape, working_dtype(p.dtype)
        real = torch.view_as_real(p) if p.is_complex() else p
        self.complex = p.is_complex()
        self.view = self.direction.view(tuple(p.shape)) if self.direction.scope == "matrix" else None
        self.p = real if self.view is None else real.reshape(1, *self.view)
        seen = self.p if self.view is None else self.p[0]
        self.declared = optimizer.sentence.declare(self.direction, seen)
        codecs = tuple((name, Codec(declared.dtype or self.dtype)) for name, declared in self.declared.items())
        if self.direction.scope == "joint":
            codecs = tuple((name, codec) for name, _, codec in entries_of(self.declared, Storage(), self.p))
        decay = group.get("weight_decay", 0.0)
        decays = self.direction.brings_decay or bool(decay) or (isinstance(decay, Tensor) and decay.requires_grad)
        parts = optimizer.sentence
        move, maximize = optimizer.move_for(own, group), bool(group["maximize"])
        self.kernel = Kernel(self.direction, move, parts.average, codecs, maximize, decays, False)
        self.step = int(state.get("step", 0)) + 1
        self.c = Coefficients(optimizer.coefficients(self.direction, group, self.step))
        if self.view is not None:
            self.c.indices = [index]

    def refuse_probe(self, name: str) -> None:
        for oracle in self.direction.probe(self.step, self.group):
            raise MissingOracle(f"{name}.update() takes gradients only, but step {self.step} needs {oracle}: use step(objective(x))")

    def gradient(self, g: Tensor) -> Tensor:
        g = g.clone()  # a rule may keep it, and the caller may go on to write to it
        g = torch.view_as_real(g) if self.complex else g
        return g if self.view is None else g.reshape(1, *self.view)

    def pieces(self, state: Mapping[str, Any]) -> tuple[Tensor, ...]:
        state = self._complete(state)
        values = tuple(state[name] for name in self.declared)
        return values if self.view is None else tuple(v.unsqueeze(0) for v in values)

    def _complete(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        # A hyperparameter may have declared entries that the state did not start with.
        return state if all(name in state for name in self.declared) else {**self.started(), **state}

    def started(self) -> dict[str, Any]:
        seen = self.p if self.view is None else self.p[0]
        values = {name: d.start(seen, d.dtype or self.dtype, self.index) for name, d in self.declared.items()}
        return {"step": 0, **values}

    def parameter(self, x: Tensor) -> Tensor:
        x = x.reshape(self.shape) if self.view is not None else x
        return torch.view_as_complex(x) if self.complex else x

    def state(self, old: Mapping[str, Any], new: Sequence[Tensor | None]) -> dict[str, Any]:
        old = self._complete(old)
        values = {n: old[n] if v is None else v for n, v in zip(self.declared, new, strict=True)}
        if self.view is not None:
            values = {n: v if v is old[n] else v.squeeze(0) for n, v in values.items()}
        return {**old, **values, "step": self.step}


def _owned(optimizer: Optimizer, count: int) -> list[Owned]:
    """The optimizer's parameters with their groups and directions, which must be ``count``."""
    owned: list[Owned] = [(own, group, optimizer.direction_for(own, group)) for group in optimizer.param_groups
                          for own in group["params"]]
    if len(owned) != count:
        raise ValueError(f"the optimizer has {len(owned)} parameters, but update() was given {count}")
    for index, (own, _, direction) in enumerate(owned):
        if direction.scope == "joint":
            door.check_parameter(optimizer, index, own, direction)
    return owned


def _items(optimizer: Optimizer, owned: Sequence[Owned], joined: Joined, overrides: Mapping[str, Any]) -> list[_Item]:
    for name in overrides:
        if name not in optimizer.defaults:
            raise ValueError(f"unknown hyperparameter {name!r}; known: {', '.join(optimizer.defaults)}")
    items = []
    for item, p in zip(joined.items, joined.points(), strict=True):
        own, group, _ = owned[item[0]]
        shapes = shapes_of([joined.params[i] for i in item])
        items.append(_Item(optimizer, item[0], p, own, {**group, **overrides}, joined.states[item[0]], shapes))
    return items


def init(optimizer: Optimizer, params: Sequence[Tensor]) -> States:
    """The states before the first step."""
    rule = optimizer.sentence.step_size
    numbers = rule.scalars() if rule is not None else {}
    owned = _owned(optimizer, len(params))
    joined = Joined(owned, params, [own.requires_grad for own, *_ in owned], [{"step": 0}] * len(params))
    items, states = _items(optimizer, owned, joined, {}), []
    for item in items:
        scalars = {n: torch.tensor(x, dtype=item.dtype, device=item.p.device) for n, x in numbers.items()}
        states.append(item.started() | scalars)
    return joined.apart(joined.points(), states, [item.declared for item in items])[1]


def update(
    optimizer: Optimizer,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    states: Sequence[Mapping[str, Any]],
    loss: Any,
    overrides: Mapping[str, Any],
) -> tuple[list[Tensor], States]:
    """See :meth:`Optimizer.update`."""
    owned = _owned(optimizer, len(params))
    joined = Joined(owned, params, [g is not None for g in gradients], states)
    items = _items(optimizer, owned, joined, overrides)
    points, found = joined.points(), joined.gradients(gradients)
    for k, item in enumerate(items):
        item.c = Coefficients(joined.coefficients(k, vars(item.c), item.p))
    taken = _step(optimizer, items, points, found, [joined.state(k, item.declared) for k, item in enumerate(items)], loss)
    return joined.apart(*taken, [item.declared for item in items])


def _step(
    optimizer: Optimizer,
    items: list[_Item],
    params: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    states: Sequence[Mapping[str, Any]],
    loss: Any,
) -> tuple[list[Tensor], States]:
    moving = [i for i, g in enumerate(gradients) if g is not None]
    for i in moving:
        items[i].refuse_probe(type(optimizer).__name__)
    states = _measured(optimizer, items, gradients, states)
    _share(optimizer, items, gradients, states, moving, loss)
    new_params, new_states = list(params), [dict(s) for s in states]
    if optimizer.sentence.step_size is not None:
        _two_passes(optimizer, items, gradients, states, moving, loss, new_params, new_states)
        return new_params, new_states
    for i in moving:
        item, g = items[i], gradients[i]
        assert g is not None
        with reducing(whole if item.view is None else batched):
            (x, *pieces), _ = item.kernel.whole(item.c, item.p, item.gradient(g), item.pieces(states[i]))
        assert x is not None
        new_params[i], new_states[i] = item.parameter(x), item.state(states[i], pieces)
    return new_params, new_states


def _measured(
    optimizer: Optimizer, items: Sequence[_Item], gradients: Sequence[Tensor | None], states: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """The states with the numbers that the rule takes from first gradients."""
    new = {i: First(g, items[i].group) for i, g in enumerate(gradients) if g is not None and not states[i].get("step", 0)}
    if not new or not optimizer.has("measure"):
        return states
    old = [state for state in states if state.get("step", 0)]
    found = dict(zip(new, optimizer.measure(list(new.values()), old), strict=True))
    numbers = lambda i: {name: torch.as_tensor(x, dtype=items[i].dtype) for name, x in found.get(i, {}).items()}
    return [{**state, **numbers(i)} for i, state in enumerate(states)]


def _share(
    optimizer: Optimizer,
    items: Sequence[_Item],
    gradients: Sequence[Tensor | None],
    states: Sequence[Mapping[str, Any]],
    moving: Sequence[int],
    loss: Any,
) -> None:
    """Give every rule the coefficients that depend on all gradients and states."""
    views = []
    for i in moving:
        item, g = items[i], gradients[i]
        assert g is not None
        x = item.p.to(item.dtype)
        state = item.kernel.decode(item.pieces(states[i]), item.dtype)
        views.append(View(item.kernel.gradient(item.gradient(g), x, item.c), state, item.step))
    for name, value in optimizer.share(views, loss).items() if moving else ():
        for item in items:
            setattr(item.c, name, value)


def _loss(optimizer: Optimizer, rule: StepSize, loss: Any, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the step size needs besides sums over the parameters: the loss, or nothing."""
    if isinstance(rule, Search):
        raise MissingOracle(f"{type(optimizer).__name__}.update() takes gradients only, but its step size is found by trying: use "
                            "step(objective(x))")
    if "loss" not in rule.needs:
        return {}
    if loss is None:
        raise MissingOracle(f"{type(optimizer).__name__}.update() needs the loss of these gradients: update(…, loss=loss)")
    value = torch.as_tensor(loss).reshape(())
    if type(rule).check_loss is not StepSize.check_loss:
        rule.check_loss(float(value.detach()), group)
    return {"loss": value}


def _two_passes(
    optimizer: Optimizer,
    items: list[_Item],
    gradients: Sequence[Tensor | None],
    states: Sequence[Mapping[str, Any]],
    moving: list[int],
    loss: Any,
    new_params: list[Tensor],
    new_states: States,
) -> None:
    rule = optimizer.sentence.step_size
    assert rule is not None
    extra = _loss(optimizer, rule, loss, items[moving[0] if moving else 0].group)
    needs = tuple(name for name in rule.needs if name not in extra)
    directions, sums, given = {}, {}, {}
    for i in moving:
        item, g = items[i], gradients[i]
        assert g is not None
        given[i], pieces = item.gradient(g), item.pieces(states[i])
        with reducing(whole if item.view is None else batched):
            if of_direction(needs):
                new, directions[i], integrands = item.kernel.first(item.c, item.p, given[i], pieces, needs)
                new_states[i] = item.state(states[i], new)
            else:
                integrands = item.kernel.before(item.c, item.p, given[i], pieces, needs)
        sums[i] = {name: whole(x, how(name)) for name, x in zip(needs, integrands, strict=True)}
    if rule.over == "all" and moving:
        totals = {name: whole(torch.stack([sums[i][name] for i in moving]), how(name)) for name in needs}
        sums = dict.fromkeys(moving, totals)
    # Numbers of all parameters are as new as the parameter that has taken most steps.
    newest = max(range(len(states)), key=lambda i: states[i].get("step", 0))
    shared: dict[str, Any] = {}
    for i in moving:
        item = items[i]
        coefficients = items[moving[0]].c if rule.over == "all" else item.c
        old = {name: states[newest if rule.over == "all" else i][name] for name in rule.scalars()}
        multiplier, scalars = rule(sums[i] | extra, old, coefficients)
        c, pieces = Coefficients(multiplied(vars(item.c), multiplier)), item.pieces(new_states[i])
        with reducing(whole if item.view is None else batched):
            moved = item.kernel.second(c, item.p, directions[i], pieces) if i in directions else \
                item.kernel.whole(c, item.p, given[i], pieces)[0]
        x, *changed = moved
        assert x is not None
        new_params[i] = item.parameter(x)
        new_states[i] = item.state(new_states[i], changed) | scalars
        shared = scalars if rule.over == "all" else {}
    new_states[:] = [{**state, **shared} for state in new_states]


def swap_in(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Write the answer to the parameters; returns what they held."""
    members, index = [], 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            if optimizer.state.get(p, {}).get("step", 0) > 0:
                direction, move = optimizer.direction_for(p, group), optimizer.move_for(p, group)
                members.append(Member(index, p, group, direction, move, optimizer.storage_for(p, group)))
            index += 1
    average = optimizer.sentence.average
    changes = [m for m in members if average is not None or has_solution(m.direction)]
    saved = [(p, p.detach().clone()) for p in (m.param for m in changes)]
    if not changes:
        return saved
    keys = {id(group): hyperparameters(group, optimizer.defaults) for group in optimizer.param_groups}
    optimizer._plan = None
    for bucket in build(changes, optimizer.sentence, optimizer.state, keys, False):
        _write_solution(optimizer, bucket)
    return saved


def _write_solution(optimizer: Optimizer, bucket: Bucket) -> None:
    c = Coefficients(optimizer.coefficients(bucket.direction, bucket.group, bucket.step))
    for unit in bucket.units:
        p = unit.load()
        x = p.to(unit.working)
        s = bucket.kernel.decode(unit.pieces, x.dtype)
        answer = s["average"] if optimizer.sentence.average is not None else bucket.direction.solution(x, s, c)
        if answer is not None:
            p.copy_(answer)
            unit.store(p)
