"""Tensors cut into blocks no longer than ``size`` along any dimension, each a small tensor with a state of its own.

A tensor has up to 2ᵏ regions, one for every choice of whole or last pieces along its k dimensions. The blocks of a region have one
shape and are treated as one batch; blocks are counted region by region, row by row.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fallline.optim.engine.parts import Around, Direction, Tensors
from fallline.optim.engine.state import State


class Region(NamedTuple):
    """A grid of ``counts`` blocks of one ``shape`` from ``start`` on, the first of which has number ``first``."""

    start: tuple[int, ...]
    counts: tuple[int, ...]
    shape: tuple[int, ...]
    first: int

    @property
    def blocks(self) -> int:
        """How many."""
        return math.prod(self.counts)

    def window(self, x: Tensor) -> Tensor:
        """The region of a batch of tensors, a view."""
        for i, (start, count, length) in enumerate(zip(self.start, self.counts, self.shape, strict=True)):
            x = x.narrow(i + 1, start, count * length)
        return x

    def cut(self, x: Tensor) -> Tensor:
        """The blocks of a batch of tensors, ``(batch, blocks, *shape)``."""
        k = len(self.shape)
        pieces = [n for pair in zip(self.counts, self.shape, strict=True) for n in pair]
        grid = self.window(x).reshape(len(x), *pieces)
        return grid.permute(0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2)).reshape(len(x), self.blocks, *self.shape)

    def join(self, blocks: Tensor) -> Tensor:
        """The inverse of :meth:`cut`."""
        k = len(self.shape)
        order = [i for pair in zip(range(1, k + 1), range(k + 1, 2 * k + 1), strict=True) for i in pair]
        grid = blocks.reshape(len(blocks), *self.counts, *self.shape).permute(0, *order)
        return grid.reshape(len(blocks), *(n * m for n, m in zip(self.counts, self.shape, strict=True)))


def merged(shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """The shape without dimensions of 1, and with neighbours made one, from the last on, where their product is at most ``limit``."""
    result: list[int] = []
    for n in reversed([n for n in shape if n != 1]):
        if result and result[0] * n <= limit:
            result[0] *= n
        else:
            result.insert(0, n)
    return tuple(result) or (1,)


@functools.cache
def regions(shape: tuple[int, ...], size: int, cap: float = math.inf) -> tuple[Region, ...]:
    """The regions of a tensor, in the order in which blocks are counted; dimensions longer than ``cap`` stay whole."""
    runs = []
    for n in shape:
        whole, rest = divmod(n, size) if n <= cap else (0, n)
        runs.append([run for run in ((0, whole, size), (whole * size, 1, rest)) if run[1] * run[2]])
    result, first = [], 0
    for chosen in itertools.product(*runs):
        start, counts, lengths = zip(*chosen, strict=True)
        result.append(Region(start, counts, lengths, first))
        first += result[-1].blocks
    return tuple(result)


def block_sizes(shape: tuple[int, ...], size: int) -> list[int]:
    """Numbers in every block, in their order."""
    return [math.prod(region.shape) for region in regions(shape, size) for _ in range(region.blocks)]


def all_blocks(x: Tensor, size: int) -> list[Tensor]:
    """The blocks of one tensor, flat, in their order."""
    return [block.flatten() for region in regions(tuple(x.shape), size) for block in region.cut(x.unsqueeze(0))[0]]


def of_blocks(blocks: Sequence[Tensor], shape: tuple[int, ...], size: int) -> Tensor:
    """The inverse of :func:`all_blocks`."""
    out = blocks[0].new_empty(1, *shape)
    for region in regions(shape, size):
        own = torch.stack(list(blocks[region.first : region.first + region.blocks]))
        region.window(out).copy_(region.join(own.view(1, region.blocks, *region.shape)))
    return out[0]


@dataclass(frozen=True)
class Blocked(Around):
    """The inner direction on every block.

    Parameters
    ----------
    inner : Direction
        Of the matrix scope.
    size : int
        The longest side of a block.
    merge : bool
        Whether neighbouring dimensions are made one where that is no longer than ``size``.
    cap : float
        A dimension longer than this is not cut.
    owned : tuple of int, optional
        The blocks that are computed here; the direction of all others is left 0. State then has an entry for every block, so that it
        can move to another process.
    """

    size: int = 1024
    merge: bool = True
    cap: float = math.inf
    owned: tuple[int, ...] | None = None

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return merged(shape, self.size) if self.merge and 0 not in shape else shape or (1,)

    def _chosen(self, shape: tuple[int, ...]) -> list[tuple[Region, list[int]]]:
        """The regions with blocks to be computed here, and which of their blocks those are."""
        everything = regions(shape, self.size, self.cap)
        if self.owned is None:
            return [(region, list(range(region.blocks))) for region in everything]
        found = [(r, [i - r.first for i in self.owned if r.first <= i < r.first + r.blocks]) for r in everything]
        return [(region, own) for region, own in found if own]

    def _entries(self, region: Region, only: bool, dtype: torch.dtype) -> dict[str, tuple[str, State]]:
        """The inner rule's state of one block, by its name here; a tensor that is one block keeps the inner rule's names."""
        plain = only and self.owned is None
        return {name if plain else f"{name}.{region.first}": (name, state)
                for name, state in _declared(self.inner, region.shape, dtype).items()}

    def init(self, p: Tensor) -> dict[str, State]:
        states, only = {}, len(regions(tuple(p.shape), self.size, self.cap)) == 1
        for region, own in self._chosen(tuple(p.shape)):
            labels = None if self.owned is None else tuple(map(str, own))
            for full, (_, state) in self._entries(region, only, p.dtype).items():
                shape = region.shape if state.shape is None else state.shape
                initial = functools.partial(_started, state, region.shape, len(own)) if callable(state.initial) else state.initial
                states[full] = replace(state, shape=(len(own), *shape), initial=initial, labels=labels)
        return states

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        batch, everything = len(g), regions(tuple(g.shape[1:]), self.size, self.cap)
        work = [(region, own, self._entries(region, len(everything) == 1, g.dtype)) for region, own in self._chosen(tuple(g.shape[1:]))]
        if g.numel() == 0 or (not any(entries for *_, entries in work) and self.owned is None):
            return p, {}
        u, new = torch.zeros_like(g), dict[str, Tensor]()
        for region, own, entries in work:
            partly, c.region = len(own) < region.blocks, region.first
            given = [region.cut(x)[:, own] if partly else region.cut(x) for x in (g, p)]
            state = {name: s[full].flatten(0, 1) for full, (name, _) in entries.items()}
            found, changed = self.inner(given[0].flatten(0, 1), given[1].flatten(0, 1), state, c)
            found = found.unflatten(0, (batch, len(own)))
            if partly:
                found = torch.zeros_like(region.cut(g)).index_copy(1, torch.tensor(own, device=g.device), found)
            if len(everything) == 1:
                u = region.join(found)
            else:
                region.window(u).copy_(region.join(found))
            new |= {full: changed[name].unflatten(0, (batch, len(own))) for full, (name, _) in entries.items()
                    if name in changed}
        return u, new


@functools.cache
def _declared(inner: Direction, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, State]:
    return inner.init(torch.empty(shape, device="meta", dtype=dtype))


def _started(state: State, shape: tuple[int, ...], blocks: int, p: Tensor, index: int) -> Tensor:
    """The initial value of the inner state for so many blocks."""
    start = state.start(torch.zeros(shape, dtype=p.dtype, device=p.device), p.dtype, index)
    return start.expand(blocks, *start.shape)
