"""The plan of a step: which parameters share a kernel call.

Parameters share a bucket when they have the same hyperparameters, rule, state layout, dtype, device, sharding and step
count. Within a bucket, small tensors share one packed unit, matrices of one shape one stack. The vector of a joint rule has a bucket of
its own for every group, whatever the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from .joint import JointUnit, entries_of, shapes_of, steps_taken, vector_like
from .kernels import Kernel
from .layout import is_dense, is_sharded, local, sharding
from .packed import PackedUnit
from .parts import Average, Direction, Move, StepSize
from .reduction import How, Reduction
from .stacked import PartsUnit, StackedUnit
from .state import State, working_dtype
from .storage import Codec, Storage
from .units import Entries, FlatUnit, Unit

PACKED_UP_TO = 64 * 1024
"""Tensors up to this many elements are packed together."""


@dataclass(frozen=True)
class Sentence:
    """The parts of a rule other than its direction."""

    move: Move
    step_size: StepSize | None
    average: Average | None
    storage: Storage

    def declare(self, direction: Direction, p: Tensor) -> dict[str, State]:
        """All entries of one parameter (as the direction sees it)."""
        entries = dict(direction.init(p))
        for part in (self.step_size, self.average):
            entries.update(part.init(p) if part is not None else {})
        return entries


@dataclass
class Bucket:
    """Units that share coefficients and a kernel."""

    group: dict[str, Any]
    direction: Direction
    kernel: Kernel
    step: int
    units: list[Unit] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    mesh: Any = None
    sharded_dims: tuple[int, ...] = ()
    compiled: dict[Any, Callable[..., Sequence[Tensor]]] = field(default_factory=dict)
    packed: tuple[Any, Tensor] | None = None

    def reduction(self, unit: Unit) -> Reduction:
        """What :func:`.reduction.reduce` means for one unit."""

        def reduced(x: Tensor, how: How) -> Tensor:
            return unit.spread(self.all_reduced(unit.segments(x, how), how))

        return reduced

    def all_reduced(self, values: Tensor, how: How = "sum") -> Tensor:
        """Sums or maxima over the processes among which the bucket's parameters are sharded."""
        operation = torch.distributed.ReduceOp.MAX if how == "max" else torch.distributed.ReduceOp.SUM
        for dim in self.sharded_dims:
            torch.distributed.all_reduce(values, operation, group=self.mesh.get_group(dim))
        return values

    def advance(self) -> None:
        """Count one step."""
        self.step += 1
        for state in self.states:
            state["step"] = self.step


@dataclass
class Plan:
    """All buckets, and what must stay the same for the plan to hold."""

    buckets: list[Bucket]
    active: list[Tensor]
    idle: list[Tensor]
    signature: Any
    state: Any
    resting: int
    everything: list[int]
    """The ``id`` of every parameter of every group."""

    def __post_init__(self) -> None:
        self.placed = any(is_sharded(p) for p in self.active)
        self.wide = [p for p in self.active if p.ndim > 1]
        self.marks = self._marks()

    def _marks(self) -> tuple[list[Any], ...]:
        pointers = [(local(p) if self.placed else p).data_ptr() for p in self.active]
        return pointers, [p.shape for p in self.active], [p.stride() for p in self.wide]

    def still_holds(self, state: Any, everything: list[int], signature: Callable[[], Any]) -> bool:
        """Whether the same parameters have gradients and are where they were, and nothing that sorts them has changed."""
        return (
            self.state is state
            and self.everything == everything
            and len(state) == len(self.active) + self.resting
            and NoneType not in set(map(type, map(gradient_of, self.active)))
            and all(p.grad is None for p in self.idle)
            and self._marks() == self.marks
            and signature() == self.signature
        )


gradient_of: Callable[[Tensor], Any] = attrgetter("grad")


@dataclass(frozen=True)
class Member:
    """A parameter that takes the step: its position in the optimizer, its group, and the parts that may be its own.

    One that ``rests`` has no gradient, and is there because it is part of its group's vector.
    """

    index: int
    param: Tensor
    group: dict[str, Any]
    direction: Direction
    move: Move
    storage: Storage
    rests: bool = False


@dataclass(frozen=True, kw_only=True)
class _Placed(Member):
    entries: Entries
    view: tuple[int, ...] | None
    step: int

    def key(self, hyperparameters: Any) -> tuple[Any, ...]:
        device_dtype = (self.param.device, self.param.dtype)
        return (hyperparameters, self.direction, self.move, self.entries, *device_dtype, sharding(self.param), self.step)


def _place(member: Member, sentence: Sentence, step: int) -> _Placed:
    p, direction = member.param, member.direction
    working, view, seen = working_dtype(p.dtype), None, p.detach()
    if direction.scope == "matrix":
        view = tuple(local(p).shape) if direction.in_parts and is_sharded(p) else direction.view(tuple(p.shape))
        seen = torch.empty(view, device="meta", dtype=working)
    count = seen.numel() if view else local(p).numel()
    entries = []
    for name, state in sentence.declare(direction, seen).items():
        codec = member.storage.codec(state, count, working)
        if state.is_number or (view is not None and codec.block > 1):
            codec = Codec(working)
        entries.append((name, state, codec))
    return _Placed(**vars(member), entries=tuple(entries), view=view, step=step)


