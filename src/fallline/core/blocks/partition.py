"""Partitions of the variables into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fallline.core.operators.columns import positions


def variables(block: Tensor | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return a block as a 1-D tensor of int64; raise ValueError if it holds anything but whole numbers."""
    made = torch.as_tensor(block, device=device).reshape(-1)
    if len(made) and (made.is_floating_point() or made.is_complex() or made.dtype == torch.bool):
        raise ValueError(f"blocks must hold variables as whole numbers, got {made[:5].tolist()} of {made.dtype}; mask.nonzero() makes "
                         "them of a mask")
    return made.to(torch.int64)


class Partition:
    """Disjoint blocks that cover the variables 0, …, n − 1.

    Parameters
    ----------
    blocks : sequence of 1-D tensors or lists of int
        Every variable is in exactly one.
    size : int
        n.

    Raises
    ------
    ValueError
        Blocks that overlap, leave a variable out, are empty, or hold what is no variable, as floats and booleans are.
    """

    def __init__(self, blocks: Sequence[Tensor | Sequence[int]], size: int, device: torch.device | str = "cpu") -> None:
        indices = [variables(block, device) for block in blocks]
        lengths = [len(block) for block in indices]
        if not all(lengths):
            raise ValueError(f"blocks must not be empty, and block {lengths.index(0) if lengths else 0} of {len(lengths)} is")
        order = torch.cat(indices)
        if int(order.min()) < 0 or int(order.max()) >= size:
            raise ValueError(f"blocks must hold variables from 0 to {size - 1}, got {int(order.min())} to {int(order.max())}")
        times = torch.bincount(order, minlength=size)
        if int(times.max()) > 1:
            raise ValueError(f"blocks must not overlap, and variable {int(times.argmax())} is in {int(times.max())} of them")
        if int(times.min()) == 0:
            raise ValueError(f"blocks must cover all {size} variables, and variable {int(times.argmin())} is in none and would not "
                             "move")
        self._fill(order, lengths)

    def _fill(self, order: Tensor, lengths: Sequence[int]) -> None:
        self.order = order
        self.start = torch.tensor([0, *lengths], device=order.device).cumsum(0)
        self._bounds = self.start.tolist()
        self.lengths = torch.tensor(lengths, device=order.device)
        self.member = torch.empty_like(order)
        """Which block each variable is in, shape (n,)."""
        self.member[order] = torch.repeat_interleave(self.lengths)

    @classmethod
    def consecutive(cls, size: int, width: int, device: torch.device | str = "cpu") -> Partition:
        """Return blocks of ``width`` neighbours, the last one perhaps smaller."""
        made = cls.__new__(cls)
        made._fill(torch.arange(size, device=device), [min(width, size - first) for first in range(0, size, width)])
        return made

    def without(self, dead: Tensor) -> Partition:
        """Return the blocks without the variables marked in ``dead`` (n,), and without those that are then empty."""
        kept = ~dead[self.order]
        made = Partition.__new__(Partition)
        lengths = torch.zeros_like(self.lengths).index_add_(0, self.member[self.order], kept.to(self.lengths.dtype))
        made.order = self.order[kept]
        made.lengths = lengths[lengths > 0]
        made.start = torch.cat([lengths.new_zeros(1), made.lengths.cumsum(0)])
        made._bounds = made.start.tolist()
        # A dead variable counts for the first block: it has no derivative and adds nothing there.
        made.member = torch.zeros_like(self.member)
        made.member[made.order] = torch.repeat_interleave(made.lengths)
        return made

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: int) -> Tensor:
        return self.order[self._bounds[number]:self._bounds[number + 1]]

    def sums(self, entries: Tensor) -> Tensor:
        """Return the sum over each block of numbers (n,), shape (blocks,)."""
        return entries.new_zeros(len(self)).index_add_(0, self.member, entries)

    def some_sums(self, entries: Callable[[Tensor], Tensor], numbers: Tensor) -> Tensor:
        """Return the sums of these blocks alone, of numbers that ``entries`` gives for variables."""
        at, of = positions(self.start, numbers)
        found = entries(self.order[at])
        return found.new_zeros(len(numbers)).index_add_(0, of, found)

    def __repr__(self) -> str:
        return f"Partition({len(self.member):,} variables in {len(self):,} blocks of up to {int(self.lengths.max()):,})"
