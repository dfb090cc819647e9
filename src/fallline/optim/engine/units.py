"""Work items: how one or many parameters appear to a kernel as one plain tensor.

- :class:`FlatUnit`: a big tensor as a 1-D view of its own memory;
- :class:`PackedUnit`: many small tensors copied into one flat buffer and back;
- :class:`StackedUnit`: tensors of one shape as a batch ``(B, *view)``, for the matrix scope.

State lives in the unit's own layout for good; ``optimizer.state[p]`` shows views of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import flat, flat_as, is_dense, is_sharded, local, local_gradient, numel, sharded_as
from .state import State, working_dtype
from .storage import Codec

Entries = tuple[tuple[str, State, Codec], ...]


class Unit:
    """Parameters treated by one kernel call.

    Attributes
    ----------
    params : list of Tensor
    pieces : tuple of Tensor
        The encoded state, in the order of the entries.
    lengths : list of int
        Elements of every parameter inside ``p``, for reductions.
    """

    def __init__(self, params: list[Tensor], entries: Entries) -> None:
        self.params = params
        self.entries = entries
        self.working = working_dtype(params[0].dtype)
        self.locals = [local(p) for p in params]
        self.plain = not (is_sharded(params[0]) or params[0].is_complex())
        self.block = max((codec.block for _, _, codec in entries), default=1)
        self.lengths = [t.numel() for t in self.locals]
        self.pieces: tuple[Tensor, ...] = ()

    def load(self) -> Tensor:
        """The parameters as one plain tensor, which the kernel overwrites."""
        raise NotImplementedError

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Gradients (or anything laid out like the parameters) as one plain tensor like that of :meth:`load`."""
        raise NotImplementedError

    def store(self, p: Tensor) -> None:
        """Write what the kernel made of ``load()`` to the parameters."""
        raise NotImplementedError

    def tiled(self, t: Tensor) -> Tensor:
        """A flat tensor as rows of one quantisation block, where there are any."""
        return t.view(-1, self.block) if self.block > 1 else t

    def segments(self, x: Tensor) -> Tensor:
        """Sums of ``x`` over every parameter, ``(len(params),)``."""
        raise NotImplementedError

    def spread(self, values: Tensor) -> Tensor:
        """One number a parameter, ready to multiply the kernel's tensors."""
        raise NotImplementedError

    def real(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gradients as local real tensors."""
        if self.plain:
            return [t.detach() if t.requires_grad else t for t in tensors]
        return [local_gradient(t, p) for t, p in zip(tensors, self.params, strict=True)]

    def adopt(self, states: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Move the states into this unit's layout (starting what is missing) and return the views to show."""
        shown: list[dict[str, Tensor]] = [{} for _ in self.params]
        pieces: list[Tensor] = []
        for name, declared, codec in self.entries:
            buffers = self.allocate(declared, codec)
            for i, state in enumerate(states):
                views = self.views(i, buffers, codec)
                self.fill(i, name, declared, codec, views, state)
                shown[i].update(self.shown(i, name, codec, buffers))
            pieces += [self.tile_piece(b, j) for j, b in enumerate(buffers)]
        self.pieces = tuple(pieces)
        return shown

    def tile_piece(self, buffer: Tensor, index: int) -> Tensor:
        """The buffer as the kernel takes it; scales (index 1) stay one number a block."""
        return self.tiled(buffer) if index == 0 else buffer

    def allocate(self, declared: State, codec: Codec) -> tuple[Tensor, ...]:
        """Buffers for one entry of all parameters."""
        raise NotImplementedError

    def views(self, i: int, buffers: tuple[Tensor, ...], codec: Codec) -> tuple[Tensor, ...]:
        """The part of the buffers that belongs to parameter ``i``, in the unit's layout."""
        raise NotImplementedError

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The part of the buffers that belongs to parameter ``i``, shaped for ``optimizer.state``."""
        raise NotImplementedError

    def plain_state(self, i: int, value: Tensor, declared: State) -> Tensor:
        """A visible entry in this unit's layout."""
        raise NotImplementedError

    def fill(
        self,
        i: int,
        name: str,
        declared: State,
        codec: Codec,
        views: tuple[Tensor, ...],
        state: Mapping[str, Any],
    ) -> None:
        """Fill parameter ``i``'s part of the buffers from its state, or with the initial value."""
        if all(name + piece in state for piece in codec.pieces) and state[name].dtype == codec.dtype:
            views[0].copy_(self.plain_state(i, state[name], declared))
            for piece, view in zip(codec.pieces[1:], views[1:], strict=True):
                view.copy_(state[name + piece])
            return
        if name in state and state[name].is_floating_point() and len(codec.pieces) == 1:
            views[0].copy_(self.plain_state(i, state[name], declared))
            return
        if name in state and not state[name].is_floating_point():
            raise ValueError(
                f"the loaded state {name!r} is quantised, but this optimizer keeps it in {codec.dtype}; "
                "build the optimizer with the storage that saved it"
            )
        if name in state:
            start = self.plain_state(i, state[name], declared)
        elif declared.initial == 0.0:
            return
        else:
            start = self.plain_state(i, declared.start(self.seen(i), self.working), declared)
        self.encode_into(views, start.to(self.working), codec)

    def seen(self, i: int) -> Tensor:
        """Parameter ``i`` as the direction's ``init`` sees it."""
        return self.locals[i]

    def encode_into(self, views: tuple[Tensor, ...], x: Tensor, codec: Codec) -> None:
        """Write ``x`` in the codec's encoding."""
        if codec.block == 1:
            views[0].copy_(codec.encode(x)[0])
            return
        padded = x.new_zeros(-(-x.numel() // codec.block) * codec.block)
        padded[: x.numel()] = x
        codes, scale = codec.encode(padded.view(-1, codec.block))
        views[0].copy_(codes.view(-1)[: x.numel()])
        views[1].copy_(scale)


class FlatUnit(Unit):
    """One tensor; its length is a multiple of the storage's block."""

    def __init__(self, params: list[Tensor], entries: Entries) -> None:
        super().__init__(params, entries)
        self.dense = is_dense(self.locals[0])
        self.like = self.locals[0] if self.dense else torch.empty(self.locals[0].shape, device="meta")
        if self.dense:
            self.p = self.tiled(flat(self.locals[0]))

    def load(self) -> Tensor:
        return self.p if self.dense else self.tiled(self.locals[0].contiguous().view(-1))

    def store(self, p: Tensor) -> None:
        if not self.dense:
            self.locals[0].copy_(p.view(self.locals[0].shape))

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.tiled(flat_as(self.real(tensors)[0], self.like))

    def segments(self, x: Tensor) -> Tensor:
        return x.sum().reshape(1)

    def spread(self, values: Tensor) -> Tensor:
        return values[0]

    def allocate(self, declared: State, codec: Codec) -> tuple[Tensor, ...]:
        return codec.allocate(self.lengths[0], self.locals[0].device)

    def views(self, i: int, buffers: tuple[Tensor, ...], codec: Codec) -> tuple[Tensor, ...]:
        return buffers

    def plain_state(self, i: int, value: Tensor, declared: State) -> Tensor:
        return flat_as(local(value), self.like)

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        view = buffers[0].as_strided(self.like.shape, self.like.stride())
        rest = {name + piece: b for piece, b in zip(codec.pieces[1:], buffers[1:], strict=True)}
        return {name: sharded_as(view, self.params[0]), **rest}


class PackedUnit(Unit):
    """Many tensors in one buffer, each padded with zeros to a multiple of the storage's block."""

    def __init__(self, params: list[Tensor], entries: Entries) -> None:
        super().__init__(params, entries)
        device, dtype = self.locals[0].device, self.locals[0].dtype
        self.sizes = [-(-n // self.block) * self.block for n in self.lengths]
        self.offsets = _offsets(self.sizes)
        self.total = sum(self.sizes)
        self.pads = [torch.zeros(s - n, dtype=dtype, device=device) for s, n in zip(self.sizes, self.lengths, strict=True)]
        self.padded = self.sizes != self.lengths
        self.buffer = torch.zeros(self.total, dtype=dtype, device=device)
        self.parts = [self._part(i, self.buffer).view(t.shape) for i, t in enumerate(self.locals)]
        self.gradient = torch.zeros_like(self.buffer)
        self.gradient_parts = [self._part(i, self.gradient).view(t.shape) for i, t in enumerate(self.locals)]

    def _part(self, i: int, buffer: Tensor) -> Tensor:
        return buffer[self.offsets[i] : self.offsets[i] + self.lengths[i]]

    def _join(self, tensors: list[Tensor]) -> Tensor:
        if self.padded:
            tensors = [t for pair in zip(tensors, self.pads, strict=True) for t in pair]
        joined: Tensor = torch._C._nn.flatten_dense_tensors(tensors)
        return joined

    def load(self) -> Tensor:
        torch._foreach_copy_(self.parts, self.locals)
        return self.tiled(self.buffer)

    def store(self, p: Tensor) -> None:
        torch._foreach_copy_(self.locals, self.parts)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        real = self.real(tensors)
        if any(t.dtype != self.gradient.dtype for t in real):  # an estimate in a higher precision than the parameters'
            return self.tiled(self._join(real))
        torch._foreach_copy_(self.gradient_parts, real)
        return self.tiled(self.gradient)

    def segments(self, x: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in x.reshape(-1).split(self.sizes)])

    def spread(self, values: Tensor) -> Tensor:
        repeats = torch.tensor(self.sizes, device=values.device)
        return self.tiled(values.repeat_interleave(repeats, output_size=self.total))

    def allocate(self, declared: State, codec: Codec) -> tuple[Tensor, ...]:
        return codec.allocate(self.total, self.locals[0].device)

    def views(self, i: int, buffers: tuple[Tensor, ...], codec: Codec) -> tuple[Tensor, ...]:
        start, stop = self.offsets[i] // codec.block, (self.offsets[i] + self.sizes[i]) // codec.block
        return (self._part(i, buffers[0]), *(b[start:stop] for b in buffers[1:]))

    def plain_state(self, i: int, value: Tensor, declared: State) -> Tensor:
        return local(value).reshape(-1)

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        first, *rest = self.views(i, buffers, codec)
        shown = {name: sharded_as(first.view(self.locals[i].shape), self.params[i])}
        return shown | {name + piece: b for piece, b in zip(codec.pieces[1:], rest, strict=True)}


class StackedUnit(Unit):
    """Tensors of one shape as a batch. Sharded ones are gathered, treated alike on all ranks, and cut again."""

    def __init__(self, params: list[Tensor], entries: Entries, view: tuple[int, ...]) -> None:
        super().__init__(params, entries)
        self.view = view
        self.full = [_full(p) for p in params] if is_sharded(params[0]) else self.locals

    def load(self) -> Tensor:
        if is_sharded(self.params[0]):
            self.full = [_full(p) for p in self.params]
        return self._stack(self.full)

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        if len(tensors) == 1:
            return tensors[0].reshape(1, *self.view)
        return torch.stack([t.reshape(self.view) for t in tensors])

    def store(self, p: Tensor) -> None:
        for new, target, param in zip(p.unbind(), self.locals, self.params, strict=True):
            if is_sharded(param):
                target.copy_(_shard(new.reshape(param.shape), param))
            elif new.data_ptr() != target.data_ptr():
                target.copy_(new.reshape(target.shape))

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        if is_sharded(self.params[0]):
            return self._stack([_full(t) for t in tensors])
        return self._stack(self.real(tensors))

    def segments(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1)

    def spread(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * len(self.view))

    def tiled(self, t: Tensor) -> Tensor:
        return t

    def seen(self, i: int) -> Tensor:
        return self.full[i].reshape(self.view)

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

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {name: buffers[0][i]}


def _offsets(sizes: list[int]) -> list[int]:
    offsets = [0]
    for size in sizes[:-1]:
        offsets.append(offsets[-1] + size)
    return offsets


def _full(t: Any) -> Tensor:
    whole: Tensor = t.detach().full_tensor()
    return whole


def _shard(full: Tensor, p: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    replicated = DTensor.from_local(full, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)
    part: Tensor = replicated.redistribute(placements=p.placements).to_local()
    return part
