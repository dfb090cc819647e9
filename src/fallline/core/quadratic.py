"""Quadratic functions that know their matrix: min ½ xᵀ H x − bᵀ x.

Label propagation and Gaussian Markov fields (a sparse H, the Laplacian of a graph), linear systems with a symmetric matrix, the duals
of least squares. The gradient H x − b costs one product with H.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.checks import check_matrix, check_vector
from fallline.core.operators.columns import DenseColumns, SparseColumns, columns_of
from fallline.core.operators.linear import LinearOperator
from fallline.core.problem import Problem


@dataclass(frozen=True)
class QuadraticParts:
    """What a quadratic is made of.

    Attributes
    ----------
    H : Tensor (n, n)
        Symmetric; dense, or sparse in any layout.
    operator : LinearOperator
        H, with fast products.
    b : Tensor (n,)
    """

    H: Tensor
    operator: LinearOperator
    b: Tensor

    @functools.cached_property
    def columns(self) -> DenseColumns | SparseColumns:
        """H by columns, for methods that move few variables at a time."""
        return columns_of(self.H)

    def diagonal(self) -> Tensor:
        """Return the diagonal of H, shape (n,)."""
        if self.H.layout is torch.strided:
            return self.H.diagonal().clone()
        entries = self.H.to_sparse_coo().coalesce()
        row, column = entries.indices()
        return torch.zeros_like(self.b).index_add_(0, row, torch.where(row == column, entries.values(), 0.0))


def Quadratic(H: Tensor, b: Tensor | None = None, x0: Tensor | None = None, **options: Any) -> Problem:
    """min ½ xᵀ H x − bᵀ x for a symmetric H; bounded below where H is positive semidefinite and b in its range.

    Parameters
    ----------
    H : Tensor (n, n)
        Dense, or sparse in any layout.
    b : Tensor (n,), optional
        Zero by default.
    x0 : Tensor (n,), optional
        Zero by default.
    **options
        ``name``, ``facts``, ``budget``, ``observer`` of ``Problem``.

    Returns
    -------
    Problem
        With closed-form derivatives; ``problem.quadratic`` holds the parts.

    Raises
    ------
    ValueError
        H is not square, not symmetric, or of whole numbers; b or x0 do not fit, or have another dtype; an entry is not finite.
    """
    if H.ndim != 2 or H.shape[0] != H.shape[1]:
        raise ValueError(f"H must be a square matrix (n, n), got shape {tuple(H.shape)}")
    check_matrix("H", H)
    n = len(H)
    asymmetry = _largest(H - H.mT if H.layout is torch.strided else H.to_sparse_coo() - H.to_sparse_coo().mT)
    if not asymmetry <= 100 * torch.finfo(H.dtype).eps * _largest(H):
        raise ValueError(f"H must be symmetric, and differs from its transpose by up to {asymmetry:.3g}; (H + H.T) / 2 "
                         "has the same values")
    parts = QuadraticParts(H, LinearOperator.from_tensor(H), H.new_zeros(n, layout=torch.strided) if b is None else b)
    start = torch.zeros_like(parts.b) if x0 is None else x0
    for name, vector in (("b", parts.b), ("x0", start)):
        if vector.shape != (n,):
            raise ValueError(f"{name} must have {n} numbers, one for each row of H, got shape {tuple(vector.shape)}")
        check_vector(name, vector, "H", H)
    return Problem(start, _oracles(parts), **{"kind": "smooth", "name": "quadratic", **options}, given={"quadratic": parts})


def _largest(matrix: Tensor) -> float:
    entries = matrix if matrix.layout is torch.strided else matrix.to_sparse_coo().coalesce().values()
    return float(entries.abs().max()) if entries.numel() else 0.0


def _oracles(parts: QuadraticParts) -> dict[str, Callable[..., Any]]:
    apply, b = parts.operator.matvec, parts.b

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach()
        product = apply(x)
        return x @ (product / 2 - b), product - b

    return {"value": lambda x: x @ (apply(x) / 2 - b), "value_and_gradient": value_and_gradient,
            "linearized_gradient": lambda x: apply, "hessian": lambda x: parts.H.to_dense()}
