"""Decode, rule, encode: the one function that runs on plain tensors, eagerly in cache-sized chunks or compiled.

A :class:`Kernel` is hashable and holds only fixed choices, which is what a compiled function is shared by.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arithmetic import add_scaled, overwriting
from .parts import Average, Coefficients, Direction, Move
from .state import working_dtype
from .statistics import STATISTICS
from .storage import Codec

Pieces = tuple[Tensor, ...]

CHUNK = 256 * 1024
"""Elements that eager kernels treat at a time, so that intermediate results stay in the cache."""


LONGEST_DOT = 2**31 - 1
"""cuBLAS counts in 32 bits."""


@dataclass(frozen=True)
class Kernel:
    """A rule with its codecs; see the module."""

    direction: Direction
    move: Move
    average: Average | None
    codecs: tuple[tuple[str, Codec], ...]
    maximize: bool
    decays: bool
    watch: bool

    def decode(self, pieces: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The plain state."""
        state, i = {}, 0
        for name, codec in self.codecs:
            state[name] = codec.decode(tuple(pieces[i : i + len(codec.pieces)]), dtype)
            i += len(codec.pieces)
        return state

    def encode(self, new: Mapping[str, Tensor]) -> list[Tensor | None]:
        """The pieces of the entries in ``new``; ``None`` for the pieces of the others."""
        pieces: list[Tensor | None] = []
        for name, codec in self.codecs:
            pieces += codec.encode(new[name]) if name in new else [None] * len(codec.pieces)
        return pieces

    def gradient(self, g: Tensor, x: Tensor, c: Any) -> Tensor:
        """The gradient in the working precision, of the loss to be minimised, with coupled decay."""
        g = g.to(x.dtype)
        if self.maximize:
            g = -g
        return add_scaled(g, c.weight_decay, x) if self.decays and self.move.coupled else g

    def finish(self, x: Tensor, u: Tensor, s: Mapping[str, Tensor], new: dict[str, Tensor], c: Any) -> Tensor:
        """The point after the move; its average joins the new state."""
        moved = self.move(x, u, c, self.decays)
        if type(self.move).carry is not Move.carry:
            new.update(self.move.carry(x, moved, new))
        x = moved
        if self.average is not None:
            new["average"] = self.average(x, s["average"], c)
        return x

    def whole(self, c: Any, p: Tensor, g: Tensor, pieces: Pieces) -> tuple[list[Tensor | None], Tensor]:
        """The new parameter and pieces, and the direction."""
        x = p.to(working_dtype(p.dtype))
        g = self.gradient(g, x, c)
        s = self.decode(pieces, x.dtype)
        u, new = self.direction(g, x, s, c)
        new = dict(new)
        x = self.finish(x, u, s, new, c)
        return [x.to(p.dtype), *self.encode(new)], u

    def first(
        self, c: Any, p: Tensor, g: Tensor, pieces: Pieces, needs: tuple[str, ...]
    ) -> tuple[list[Tensor | None], Tensor, list[Tensor]]:
        """Of a step in two passes: the pieces, the direction, and the integrands of the statistics."""
        x = p.to(working_dtype(p.dtype))
        g = self.gradient(g, x, c)
        s = self.decode(pieces, x.dtype)
        u, new = self.direction(g, x, s, c)
        return self.encode(new), u, [STATISTICS[name](g, u, x, s, c) for name in needs]

    def before(self, c: Any, p: Tensor, g: Tensor, pieces: Pieces, needs: tuple[str, ...]) -> list[Tensor]:
        """The integrands of statistics before any direction, or of the gradient as the direction."""
        x = p.to(working_dtype(p.dtype))
        g = self.gradient(g, x, c)
        s = self.decode(pieces, x.dtype)
        return [STATISTICS[name](g, g, x, s, c) for name in needs]

    def second(self, c: Any, p: Tensor, u: Tensor, pieces: Pieces) -> list[Tensor | None]:
        """Of a step in two passes: the move."""
        x = p.to(working_dtype(p.dtype))
        s = self.decode(pieces, x.dtype)
        new = dict(s) if type(self.move).carry is not Move.carry else {}
        x = self.finish(x, u, s, new, c)
        return [x.to(p.dtype), *self.encode(new)]

    def observe(self, c: Any, name: str, value: Tensor, pieces: Pieces) -> list[Tensor | None]:
        """The pieces after an extra oracle's result."""
        dtype = working_dtype(value.dtype)
        return self.encode(self.direction.observe(name, value.to(dtype), self.decode(pieces, dtype), c))

    def alarm(self, p: Tensor, u: Tensor, g: Tensor) -> Tensor | None:
        """A number that is not finite if the direction, the gradient or its square is not (or the point, in float16).

        A sum that overflows is a false alarm, which the search for the culprit finds out.
        """
        if not self.watch or u.numel() == 0:
            return None
        dtype = working_dtype(u.dtype)
        u, g = u.to(dtype), g.to(dtype)
        found = _dot(u, g) + _dot(g, g)
        return found + 0 * p.sum(dtype=dtype) if p.dtype == torch.float16 else found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.numel() > LONGEST_DOT:
        return (a * b).sum()
    return torch.dot(a.reshape(-1), b.reshape(-1))


def write(targets: Sequence[Tensor], values: Sequence[Tensor | None]) -> None:
    """Copy what changed."""
    for target, value in zip(targets, values, strict=True):
        if value is not None and value is not target:
            target.copy_(value)


def run_eagerly(kernel: Kernel, c: Coefficients, p: Tensor, g: Tensor, pieces: Pieces, chunked: bool) -> Tensor | None:
    """Take the step in place; returns the alarm."""
    rows = max(1, CHUNK // numel_of_row(p)) if chunked else max(1, p.shape[0])
    alarms = []
    with overwriting():
        for part in zip(*parts(lambda t: t.split(rows), (p, g, *pieces))):  # noqa: B905 - numbers are repeated without end
            new, u = kernel.whole(c, part[0], part[1], part[2:])
            write((part[0], *part[2:]), new)
            alarm = kernel.alarm(part[0], u, part[1])  # while both are in the cache
            alarms += [] if alarm is None else [alarm]
    return torch.stack(alarms).sum() if alarms else None


def parts(split: Callable[[Tensor], Sequence[Tensor]], tensors: Sequence[Tensor]) -> Iterator[Iterable[Tensor]]:
    """The parts of every tensor; a number of its own, which is not as long, is part of all."""
    return (split(t) if len(t) == len(tensors[0]) else itertools.repeat(t) for t in tensors)


def numel_of_row(p: Tensor) -> int:
    """Elements in one index of the first dimension."""
    return p[0].numel() if p.ndim > 1 else 1
