"""Products with the inverse of a damped empirical Fisher matrix of m gradients, without any matrix of d × d.

    F = λ I + (1/m) Γᵀ Γ,  rows of Γ the gradients;   F⁻¹ x = (x − Γᵀ (m λ I + S)⁻¹ Γ x) / λ,  S = Γ Γᵀ
    of a row of the window, Γᵀ e:                     F⁻¹ Γᵀ e = m Γᵀ (m λ I + S)⁻¹ e

The second form subtracts nothing: where λ is far below the gradients' squares the first loses all digits of a vector in their span.

A window keeps the last m gradients, rows of zeros at first, and always divides by m. A new gradient takes the place of the oldest, and
one row and column of S with it: O(d m), and O(m³) for the factor of m λ I + S; a product costs O(d m + m²). Rows are dense, sparse with
k entries each, for which d m becomes m k, or of matrices of low rank. What is of size m is computed in float64, whatever the rows are
kept in, with a damping of at least its rounding: m λ counts as no less than 64 ε tr S, ε = 2⁻⁵², below which the factor need not exist.

Frantar, Kurtic, Alistarh: M-FAC: Efficient Matrix-Free Approximations of Second-Order Information, NeurIPS 2021, arXiv 2107.03356,
whose recursions give the same numbers. Compressed rows: Modoranu et al., ICML 2024, arXiv 2306.06098.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from fallline.core.checks import check_count

CHUNK = 1 << 20
"""Entries of dense rows that are converted to float64 at a time."""

SparseRow = tuple[Tensor, Tensor]
"""Indices and values, both ``(k,)``."""


class Rows(Protocol):
    """Γ, ``(m, d)``."""

    def dot(self, x: Tensor) -> Tensor:
        """Γ x in float64, ``(m,)``."""

    def combine(self, y: Tensor) -> Tensor:
        """Γᵀ y in float64, ``(d,)``."""


@dataclass(frozen=True)
class DenseRows:
    """Γ as a table ``(m, d)``."""

    table: Tensor

    def _columns(self) -> list[slice]:
        m, d = self.table.shape
        width = d if self.table.dtype == torch.float64 else max(1, CHUNK // max(m, 1))
        return [slice(i, i + width) for i in range(0, d, max(width, 1))]

    def dot(self, x: Tensor) -> Tensor:
        found = torch.zeros(len(self.table), dtype=torch.float64, device=x.device)
        for part in self._columns():
            found = found + self.table[:, part].double() @ x[part].double()
        return found

    def combine(self, y: Tensor) -> Tensor:
        parts = [y @ self.table[:, part].double() for part in self._columns()]
        return torch.cat(parts) if parts else y.new_zeros(0)


@dataclass(frozen=True)
class SparseRows:
    """Γ as the indices and values ``(m, k)`` of what is not 0 in rows of ``width`` numbers; indices in a row differ."""

    indices: Tensor
    values: Tensor
    width: int

    def dot(self, x: Tensor) -> Tensor:
        found = x.index_select(0, self.indices.view(-1)).view(self.values.shape)
        return (found.double() * self.values.double()).sum(1)

    def combine(self, y: Tensor) -> Tensor:
        terms = (self.values.double() * y.unsqueeze(1)).view(-1)
        return y.new_zeros(self.width).index_add(0, self.indices.view(-1), terms)


@dataclass(frozen=True)
class LowRankRows:
    """Γ of matrices side by side, each A ≈ P Qᵀ: row i has those of ``left[i]`` and ``right[i]``, one matrix after the other.

    ``shapes`` has the rows, columns and rank of each.
    """

    left: Tensor
    right: Tensor
    shapes: tuple[tuple[int, int, int], ...]

    def _factors(self) -> list[tuple[Tensor, Tensor]]:
        m = len(self.left)
        lefts = self.left.double().split([rows * rank for rows, _, rank in self.shapes], 1)
        rights = self.right.double().split([columns * rank for _, columns, rank in self.shapes], 1)
        return [(p.view(m, rows, rank), q.view(m, columns, rank))
                for p, q, (rows, columns, rank) in zip(lefts, rights, self.shapes, strict=True)]

    def dot(self, x: Tensor) -> Tensor:
        found = torch.zeros(len(self.left), dtype=torch.float64, device=x.device)
        parts = x.split([rows * columns for rows, columns, _ in self.shapes])
        for (p, q), part, (rows, columns, _) in zip(self._factors(), parts, self.shapes, strict=True):
            found = found + (p * (part.view(rows, columns).double() @ q)).sum((1, 2))
        return found

    def combine(self, y: Tensor) -> Tensor:
        return torch.cat([torch.einsum("iak,i,ibk->ab", p, y, q).reshape(-1) for p, q in self._factors()])


def with_row(table: Tensor, index: int, row: Tensor, out: Tensor | None = None) -> Tensor:
    """``table`` with another row; ``out`` may be the table itself, which is then written to."""
    table = table.clone() if out is None else out
    table[index] = row
    return table


def with_products(gram: Tensor, index: int, products: Tensor, out: Tensor | None = None) -> Tensor:
    """S after row ``index`` of Γ has become another, whose products with all rows are ``products``."""
    gram = with_row(gram, index, products, out)
    gram[:, index] = products
    return gram


def factored(gram: Tensor, damp: float) -> Tensor:
    """The Cholesky factor of max(m λ, 64 ε tr S) I + S; not a number where S is not finite.

    The rounding of S may make eigenvalues of 0 negative by a few ε tr S, which the damping has to outweigh; its factor leaves what is
    computed with it two digits where all rows are the same.
    """
    ridge = (64 * torch.finfo(gram.dtype).eps * gram.trace()).clamp(min=len(gram) * damp)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return torch.where(failed == 0, factor, math.nan)


def inverse_times_row(rows: Rows, factor: Tensor, index: int) -> Tensor:
    """F⁻¹ Γᵀ e, e the unit vector of row ``index``, in float64."""
    weights = torch.zeros(len(factor), 1, dtype=factor.dtype, device=factor.device)
    weights[index] = len(factor)
    return rows.combine(torch.cholesky_solve(weights, factor).squeeze(1))


def inverse_times(rows: Rows, factor: Tensor, x: Tensor, damp: float) -> Tensor:
    """F⁻¹ x in the precision of x."""
    weights = torch.cholesky_solve(rows.dot(x).unsqueeze(1), factor).squeeze(1)
    return ((x.double() - rows.combine(weights)) / damp).to(x.dtype)


class FisherWindow:
    """F of the last m gradients, for products with its inverse.

    Parameters
    ----------
    m, d : int
        Gradients, and numbers in each.
    damp : float
        λ > 0.
    nonzeros : int, optional
        Keep this many entries a row, as int32 indices and values: 8 m k bytes in float32, where dense rows take 4 m d.
    dtype, device
        Of the rows; by default torch's.

    Raises
    ------
    ValueError
        For a count below 1, more non-zeros than numbers, or a damping that is not a positive finite number.

    Examples
    --------
    >>> window = FisherWindow(m=3, d=5, damp=0.1)
    >>> window.push(torch.ones(5)).ihvp(torch.ones(5))
    tensor([0.5660, 0.5660, 0.5660, 0.5660, 0.5660])
    """

    def __init__(self, m: int, d: int, damp: float, nonzeros: int | None = None, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None) -> None:
        check_count("m", m, "32 to 1024 gradients are typical")
        check_count("d", d, "the length of the gradients")
        check_count("nonzeros", d if nonzeros is None else nonzeros, "leave it out for dense rows")
        if nonzeros is not None and nonzeros > d:
            raise ValueError(f"nonzeros must be at most d = {d}, got {nonzeros}")
        self.m, self.d, self.damp, self.nonzeros = m, d, check_damp(damp), nonzeros
        kind = torch.get_default_dtype() if dtype is None else dtype
        self.values = torch.zeros(m, d if nonzeros is None else nonzeros, dtype=kind, device=device)
        self.indices = None if nonzeros is None else torch.zeros(m, nonzeros, dtype=torch.int32, device=device)
        self.gram = torch.zeros(m, m, dtype=torch.float64, device=device)
        self.pushed = 0
        self._factor: Tensor | None = None

    @property
    def rows(self) -> Rows:
        """Γ."""
        return DenseRows(self.values) if self.indices is None else SparseRows(self.indices, self.values, self.d)

    @property
    def memory(self) -> int:
        """Bytes of the rows and of S."""
        tables = [self.values, self.gram, *([] if self.indices is None else [self.indices])]
        return sum(table.numel() * table.element_size() for table in tables)

    def push(self, g: Tensor | SparseRow) -> Self:
        """Let a gradient ``(d,)``, or for sparse rows a pair of indices and values ``(k,)``, take the place of the oldest."""
        index = self.pushed % self.m
        if isinstance(g, Tensor):
            if self.indices is not None:
                raise ValueError("g must be a pair (indices, values) for a window with nonzeros, got a tensor")
            dense = self._checked("g", g).to(self.values.dtype)
            self.values[index] = dense
        else:
            dense = self._scattered(index, *g)
        self.gram = with_products(self.gram, index, self.rows.dot(dense), out=self.gram)
        self.pushed, self._factor = self.pushed + 1, None
        return self

    def _scattered(self, index: int, indices: Tensor, values: Tensor) -> Tensor:
        if self.indices is None:
            raise ValueError("g must be a tensor for a window without nonzeros, got indices and values")
        if indices.shape != (self.nonzeros,) or values.shape != (self.nonzeros,):
            raise ValueError(f"indices and values must have shape ({self.nonzeros},), got {tuple(indices.shape)} and "
                             f"{tuple(values.shape)}")
        low, high = (int(end) for end in indices.aminmax())
        if low < 0 or high >= self.d:
            raise ValueError(f"indices must lie between 0 and d − 1 = {self.d - 1}, got {low if low < 0 else high}")
        if len(indices.unique()) < len(indices):
            raise ValueError("indices must differ, got some more than once; add up the values of each")
        self.indices[index], self.values[index] = indices.to(torch.int32), values
        return self.values.new_zeros(self.d).index_copy(0, indices.long(), self.values[index])

    def ihvp(self, x: Tensor) -> Tensor:
        """F⁻¹ x, ``(d,)``."""
        if self._factor is None:
            self._factor = factored(self.gram, self.damp)
        return inverse_times(self.rows, self._factor, self._checked("x", x), self.damp)

    def _checked(self, name: str, x: Tensor) -> Tensor:
        if x.shape != (self.d,):
            raise ValueError(f"{name} must have shape ({self.d},), got {tuple(x.shape)}")
        return x.detach()

    def __repr__(self) -> str:
        kept = "dense" if self.nonzeros is None else f"{self.nonzeros} non-zeros each"
        return f"FisherWindow({self.m} rows of {self.d}, {kept}, {self.pushed} pushed, λ = {self.damp:g}, {self.memory:,} bytes)"


class StaticFisher:
    """F of given gradients, for products with its inverse, its diagonal and single entries.

        v_i = F_{i−1}⁻¹ g_i,  q_i = m + ⟨g_i, v_i⟩,  F_i⁻¹ = F_{i−1}⁻¹ − v_i v_iᵀ / q_i  from  F_0⁻¹ = I / λ

    O(d m²) once; a product costs O(d m), an entry O(m).

    Parameters
    ----------
    grads : Tensor (..., m, d)
        Gradients, of one matrix F or of many.
    damp : float
        λ > 0.
    dtype : torch.dtype, default torch.float64
        Of v, which take as much memory as the gradients, and of the results. The recursion subtracts numbers that are nearly equal
        where λ is far below the gradients' squares.
    """

    def __init__(self, grads: Tensor, damp: float, dtype: torch.dtype = torch.float64) -> None:
        if grads.ndim < 2 or not grads.shape[-2]:
            raise ValueError(f"grads must have shape (..., m, d) with at least one gradient, got {tuple(grads.shape)}")
        self.damp = check_damp(damp)
        self.m, self.d = grads.shape[-2:]
        self.vectors = grads.detach().to(dtype, copy=True)
        self.scales = self.vectors.new_zeros(self.vectors.shape[:-1])
        for i in range(self.m):
            g = self.vectors[..., i, :].clone()
            v = self._inverse_times(g, i)
            self.vectors[..., i, :], self.scales[..., i] = v, self.m + (g * v).sum(-1)

    def _inverse_times(self, x: Tensor, count: int) -> Tensor:
        """F_count⁻¹ x."""
        known = self.vectors[..., :count, :]
        weights = (known @ x.unsqueeze(-1)).squeeze(-1) / self.scales[..., :count]
        return x / self.damp - (weights.unsqueeze(-2) @ known).squeeze(-2)

    def ihvp(self, x: Tensor) -> Tensor:
        """F⁻¹ x, ``(..., d)``."""
        if x.shape[-1:] != (self.d,):
            raise ValueError(f"x must have shape (..., {self.d}), got {tuple(x.shape)}")
        return self._inverse_times(x.detach().to(self.vectors.dtype), self.m)

    def diag(self) -> Tensor:
        """The diagonal of F⁻¹, ``(..., d)``, by O(d m).

        Raises
        ------
        ValueError
            Where rounding has made it, or a q_i − m, negative: all digits are lost.
        """
        found = torch.full_like(self.vectors[..., 0, :], 1 / self.damp)
        for i in range(self.m):
            found -= self.vectors[..., i, :] ** 2 / self.scales[..., i, None]
        if not bool((found > 0).all() & (self.scales >= self.m).all()):
            raise ValueError(f"damp must be far above the gradients' squares times their rounding, got {self.damp:g}, with which the "
                             f"diagonal of the inverse, {found.min():g} at the least, has no digits; take a larger one")
        return found

    def element(self, i: int, j: int) -> Tensor:
        """Entry (i, j) of F⁻¹."""
        return (i == j) / self.damp - (self.vectors[..., i] * self.vectors[..., j] / self.scales).sum(-1)

    def __repr__(self) -> str:
        return f"StaticFisher({self.m} gradients of {self.d}, λ = {self.damp:g})"


def check_damp(damp: float) -> float:
    """Raise ``ValueError`` unless the damping is a positive finite number."""
    if isinstance(damp, bool) or not isinstance(damp, int | float) or not 0 < damp < math.inf:
        raise ValueError(f"damp must be a finite number > 0, without which F has no inverse, got {damp!r}; 1e-6 to 1e-3 are typical")
    return float(damp)
