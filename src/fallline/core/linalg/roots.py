"""Inverse roots A^(-1/p) of symmetric positive semi-definite matrices (Hermitian when complex).

By eigenvalues, A = V diag(λ) Vᵀ:

    clamped at ε:    V diag(max(λ, ε)^(-1/p)) Vᵀ                                               (`inverse_root`)
    damped:          A' = A + ridge · λ_max(A) · I,    V diag(λ'^(-1/p)) Vᵀ                    (`inverse_pth_root`)

By the coupled Newton iteration, matrix products only, of the damped A':

    z = (1 + p) / (2 ‖A'‖_F),  M ← z A',  X ← z^(1/p) I;
    T = ((p + 1) I − M) / p,  X ← X T,  M ← T^p M;        M → I,  X → A'^(-1/p)

M = X^p A' throughout in exact arithmetic, in which ‖M − I‖_F never rises, where the largest entry may. Rounding breaks that once the
iteration is done or A' is too ill-conditioned: that matrix of the batch then keeps the X before the rise.

Sources: G. H. Golub and C. F. Van Loan, *Matrix Computations*, 4th edition, chapter 8; C.-H. Guo and N. J. Higham, A Schur-Newton
method for the matrix pth root and its inverse, SIAM J. Matrix Anal. Appl. 28 (2006); the damping and the guard: Anil, Gupta, Koren,
Regan, Singer: Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fallline.core.linalg.batches import at_least_float32, identity_like, require_square, symmetric

TOLERANCE, FAILED, RISE = 1e-6, 0.1, 1.2
ITERATIONS, LOOKS = 100, 10


def inverse_root(A: Tensor, order: float, eps: float) -> Tensor:
    """Return A^(-1/order) of symmetric matrices, small eigenvalues clamped.

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
    require_square(A)
    if not (math.isfinite(order) and order > 0):
        raise ValueError(f"order must be a finite number > 0, got {order}; typical values are 1, 2 and 4")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a finite number > 0, got {eps}; typical values are 1e-12 to 1e-6")
    eigenvalues, V = torch.linalg.eigh(symmetric(at_least_float32(A)))
    return _of_eigenvalues(eigenvalues.clamp(min=eps).pow(-1.0 / order), V).to(A.dtype)


@torch.no_grad()
def inverse_pth_root(A: Tensor, p: float, method: Literal["eigh", "newton"] = "eigh", ridge: float = 1e-6) -> Tensor:
    """Return (A + ridge · λ_max(A) · I)^(-1/p) of symmetric positive semi-definite matrices, and NaN where there is none.

    Not differentiable. Computed in float64 on the CPU, elsewhere in the dtype of A or float32, in which Newton's iteration needs a
    ``ridge`` of about 1e-6.

    Parameters
    ----------
    A : Tensor, shape (..., n, n)
        Its symmetric part is taken.
    p : int, or float if by eigenvalues
        The root, > 0: 1 gives the inverse, 4 the inverse fourth root.
    method : {"eigh", "newton"}
        The eigendecomposition; or the coupled Newton iteration, for devices that multiply much faster than they decompose. It stops
        for each matrix when max |M − I| <= 1e-6, after 100 iterations, or when ‖M − I‖_F rises 1.2-fold, keeping the iterate before.
    ridge : float, default 1e-6
        Damping >= 0 in units of the largest eigenvalue, for Newton by at most 100 power iterations.

    Returns
    -------
    Tensor, shape (..., n, n), dtype of A
        Symmetric positive definite. A matrix of the batch is NaN throughout, and the others are unharmed, where A is zero (its damping
        is zero too), not finite, or not positive definite after damping, or where Newton's error ends above 0.1. An optimizer that
        finds one keeps its old root.

    Raises
    ------
    ValueError
        If A is not square, p is no positive number (for Newton, no positive integer), or ridge is negative or infinite.
    """
    require_square(A)
    if method not in ("eigh", "newton"):
        raise ValueError(f'method must be "eigh" or "newton", got {method!r}')
    if isinstance(p, bool) or not (math.isfinite(p) and p > 0):
        raise ValueError(f"p must be a finite number > 0, got {p!r}; typical values are 2 and 4")
    if method == "newton" and p != int(p):
        raise ValueError(f'p must be a whole number for method="newton", got {p!r}; use method="eigh"')
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge}; 1e-6 is typical")
    if A.numel() == 0:
        return A.clone()
    matrices = _working_precision(A)
    usable = matrices.isfinite().flatten(-2).all(-1) & (matrices != 0).flatten(-2).any(-1)
    matrices = torch.where(usable[..., None, None], symmetric(matrices), identity_like(matrices))
    root, found = _newton(matrices, int(p), ridge) if method == "newton" else _eigh(matrices, p, ridge)
    return torch.where((usable & found)[..., None, None], root, math.nan).to(A.dtype)


