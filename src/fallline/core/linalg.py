"""Dense linear algebra on batches of small matrices.

- inverse root: A^(-1/p) = V diag(max(λ, ε)^(-1/p)) Vᵀ for a symmetric A = V diag(λ) Vᵀ (Hermitian when complex);
- orthonormal columns: A = QR with diag(R) >= 0, which makes Q unique when A has full column rank;
- nearly orthonormal: X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, whose singular values come near 1 in five multiplications.

Source: G. H. Golub and C. F. Van Loan, *Matrix Computations*, 4th edition, chapters 5 and 8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["inverse_root", "newton_schulz", "orthonormalize"]


def inverse_root(A: Tensor, order: float, eps: float) -> Tensor:
    """Return A^(-1/order) of symmetric matrices.

    A^(-1/p) = V diag(max(λ, ε)^(-1/p)) Vᵀ, from the eigendecomposition of (A + Aᵀ)/2.

    Parameters
    ----------
    A : Tensor, shape (..., n, n)
        Symmetric positive semi-definite up to rounding. Half precisions are computed in float32.
    order : float
        The root p > 0: 1 gives the inverse, 4 the inverse fourth root.
    eps : float
        Eigenvalues below this positive number are raised to it.

    Returns
    -------
    Tensor, shape (..., n, n), dtype of A
        Symmetric positive definite.

    Raises
    ------
    ValueError
        If A is not square, or order or eps is not a finite positive number.
    """
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A must be a batch of square matrices (..., n, n), got shape {tuple(A.shape)}")
    if not (math.isfinite(order) and order > 0):
        raise ValueError(f"order must be a finite number > 0, got {order}; typical values are 1, 2 and 4")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a finite number > 0, got {eps}; typical values are 1e-12 to 1e-6")
    matrices = _at_least_float32(A)
    eigenvalues, eigenvectors = torch.linalg.eigh((matrices + matrices.mH) / 2)
    roots = eigenvalues.clamp(min=eps).pow(-1.0 / order)
    return ((eigenvectors * roots.unsqueeze(-2)) @ eigenvectors.mH).to(A.dtype)


def orthonormalize(A: Tensor) -> Tensor:
    """Return orthonormal columns that span the columns of A, in order.

    A = QR with diag(R) >= 0. The sign makes the answer independent of the factorisation's implementation.

    Parameters
    ----------
    A : Tensor, shape (..., m, n) with m >= n
        Half precisions are computed in float32.

    Returns
    -------
    Tensor, shape (..., m, n), dtype of A
        Columns that are zero in A are zero; the others are orthonormal. A column that depends linearly on
        earlier ones is replaced by some unit vector orthogonal to them.

    Raises
    ------
    ValueError
        If A has fewer rows than columns.
    """
    if A.ndim < 2 or A.shape[-2] < A.shape[-1]:
        raise ValueError(f"A must have shape (..., m, n) with m >= n, got {tuple(A.shape)}; orthonormalize rows through A.mT")
    columns = _at_least_float32(A)
    nonzero = (columns != 0).any(dim=-2)
    # QR completes a zero column by an arbitrary direction and takes that direction out of all later columns,
    # so zero columns go last.
    order = torch.argsort((~nonzero).to(torch.uint8), dim=-1, stable=True)
    Q, R = torch.linalg.qr(columns.gather(-1, order.unsqueeze(-2).expand_as(columns)))
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    Q = Q * torch.where(diagonal.real < 0, -1.0, 1.0).to(Q.dtype).unsqueeze(-2)
    back = torch.argsort(order, dim=-1)
    Q = Q.gather(-1, back.unsqueeze(-2).expand_as(Q))
    return torch.where(nonzero.unsqueeze(-2), Q, 0.0).to(A.dtype)


def newton_schulz(A: Tensor, steps: int = 5) -> Tensor:
    """Return matrices with the singular vectors of A and singular values near 1.

    X₀ = A / ‖A‖_F;  X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X with (a, b, c) = (3.4445, −4.775, 2.0315).

    The polynomial is steep at 0 and does not converge: singular values above about 1e-3 of ‖A‖_F end between 0.7 and 1.2 after five
    steps. Multiplications only, no factorisation.

    Parameters
    ----------
    A : Tensor, shape (..., m, n)
        A zero matrix stays zero. Half precisions are computed in float32.
    steps : int, default 5

    Notes
    -----
    Coefficients by K. Jordan, Muon (2024).
    """
    if A.ndim < 2:
        raise ValueError(f"A must be a batch of matrices (..., m, n), got shape {tuple(A.shape)}")
    X = _at_least_float32(A)
    wide = X.shape[-2] <= X.shape[-1]
    X = X if wide else X.mT
    norm = torch.linalg.matrix_norm(X, keepdim=True)
    X = X / torch.where(norm > 0, norm, 1.0)
    a, b, c = 3.4445, -4.775, 2.0315
    for _ in range(steps):
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return (X if wide else X.mT).to(A.dtype)


def _at_least_float32(A: Tensor) -> Tensor:
    return A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
