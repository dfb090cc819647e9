"""Tensors of one shape as a batch, for rules on matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .across import Across
from .layout import full, is_sharded, local, numel, shard, sharded_as, sharding
from .reduction import How, batched
from .state import State
from .storage import Codec
from .units import Entries, Unit


class StackedUnit(Unit):
    """Tensors of one shape as a batch. Sharded ones are gathered, treated alike on all ranks, and cut again."""

    def __init__(self, params: list[Tensor], entries: Entries, indices: list[int], view: tuple[int, ...]) -> None:
        super().__init__(params, entries, indices)
        self.view = view

    def describe(self, c: Any) -> None:
        c.indices = self.indices

    def load(self) -> Tensor:
        return self.stack([full(p) for p in self.params] if is_sharded(self.params[0]) else self.locals)

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Whole tensors shaped like the parameters as the batch."""
        if len(tensors) == 1:
            return tensors[0].reshape(1, *self.view)
        return torch.stack([t.reshape(self.view) for t in tensors])

    def store(self, p: Tensor) -> None:
        for new, target, param in zip(p.unbind(), self.locals, self.params, strict=True):
            if is_sharded(param):
                target.copy_(shard(new.reshape(param.shape), param))
            elif new.data_ptr() != target.data_ptr():
                target.copy_(new.reshape(target.shape))

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        if is_sharded(self.params[0]):
            return self.stack([full(t) for t in tensors])
        return self.stack(self.real(tensors))

    def segments(self, x: Tensor, how: How = "sum") -> Tensor:
        return batched(x, how).view(-1)

    def started(self, i: int, declared: State) -> Tensor:
        p, seen = self.params[i], self.locals[i]
        if is_sharded(p):  # gathered only where its numbers are asked for: whoever gathers waits for the others
            seen = full(p) if declared.initial == "parameter" else torch.empty(p.shape, dtype=self.working, device=seen.device)
        return declared.start(seen.reshape(self.view), self.working, self.indices[i])

    def spread(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * len(self.view))

    def tiled(self, t: Tensor) -> Tensor:
        return t

    def _shape(self, declared: State) -> tuple[int, ...]:
        return self.view if declared.shape is None else declared.shape

    def allocate(self, declared: State, codec: Codec) -> tuple[Tensor, ...]:
        shape = self._shape(declared)
        (buffer,) = codec.allocate(len(self.params) * numel(shape), self.locals[0].device)
        return (buffer.view(len(self.params), *shape),)

    def views(self, i: int, buffers: tuple[Tensor, ...], codec: Codec) -> tuple[Tensor, ...]:
        return (buffers[0][i],)

    def plain_state(self, i: int, value: Tensor, declared: State) -> Tensor:
        return value.reshape(self._shape(declared))

    def fill(self, i: int, name: str, declared: State, codec: Codec, views: tuple[Tensor, ...], state: Mapping[str, Any]) -> None:
        if declared.labels is not None and int(state.get("step", 0)):
            state = {name: self._joined(i, name, declared.labels, state)}
        super().fill(i, name, declared, codec, views, state)

    def _joined(self, i: int, name: str, labels: Sequence[str], state: Mapping[str, Any]) -> Tensor:
        missing = [label for label in labels if f"{name}.{label}" not in state]
        if missing:
            raise ValueError(
                f"the loaded state has no {name + '.' + missing[0]!r} for the parameter with shape {tuple(self.params[i].shape)}: it "
                "is that of another process, or of other settings. Save and load with torch.distributed.checkpoint, which gives every "
                "process its own part")
        return torch.stack([state[f"{name}.{label}"] for label in labels])

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        declared = next(state for entry, state, _ in self.entries if entry == name)
        if declared.labels is not None:
            return {f"{name}.{label}": part for label, part in zip(declared.labels, buffers[0][i], strict=True)}
        return {name: buffers[0][i]}


class PartsUnit(StackedUnit):
    """This process's parts of sharded matrices of one shape as a batch, for rules that work on parts."""

    def __init__(self, params: list[Tensor], entries: Entries, indices: list[int], view: tuple[int, ...]) -> None:
        Unit.__init__(self, params, entries, indices)
        self.view = view
        mesh, placements = sharding(params[0])
        self.across = Across(mesh, placements, params[0].shape)

    def describe(self, c: Any) -> None:
        super().describe(c)
        c.across = self.across

    def load(self) -> Tensor:
        return self.stack(self.locals)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.stack(self.real(tensors))

    def store(self, p: Tensor) -> None:
        for new, target in zip(p.unbind(), self.locals, strict=True):
            if new.data_ptr() != target.data_ptr():
                target.copy_(new)

    def started(self, i: int, declared: State) -> Tensor:
        if declared.along is None or not callable(declared.initial):
            return Unit.started(self, i, declared)
        whole = torch.empty(self.params[i].shape, dtype=self.working, device=self.locals[i].device)
        return self.across.own(declared.start(whole, self.working, self.indices[i]), declared.along)

    def plain_state(self, i: int, value: Tensor, declared: State) -> Tensor:
        return local(value).reshape(self._shape(declared))

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        declared = next(state for entry, state, _ in self.entries if entry == name)
        part = buffers[0][i]
        if declared.along is not None:
            return {name: self.across.shown(part, declared.along)}
        return {name: sharded_as(part, self.params[i]) if declared.shape is None else part}

