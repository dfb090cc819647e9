"""All parameters of a group as one vector, for rules that must see them together.

The vector holds the group's parameters in their order: those that have or require gradients at its first step. Where one has no
gradient at a step, the vector holds zeros for it, without decay, and its learning rate is 0: it stays where it is. The vector has one
step count, which all of its parameters show. Sharded parameters are gathered, treated alike on all ranks, and cut again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import full, is_sharded, local_gradient, numel, shard
from .parts import Direction
from .reduction import How
from .state import State, working_dtype
from .storage import Codec, Exact, Storage
from .units import Entries, Unit


def belongs(p: Tensor, present: bool, state: Mapping[str, Any], begun: bool) -> bool:
    """Whether a parameter is part of its group's vector; ``present`` with a gradient, ``begun`` once the group has taken a step."""
    return present or bool(state.get("step")) or (p.requires_grad and not begun)


def has_begun(states: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the parameters with these states have taken a step."""
    return any(state.get("step") for state in states)


def shapes_of(params: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Their shapes, hashable."""
    return tuple(tuple(p.shape) for p in params)


def memory_of(direction: Direction, groups: Iterable[Mapping[str, Any]]) -> int:
    """Bytes of what a direction keeps for the vectors of all groups, in the precision of their arithmetic, before the first step."""
    total = 0
    for group in groups:
        params = [p for p in group["params"] if belongs(p, p.grad is not None, {}, False)]
        if params:
            like = vector_like(params)
            entries = direction.with_shapes(shapes_of(params)).init(like).values()
            total += sum(numel(entry.shape_for(like)) * (entry.dtype or like.dtype).itemsize for entry in entries)
    return total


def steps_taken(states: Iterable[Mapping[str, Any]]) -> int:
    """The step count of a vector from those of its parameters, which must agree."""
    found = {int(state.get("step", 0)) for state in states}
    if len(found) > 1:
        raise ValueError(f"the parameters of a group whose rule sees them as one vector have taken {min(found)} and {max(found)} "
                         "steps; put those that come later into a group of their own with add_param_group")
    return found.pop() if found else 0


def vector_like(params: Sequence[Tensor]) -> Tensor:
    """An empty vector as the rule sees it, without memory."""
    kinds, devices = {working_dtype(p.dtype) for p in params}, {p.device for p in params}
    if len(kinds) > 1 or len(devices) > 1:
        raise ValueError("a rule that sees the parameters of a group as one vector needs them in one precision and on one device, got "
                         f"{', '.join(sorted(map(str, kinds | devices)))}; make a parameter group of each")
    return torch.empty(sum(p.numel() for p in params), dtype=kinds.pop(), device="meta")


def entries_of(declared: Mapping[str, State], storage: Storage, like: Tensor) -> Entries:
    """The entries with their codecs; those in blocks have no place in a vector, and stay whole."""
    return tuple((name, state, _codec(state, storage, like)) for name, state in declared.items())


def _codec(state: State, storage: Storage, like: Tensor) -> Codec:
    if state.dtype is not None:
        return Exact(state.dtype)
    codec = storage.codec(state, like.numel(), like.dtype)
    return Codec(like.dtype) if codec.block > 1 else codec


def where_present(numbers: dict[str, Any], lengths: Sequence[int], present: Sequence[bool], like: Tensor) -> dict[str, Any]:
    """Coefficients of a vector with no rate and no decay where a parameter has no gradient."""
    if all(present):
        return numbers
    mask = torch.cat([like.new_full((n,), float(here)) for n, here in zip(lengths, present, strict=True)])
    return {**numbers, **{name: numbers[name] * mask for name in ("lr", "weight_decay")}}


class JointUnit(Unit):
    """The parameters of one group as a vector ``(n,)``; see the module.

    ``rests`` says which have no gradient. The state of an ``earlier`` unit of the same parameters is taken over where it lies: a window
    of gradients must not be in memory twice because a learning rate has left 0.
    """

    def __init__(self, params: list[Tensor], entries: Entries, indices: list[int], rests: Sequence[bool],
                 earlier: Sequence[Unit] = ()) -> None:
        super().__init__(params, entries, indices)
        self.rests = rests
        alike = [unit for unit in earlier if isinstance(unit, JointUnit) and unit.entries == entries]
        self.kept = {name: found for unit in alike if list(map(id, unit.params)) == list(map(id, params)) for name, found in
                     unit.held.items()}
        self.held: dict[str, tuple[Tensor, list[Tensor]]] = {}
        self.lengths = [p.numel() for p in params]
        self.total = sum(self.lengths)
        self.counts = torch.tensor(self.lengths, device=self.locals[0].device)

    def load(self) -> Tensor:
        return self._joined([full(p) for p in self.params])

    def pack(self, tensors: Sequence[Tensor | None]) -> Tensor:
        return self._joined([None if t is None else full(t) for t in tensors])

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors with a dimension before those of their parameters give as many vectors, ``(rows, n)``."""
        if tensors[0].ndim == self.params[0].ndim:
            return self.pack(tensors)
        return torch.cat([full(t).flatten(1) if t.ndim > 1 else full(t).unsqueeze(1) for t in tensors], 1)

    def _joined(self, tensors: Sequence[Tensor | None]) -> Tensor:
        vector = torch.zeros(self.total, dtype=self.working, device=self.locals[0].device)
        for part, t in zip(vector.split(self.lengths), tensors, strict=True):
            if t is not None:
                part.copy_(t.reshape(-1))
        return vector

    def real(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        return [local_gradient(t, p) for t, p in zip(tensors, self.params, strict=True) if t is not None]

    def store(self, p: Tensor) -> None:
        for part, target, param, rests in zip(p.split(self.lengths), self.locals, self.params, self.rests, strict=True):
            if not rests:
                part = part.view(param.shape)
                target.copy_(shard(part, param) if is_sharded(param) else part)

    def segments(self, x: Tensor, how: How = "sum") -> Tensor:
        return torch.segment_reduce(x, how, lengths=self.counts, initial=0.0, unsafe=True)

    def spread(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.counts, output_size=self.total)

    def adopt(self, states: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        shown: list[dict[str, Tensor]] = [{} for _ in self.params]
        pieces: list[Tensor] = []
        for name, declared, codec in self.entries:
            buffer, parts = self.kept.get(name, (None, []))
            if buffer is None or any(state.get(name) is not part for state, part in zip(states, parts, strict=False)):
                buffer = self._started(declared, codec)
                parts = self.parts(buffer, declared)
                for part, state in zip(parts, states, strict=False):  # one part of the whole
                    if name in state:
                        part.copy_(_fitting(name, state[name], part))
            for part, own in zip(parts, shown, strict=False):
                own[name] = part
            self.held[name] = buffer, parts
            pieces.append(buffer)
        self.pieces, self.kept = tuple(pieces), {}
        return shown

    def _started(self, declared: State, codec: Codec) -> Tensor:
        if declared.initial == "parameter" or callable(declared.initial):
            return declared.start(self.load(), codec.dtype, self.indices[0])
        shape = declared.shape_for(torch.empty(self.total, device="meta"))
        (buffer,) = codec.allocate(numel(shape), self.locals[0].device)
        return buffer.view(shape) if declared.initial == 0.0 else buffer.fill_(float(declared.initial)).view(shape)

    def parts(self, buffer: Tensor, declared: State) -> list[Tensor]:
        """What of an entry ``optimizer.state`` shows with each parameter; an entry of the whole has one part, for the first."""
        if declared.shape is not None:
            return [buffer]
        rows = buffer.shape[:-1]
        return [part.view((*rows, *p.shape)) for part, p in zip(buffer.split(self.lengths, -1), self.params, strict=True)]

    def where_present(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """The coefficients of a step; see :func:`where_present`."""
        like = torch.empty(0, dtype=self.working, device=self.locals[0].device)
        return where_present(numbers, self.lengths, [not rests for rests in self.rests], like)

    def views(self, i: int, buffers: tuple[Tensor, ...], codec: Codec) -> tuple[Tensor, ...]:
        """All of it: what is not finite in one place has spoilt the vector."""
        return buffers


def _fitting(name: str, loaded: Tensor, part: Tensor) -> Tensor:
    if loaded.shape != part.shape:
        raise ValueError(f"the loaded state {name!r} has shape {tuple(loaded.shape)} where {tuple(part.shape)} is needed; load it into "
                         "the model and optimizer that saved it, with the settings of that time")
    return loaded
