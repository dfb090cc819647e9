"""Orthonormal columns, exactly or nearly, of batches of matrices.

- by QR: A = QR with diag(R) >= 0, which makes Q unique when A has full column rank                          (`orthonormalize`)
- by Cholesky: AᵀA = RᵀR, Q = A R⁻¹, and once more for Q; multiplications of tall matrices only     (`cholesky_orthonormalize`)
- nearly, with the singular vectors of A: X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, singular values near 1          (`newton_schulz`)
- back to orthonormal from nearly: V ← 1.5 V − 0.5 V VᵀV                                                            (`bjorck`)

Sources: G. H. Golub and C. F. Van Loan, *Matrix Computations*, 4th edition, chapter 5; T. Fukaya, Y. Nakatsukasa, Y. Yanagisawa and
Y. Yamamoto, CholeskyQR2, 2014; Å. Björck and C. Bowie, An iterative algorithm for computing the best estimate of an orthogonal
matrix, SIAM J. Numer. Anal. 8 (1971).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.linalg.batches import at_least_float32, identity_like


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
    _require_tall(A)
    columns = at_least_float32(A)
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


def cholesky_orthonormalize(A: Tensor) -> Tensor:
    """Return orthonormal columns that span the columns of A, in order, by two Cholesky factorisations.

    AᵀA = RᵀR, Q = A R⁻¹; the same once more for Q: Q has the signs of `orthonormalize`, by fewer and larger operations.

    Parameters
    ----------
    A : Tensor, shape (..., m, n) with m >= n
        Half precisions are computed in float32.

    Returns
    -------
    Tensor, shape (..., m, n), dtype of A
        A matrix of the batch goes to `orthonormalize` where the Cholesky factorisation fails or its Q is far from orthonormal,
        ‖QᵀQ − I‖_F >= ½: zero or dependent columns, or condition numbers above about u^(-1/2), 1e3 in float32 and 1e7 in float64.
        To see whether there is one, the host waits for the device.

    Raises
    ------
    ValueError
        If A has fewer rows than columns.
    """
    _require_tall(A)
    columns = at_least_float32(A)
    Q = columns
    for _ in range(2):
        gram = Q.mH @ Q
        R, _ = torch.linalg.cholesky_ex(gram, upper=True)
        Q = torch.linalg.solve_triangular(R, Q, upper=True, left=False)
    # The second Gram matrix tells how well the first pass went; a failure of either pass is NaN or far off there, or in Q.
    near = torch.linalg.matrix_norm(gram - identity_like(gram)) < 0.5
    failed = ~(near & Q.isfinite().flatten(-2).all(-1))
    if bool(failed.any()):
        Q = Q.index_put((failed,), orthonormalize(columns[failed])) if A.ndim > 2 else orthonormalize(columns)
    return Q.to(A.dtype)


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
    X = at_least_float32(A)
    wide = X.shape[-2] <= X.shape[-1]
    X = X if wide else X.mT
    norm = torch.linalg.matrix_norm(X, keepdim=True)
    X = X / torch.where(norm > 0, norm, 1.0)
    a, b, c = 3.4445, -4.775, 2.0315
    for _ in range(steps):
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return (X if wide else X.mT).to(A.dtype)


def bjorck(V: Tensor, steps: int = 1) -> Tensor:
    """Return matrices nearer to orthonormal: V ← 1.5 V − 0.5 V VᵀV, ``steps`` times.

    Singular values s < √3 converge to 1, quadratically: s − 1 ← −1.5 (s − 1)² to first order; the singular vectors stay.

    Parameters
    ----------
    V : Tensor, shape (..., m, n)
        Columns nearly orthonormal, or rows if m < n. Half precisions are computed in float32.
    steps : int, default 1

    Raises
    ------
    ValueError
        If V is no batch of matrices, or steps is not a whole number of at least 1.
    """
    if V.ndim < 2:
        raise ValueError(f"V must be a batch of matrices (..., m, n), got shape {tuple(V.shape)}")
    check_count("steps", steps, "1 or 4 are typical")
    X = at_least_float32(V)
    for _ in range(steps):
        cubed = (X @ X.mH) @ X if X.shape[-2] < X.shape[-1] else X @ (X.mH @ X)
        X = 1.5 * X - 0.5 * cubed
    return X.to(V.dtype)


def _require_tall(A: Tensor) -> None:
    if A.ndim < 2 or A.shape[-2] < A.shape[-1]:
        raise ValueError(f"A must have shape (..., m, n) with m >= n, got {tuple(A.shape)}; orthonormalize rows through A.mT")
