"""Blocks of columns of a matrix, dense or sparse: what a block step touches, and no more.

A dense matrix is kept by columns (a copy, where it was by rows), a sparse one as compressed columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Rows = Tensor | slice


def positions(start: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the entries of ``rows`` lie in the flat tensor, row after row, and which of the rows each belongs to."""
    lengths = start[rows + 1] - start[rows]
    of = torch.repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths
    return torch.arange(len(of), device=of.device) + (start[rows] - before)[of], of


class Columns(Protocol):
    """The columns A_b of a matrix A (m, n) for blocks b of column numbers (k,)."""

    def adjoint(self, block: Tensor, u: Callable[[Rows], Tensor]) -> Tensor:
        """Return A_bᵀ u, shape (k,); ``u`` gives its entries at rows."""

    def add(self, z: Tensor, block: Tensor, d: Tensor) -> None:
        """Add A_b d to ``z`` (m,), in place."""

    def part(self, block: Tensor) -> tuple[Rows, Tensor]:
        """Return the rows that A_b touches, and A_b there: a dense matrix (rows, k)."""

    def triplets(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, number within the block and value of every nonzero entry of A_b."""


class DenseColumns:
    """Columns of a dense matrix."""

    def __init__(self, A: Tensor) -> None:
        self.by_column = A.mT.contiguous()

    def adjoint(self, block: Tensor, u: Callable[[Rows], Tensor]) -> Tensor:
        """Return A_bᵀ u."""
        return self.by_column[block] @ u(slice(None))

    def add(self, z: Tensor, block: Tensor, d: Tensor) -> None:
        """Add A_b d to ``z``."""
        z.addmv_(self.by_column[block].mT, d)

    def part(self, block: Tensor) -> tuple[Rows, Tensor]:
        """Return all rows, and A_b."""
        return slice(None), self.by_column[block].mT

    def triplets(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nonzero entries of A_b."""
        rows = self.by_column[block]
        column, row = rows.nonzero(as_tuple=True)
        return row, column, rows[column, row]


class SparseColumns:
    """Columns of a sparse matrix. A gathered block has as many entries as the data say, which a GPU has to be waited for."""

    def __init__(self, A: Tensor) -> None:
        entries = A.to_sparse_coo().coalesce()
        row, column = entries.indices()
        order = column.argsort(stable=True)
        self.row, self.value = row[order], entries.values()[order]
        counts = torch.bincount(column, minlength=A.shape[1])
        self.start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def triplets(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nonzero entries of A_b."""
        at, of = positions(self.start, block)
        return self.row[at], of, self.value[at]

    def adjoint(self, block: Tensor, u: Callable[[Rows], Tensor]) -> Tensor:
        """Return A_bᵀ u, with u at the touched rows only."""
        row, of, value = self.triplets(block)
        return value.new_zeros(len(block)).index_add_(0, of, value * u(row))

    def add(self, z: Tensor, block: Tensor, d: Tensor) -> None:
        """Add A_b d to ``z``."""
        row, of, value = self.triplets(block)
        z.index_add_(0, row, value * d[of])

    def part(self, block: Tensor) -> tuple[Rows, Tensor]:
        """Return the touched rows, and A_b there."""
        row, of, value = self.triplets(block)
        rows, where = row.unique(return_inverse=True)
        return rows, value.new_zeros(len(rows), len(block)).index_put_((where, of), value)


def columns_of(A: Tensor) -> DenseColumns | SparseColumns:
    """Return the columns of a matrix of any layout."""
    return DenseColumns(A) if A.layout is torch.strided else SparseColumns(A)


def diagonal_block(columns: DenseColumns | SparseColumns, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nonzero entries of H_bb of a square matrix as row and column within the block, and value."""
    row, of, value = columns.triplets(block)
    ordered, rank = block.sort()
    place = torch.searchsorted(ordered, row).clamp_(max=len(block) - 1)
    inside = ordered[place] == row
    return rank[place[inside]], of[inside], value[inside]