def build(
    members: Sequence[Member],
    sentence: Sentence,
    state: MutableMapping[Tensor, dict[str, Any]],
    hyperparameters: Mapping[int, Any],
    watch: bool,
    earlier: Sequence[Bucket] = (),
) -> list[Bucket]:
    """Sort parameters with gradients into buckets and units and bring their state into place.

    ``hyperparameters`` maps ``id(group)`` to a hashable; ``earlier`` are the buckets of the plan before.
    """
    sorted_: dict[tuple[Any, ...], list[_Placed]] = {}
    vectors: dict[tuple[int, Direction], list[Member]] = {}
    for given in members:
        if given.direction.scope == "joint":
            vectors.setdefault((id(given.group), given.direction), []).append(given)
            continue
        member = _place(given, sentence, int(state[given.param].get("step", 0)))
        sorted_.setdefault(member.key(hyperparameters[id(given.group)]), []).append(member)
    buckets = []
    for found in sorted_.values():
        first = found[0]
        bucket = Bucket(first.group, first.direction, _kernel(first, first.entries, sentence, watch), first.step)
        placed = sharding(first.param)
        if placed:
            bucket.mesh = placed[0]
            if first.direction.scope == "elementwise" or first.direction.in_parts:
                bucket.sharded_dims = tuple(i for i, p in enumerate(placed[1]) if p.is_shard())
        for unit_members in _units(found):
            _add_unit(bucket, unit_members, state)
        buckets.append(bucket)
    units = [unit for bucket in earlier for unit in bucket.units]
    return buckets + [_vector(found, sentence, state, watch, units) for found in vectors.values() if not all(m.rests for m in found)]


def _kernel(first: Member, entries: Entries, sentence: Sentence, watch: bool) -> Kernel:
    codecs = tuple((name, codec) for name, _, codec in entries)
    decays = first.direction.brings_decay or bool(first.group.get("weight_decay", 0.0))
    return Kernel(first.direction, first.move, sentence.average, codecs, bool(first.group["maximize"]), decays, watch)


def _vector(members: list[Member], sentence: Sentence, state: MutableMapping[Tensor, dict[str, Any]], watch: bool,
            earlier: Sequence[Unit]) -> Bucket:
    """The bucket of one group's vector."""
    params = [m.param for m in members]
    first = replace(members[0], direction=members[0].direction.with_shapes(shapes_of(params)))
    states = [state[p] for p in params]
    seen = vector_like(params)
    entries = entries_of(sentence.declare(first.direction, seen), first.storage, seen)
    bucket = Bucket(first.group, first.direction, _kernel(first, entries, sentence, watch), steps_taken(states))
    bucket.mesh = next((sharding(p)[0] for p in params if sharding(p)), None)
    _add(bucket, JointUnit(params, entries, [m.index for m in members], [m.rests for m in members], earlier), states)
    return bucket


def _units(members: list[_Placed]) -> list[list[_Placed]]:
    units: list[list[_Placed]] = []
    packed: list[_Placed] = []
    stacks: dict[Any, list[_Placed]] = {}
    for member in members:
        if member.view is not None:
            stacks.setdefault(member.view, []).append(member)
        elif _stands_alone(member):
            units.append([member])
        else:
            packed.append(member)
    return units + ([packed] if packed else []) + list(stacks.values())


def _stands_alone(member: _Placed) -> bool:
    block = max((codec.block for _, _, codec in member.entries), default=1)
    n = local(member.param).numel()
    return n > PACKED_UP_TO and n % block == 0


def _add_unit(bucket: Bucket, members: list[_Placed], state: MutableMapping[Tensor, dict[str, Any]]) -> None:
    params, indices = [m.param for m in members], [m.index for m in members]
    first = members[0]
    unit: Unit
    if first.view is not None:
        kind = PartsUnit if first.direction.in_parts and is_sharded(first.param) else StackedUnit
        unit = kind(params, first.entries, indices, first.view)
    elif _stands_alone(first) or (len(members) == 1 and _simple(first)):
        unit = FlatUnit(params, first.entries, indices)
    else:
        unit = PackedUnit(params, first.entries, indices)
    _add(bucket, unit, [state[p] for p in params])


def _add(bucket: Bucket, unit: Unit, states: list[dict[str, Any]]) -> None:
    for own, shown in zip(states, unit.adopt(states), strict=True):
        own.setdefault("step", bucket.step)
        own.update(shown)
    bucket.units.append(unit)
    bucket.states += states


def _simple(member: _Placed) -> bool:
    return is_dense(local(member.param)) and all(codec.block == 1 for _, _, codec in member.entries)
