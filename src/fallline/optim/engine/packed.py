"""Many small tensors as one: copied into a standing buffer and back, so that a thousand biases cost one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from .layout import is_dense, local, sharded_as
from .reduction import How
from .state import State
from .storage import Codec
from .units import Entries, Unit


class PackedUnit(Unit):
    """Many tensors in one buffer, each padded with zeros to a multiple of the storage's block."""

    def __init__(self, params: list[Tensor], entries: Entries, indices: list[int]) -> None:
        super().__init__(params, entries, indices)
        device, dtype = self.locals[0].device, self.locals[0].dtype
        self.sizes = [-(-n // self.block) * self.block for n in self.lengths]
        self.offsets = _offsets(self.sizes)
        self.total = sum(self.sizes)
        self.counts = torch.tensor(self.sizes, device=device)
        self.pads = [torch.zeros(s - n, dtype=dtype, device=device) for s, n in zip(self.sizes, self.lengths, strict=True)]
        self.padded = self.sizes != self.lengths
        self.flat = all(t.ndim == 1 for t in self.locals)
        dense = all(is_dense(t) and t.is_contiguous() for t in self.locals)
        self.sources = self._interleaved([t.view(-1) for t in self.locals]) if dense else None
        self.buffer = torch.zeros(self.total, dtype=dtype, device=device)
        self.parts = [self._part(i, self.buffer).view(t.shape) for i, t in enumerate(self.locals)]
        self.gradient = torch.zeros_like(self.buffer)
        self.gradient_parts = [self._part(i, self.gradient).view(t.shape) for i, t in enumerate(self.locals)]

    def _part(self, i: int, buffer: Tensor) -> Tensor:
        return buffer[self.offsets[i] : self.offsets[i] + self.lengths[i]]

    def _interleaved(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t for pair in zip(tensors, self.pads, strict=True) for t in pair] if self.padded else tensors

    def load(self) -> Tensor:
        # One concatenation takes half the time of a copy of each; padding, where the kernel wrote, is cleared.
        if self.sources is not None:
            torch.cat(self.sources, out=self.buffer)
        else:
            self.buffer.zero_()
            torch._foreach_copy_(self.parts, self.locals)
        return self.tiled(self.buffer)

    def store(self, p: Tensor) -> None:
        torch._foreach_copy_(self.locals, self.parts)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        real = self.real(tensors)
        if set(map(_dtype, real)) != {self.gradient.dtype}:
            return self.join(tensors)
        if self.flat:
            torch.cat(self._interleaved(real), out=self.gradient)
        else:
            torch._foreach_copy_(self.gradient_parts, real)
        return self.tiled(self.gradient)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        joined: Tensor = torch._C._nn.flatten_dense_tensors(self._interleaved(self.real(tensors)))
        return self.tiled(joined)

    def segments(self, x: Tensor, how: How = "sum") -> Tensor:
        return torch.segment_reduce(x.reshape(-1), how, lengths=self.counts, initial=0.0, unsafe=True)

    def spread(self, values: Tensor) -> Tensor:
        return self.tiled(values.repeat_interleave(self.counts, output_size=self.total))

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


_dtype = attrgetter("dtype")


def _offsets(sizes: list[int]) -> list[int]:
    offsets = [0]
    for size in sizes[:-1]:
        offsets.append(offsets[-1] + size)
    return offsets
