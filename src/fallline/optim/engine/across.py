"""Sums and rows of matrices of which every process holds a part.

A rule that works on parts asks ``c.across``; where matrices are whole, every answer is what it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Alone:
    """Matrices that are whole here."""

    def sum_rows(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes that hold other rows."""
        return x

    def sum_columns(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes that hold other columns."""
        return x

    def all_rows(self, x: Tensor) -> Tensor:
        """``(batch, rows, k)`` of all processes' rows from those of the own ones."""
        return x

    def own_rows(self, x: Tensor) -> Tensor:
        """The own rows of ``(batch, rows, k)``."""
        return x


ALONE = Alone()


class Across(Alone):
    """Matrices of one global shape that are cut alike over a mesh.

    Attributes
    ----------
    traffic : int
        Bytes of what this process gave to collectives so far.
    """

    def __init__(self, mesh: Any, placements: Sequence[Any], shape: torch.Size) -> None:
        self.mesh, self.placements, self.shape = mesh, placements, shape
        self.traffic = 0

    def along(self, axis: int) -> list[Any]:
        """How something with one row for every index along an axis of the matrices is placed."""
        from torch.distributed.tensor import Replicate

        return [_first(q) if _axis(q) == axis else Replicate() for q in self.placements]

    def sum_rows(self, x: Tensor) -> Tensor:
        return self._sum(x, 0)

    def sum_columns(self, x: Tensor) -> Tensor:
        return self._sum(x, 1)

    def _sum(self, x: Tensor, axis: int) -> Tensor:
        dims = [i for i, q in enumerate(self.placements) if _axis(q) == axis]
        x = x.clone() if dims else x
        for dim in dims:
            self.traffic += x.nbytes
            torch.distributed.all_reduce(x, group=self.mesh.get_group(dim))
        return x

    def all_rows(self, x: Tensor) -> Tensor:
        if not any(_axis(q) == 0 for q in self.placements):
            return x
        self.traffic += x.nbytes
        rows = self._as_rows(x)
        return rows.full_tensor().view(self.shape[0], len(x), -1).transpose(0, 1)

    def own_rows(self, x: Tensor) -> Tensor:
        return self.own(x.transpose(0, 1).flatten(1), 0).unflatten(1, (len(x), -1)).transpose(0, 1)

    def own(self, whole: Tensor, axis: int) -> Tensor:
        """This process's part of something with one row for every index along an axis."""
        from torch.distributed.tensor import DTensor, Replicate

        everywhere = DTensor.from_local(whole, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        part: Tensor = everywhere.redistribute(placements=self.along(axis)).to_local()
        return part

    def shown(self, part: Tensor, axis: int) -> Tensor:
        """The own part of something with one row for every index along an axis, as a DTensor."""
        from torch.distributed.tensor import DTensor

        shape = (self.shape[axis], *part.shape[1:])
        return DTensor.from_local(part, self.mesh, self.along(axis), run_check=False, shape=torch.Size(shape), stride=_strides(shape))

    def _as_rows(self, x: Tensor) -> Any:
        from torch.distributed.tensor import DTensor

        flat = x.transpose(0, 1).flatten(1).contiguous()
        shape = (self.shape[0], flat.shape[1])
        return DTensor.from_local(flat, self.mesh, self.along(0), run_check=False, shape=torch.Size(shape), stride=_strides(shape))


def _axis(placement: Any) -> int | None:
    """The dimension that a placement cuts, in pieces or in strides."""
    return getattr(placement, "dim", None)


def _first(placement: Any) -> Any:
    """The same cut of the first dimension."""
    if _axis(placement) == 0:
        return placement
    strides = {"split_factor": placement.split_factor} if hasattr(placement, "split_factor") else {}
    return type(placement)(0, **strides)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.insert(0, step)
        step *= n
    return tuple(strides)