def _working_precision(A: Tensor) -> Tensor:
    if A.device.type != "cpu":
        return at_least_float32(A)
    return A.to(torch.complex128 if A.is_complex() else torch.float64)


def _of_eigenvalues(values: Tensor, V: Tensor) -> Tensor:
    return (V * values.unsqueeze(-2)) @ V.mH


def _eigh(A: Tensor, p: float, ridge: float) -> tuple[Tensor, Tensor]:
    """The damped root by eigenvalues, and which matrices are positive definite."""
    eigenvalues, V = torch.linalg.eigh(A)
    damped = eigenvalues + ridge * eigenvalues[..., -1:]
    return _of_eigenvalues(damped.pow(-1.0 / p), V), damped[..., 0] > 0


def _newton(A: Tensor, p: int, ridge: float) -> tuple[Tensor, Tensor]:
    """The damped root by Newton's iteration, and for which matrices it succeeded."""
    identity = identity_like(A)
    A = A + ridge * _largest_eigenvalue(A)[..., None, None] * identity
    z = (1 + p) / (2 * torch.linalg.matrix_norm(A, keepdim=True))
    M, X = z * A, z.pow(1 / p) * identity
    length = torch.linalg.matrix_norm(M - identity)
    running = _distance(M, identity) > TOLERANCE
    for iteration in range(ITERATIONS):
        if _looks(A, iteration) and not running.any():
            break
        T = ((p + 1) * identity - M) / p
        M_new = torch.linalg.matrix_power(T, p) @ M
        length_new = torch.linalg.matrix_norm(M_new - identity)
        running = running & (length_new <= RISE * length)  # also false where it is NaN
        takes = running[..., None, None]
        X, M = torch.where(takes, X @ T, X), torch.where(takes, M_new, M)
        length = torch.where(running, length_new, length)
        running = running & (_distance(M, identity) > TOLERANCE)
    return symmetric(X), _distance(M, identity) <= FAILED


def _distance(M: Tensor, identity: Tensor) -> Tensor:
    return (M - identity).abs().amax((-2, -1))


def _looks(A: Tensor, iteration: int) -> bool:
    """Whether to see if all matrices are done: elsewhere than on the CPU a look waits, and a needless iteration changes nothing."""
    return A.device.type == "cpu" or iteration % LOOKS == 0


def _largest_eigenvalue(A: Tensor) -> Tensor:
    """λ_max of positive semi-definite matrices by power iteration, from below, from the same Gaussian start for all."""
    start = torch.randn(A.shape[-1], 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = A @ start.to(A)
    value = torch.zeros(A.shape[:-2], dtype=v.real.dtype, device=A.device)
    for iteration in range(ITERATIONS):
        v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True)
        w = A @ v
        before, value = value, (v.conj() * w).real.sum((-2, -1))
        if _looks(A, iteration) and bool(((value - before).abs() <= TOLERANCE * value.abs()).all()):
            break
        v = w
    return value
