"""Eigenvalues of a self-adjoint operator from products with vectors.

Lanczos builds an orthonormal basis V of the Krylov space span(v, A v, A² v, …) in which A is tridiagonal:

    A v_k = β_{k-1} v_{k-1} + α_k v_k + β_k v_{k+1},  T = Vᴴ A V = tridiag(β, α, β).

Each new vector is orthogonalised twice against all earlier ones, so V stays orthonormal to rounding. An eigenpair
(θ, y) of T gives the Ritz pair (θ, V y) with residual norm β_k |y_k|.

Source: G. H. Golub and C. F. Van Loan, *Matrix Computations*, 4th edition, chapter 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.errors import NonFiniteError
from fallline.core.operators.linear import LinearOperator, inner, random_vector, square_size, start_vector

__all__ = ["Eigenpair", "Eigenpairs", "Tridiagonalization", "lanczos", "power_iteration", "top_eigenvalues"]


@dataclass(frozen=True)
class Tridiagonalization:
    """A V = V T + β v eᵀ.

    Attributes
    ----------
    diagonal : Tensor, shape (k,)
    off_diagonal : Tensor, shape (k - 1,)
    basis : Tensor, shape (n, k)
        V, orthonormal columns; the first is the normalised start vector.
    residual_norm : float
        β, zero up to rounding when V spans an invariant space.
    iterations : int
        k: fewer than asked for when the Krylov space is exhausted.
    converged : bool
        Whether V spans an invariant space, so that the eigenvalues of T are eigenvalues of A.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    basis: Tensor
    residual_norm: float
    iterations: int
    converged: bool

    @property
    def tridiagonal(self) -> Tensor:
        """T as a dense real symmetric matrix, shape (k, k)."""
        return _tridiagonal(self.diagonal, self.off_diagonal)

    def __repr__(self) -> str:
        invariant = ", invariant" if self.converged else ""
        return f"Tridiagonalization(iterations={self.iterations}, residual_norm={self.residual_norm:.3e}{invariant})"


@dataclass(frozen=True)
class Eigenpair:
    """One eigenvalue with its vector of norm one, shape (n,), and the residual norm ‖A v - λ v‖."""

    value: float
    vector: Tensor
    iterations: int
    residual_norm: float
    converged: bool

    def __repr__(self) -> str:
        status = "converged" if self.converged else "not converged"
        return f"Eigenpair({self.value:.6g}, {status}, iterations={self.iterations}, residual_norm={self.residual_norm:.3e})"


@dataclass(frozen=True)
class Eigenpairs:
    """k eigenvalues, shape (k,), their orthonormal vectors, shape (n, k), and residual norms ‖A v - λ v‖, shape (k,)."""

    values: Tensor
    vectors: Tensor
    iterations: int
    residual_norm: Tensor
    converged: bool

    def __repr__(self) -> str:
        status = "converged" if self.converged else "not converged"
        values = ", ".join(f"{value:.6g}" for value in self.values.tolist())
        return (
            f"Eigenpairs([{values}], {status}, iterations={self.iterations}, residual_norm={float(self.residual_norm.max()):.3e})"
        )


def lanczos(
    operator: LinearOperator,
    steps: int,
    *,
    start: tree.Tree | None = None,
    generator: torch.Generator | None = None,
) -> Tridiagonalization:
    """Run ``steps`` steps of Lanczos with full re-orthogonalisation.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
        Self-adjoint.
    steps : int
        Size k of the basis; n at most is useful. Stores k vectors of length n.
    start, generator
        A start vector, or a generator to draw a Gaussian one: exactly one of them.

    Returns
    -------
    Tridiagonalization
        With fewer than ``steps`` columns when the Krylov space of the start vector is exhausted.
    """
    _check_steps("steps", steps)
    length = square_size(operator, "lanczos")
    process = _Process(operator, start_vector(operator, start, generator))
    for _ in process.run(min(steps, length)):
        if process.exhausted:
            break
    return Tridiagonalization(
        diagonal=process.diagonal,
        off_diagonal=process.off_diagonal,
        basis=process.basis.clone(),
        residual_norm=process.betas[-1],
        iterations=len(process.alphas),
        converged=process.exhausted,
    )


def power_iteration(
    operator: LinearOperator,
    *,
    tol: float = 1e-8,
    max_iterations: int = 1000,
    start: tree.Tree | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpair:
    """Find the eigenvalue of largest magnitude of a self-adjoint operator: v ← A v / ‖A v‖, λ = ⟨v, A v⟩.

    Stops when ‖A v - λ v‖ <= tol |λ|. It converges like (|λ₂| / |λ₁|)^iterations, and not at all when λ and -λ are both
    of largest magnitude; ``top_eigenvalues`` needs fewer products, this one a single vector of memory.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
    tol : float
        Relative residual.
    max_iterations : int
        Products with the operator.
    start, generator
        A start vector, or a generator to draw a Gaussian one: exactly one of them.
    """
    square_size(operator, "power_iteration")
    _check_tolerance(tol)
    _check_steps("max_iterations", max_iterations)
    v = start_vector(operator, start, generator)
    for iteration in range(1, max_iterations + 1):
        w = operator.matvec(v)
        value = float(inner(v, w))
        residual = float(torch.linalg.vector_norm(w - value * v))
        size = torch.linalg.vector_norm(w)
        converged = residual <= tol * abs(value)
        if converged or not 0 < float(size) < float("inf"):
            break
        if iteration < max_iterations:
            v = w / size
    return Eigenpair(value, v, iteration, residual, converged)


def top_eigenvalues(
    operator: LinearOperator,
    k: int = 1,
    *,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    tol: float = 1e-8,
    max_iterations: int | None = None,
    start: tree.Tree | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """Find k eigenvalues at an end of the spectrum of a self-adjoint operator by Lanczos.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
    k : int
        How many, 1 <= k <= n.
    which : {"largest", "smallest", "magnitude"}
        Largest or smallest on the real line, or largest in absolute value; the result is sorted in this order.
    tol : float
        Stop when all k residual norms are <= tol ‖A‖, with ‖A‖ estimated by the largest |Ritz value|.
    max_iterations : int, optional
        Size of the basis at most, min(n, 20 k + 100) by default; that many vectors of length n are stored.
    start, generator
        A start vector, or a generator to draw a Gaussian one: exactly one of them. When the Krylov space is
        exhausted before k pairs are found, it goes on from a random vector orthogonal to it (of a fixed
        seed if ``start`` is given).

    Notes
    -----
    One Krylov space holds a single vector of each eigenspace. Copies of a repeated eigenvalue are found only after
    the space is exhausted; with tight tolerance and few distinct eigenvalues that happens, in general it need not.
    """
    length = square_size(operator, "top_eigenvalues")
    if not 1 <= k <= length:
        raise ValueError(f"k must be between 1 and {length} for {operator!r}, got {k}")
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f'which must be "largest", "smallest" or "magnitude", got {which!r}')
    _check_tolerance(tol)
    limit = min(length, 20 * k + 100) if max_iterations is None else min(length, max_iterations)
    if limit < k:
        raise ValueError(f"max_iterations must be >= k = {k}, got {max_iterations}")
    restarts = torch.Generator().manual_seed(0) if generator is None else generator
    process = _Process(operator, start_vector(operator, start, generator))
    for size in process.run(limit, restarts):
        # A dense eigendecomposition of T at each step would cost more than the products.
        if size < k or not (process.exhausted or size == limit or size % 5 == 0):
            continue
        values, vectors = torch.linalg.eigh(_tridiagonal(process.diagonal, process.off_diagonal))
        order = _order(values, which)[:k]
        residuals = process.betas[-1] * vectors[-1, order].abs()
        converged = bool(residuals.max() <= tol * values.abs().max())
        if converged or size == limit:
            break
    basis = process.basis
    return Eigenpairs(values[order], basis @ vectors[:, order].to(basis.dtype), size, residuals, converged)


class _Process:
    """Lanczos as a process that can be looked at after each step."""

    def __init__(self, operator: LinearOperator, start: Tensor) -> None:
        self.operator = operator
        self._rows = start.unsqueeze(0)
        self._used = 1
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.exhausted = False

    @property
    def basis(self) -> Tensor:
        """The vectors multiplied so far, as columns."""
        return self._rows[: len(self.alphas)].T

    @property
    def diagonal(self) -> Tensor:
        return self._real(self.alphas)

    @property
    def off_diagonal(self) -> Tensor:
        return self._real(self.betas[:-1])

    def run(self, steps: int, restarts: torch.Generator | None = None) -> Iterator[int]:
        """Take steps and yield the size of the basis after each; continue past exhaustion only with ``restarts``."""
        scale = 0.0
        precision = torch.finfo(self.operator.dtype).eps
        while len(self.alphas) < steps:
            v = self._rows[self._used - 1]
            w = self.operator.matvec(v)
            alpha = float(inner(v, w))
            w = self._orthogonal(w)
            beta = float(torch.linalg.vector_norm(w))
            if not (abs(alpha) < float("inf") and beta < float("inf")):
                raise NonFiniteError(f"{self.operator!r} returned a non-finite product at Lanczos step {len(self.alphas) + 1}")
            scale = max(scale, abs(alpha) + beta)
            self.alphas.append(alpha)
            self.exhausted = beta <= 10 * precision * scale
            self.betas.append(0.0 if self.exhausted else beta)
            yield len(self.alphas)
            if self.exhausted:
                if restarts is None:
                    return
                w = self._orthogonal(random_vector(self.operator, restarts))
                beta = float(torch.linalg.vector_norm(w))
            self._append(w / beta)

    def _append(self, v: Tensor) -> None:
        if self._used == len(self._rows):
            self._rows = torch.cat([self._rows, torch.empty_like(self._rows)])
        self._rows[self._used] = v
        self._used += 1

    def _orthogonal(self, w: Tensor) -> Tensor:
        V = self._rows[: self._used].T
        for _ in range(2):
            w = w - V @ (V.mH @ w)
        return w

    def _real(self, values: list[float]) -> Tensor:
        dtype = torch.empty((), dtype=self.operator.dtype).real.dtype
        return torch.tensor(values, dtype=dtype, device=self.operator.device)


def _tridiagonal(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    return torch.diag(diagonal) + torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1)


def _order(values: Tensor, which: str) -> Tensor:
    key = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which]
    return torch.argsort(key, stable=True)


def _check_tolerance(tol: float) -> None:
    if not tol > 0:
        raise ValueError(f"tol must be > 0, got {tol}; typical values are 1e-12 to 1e-4")


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{name} must be >= 1, got {steps}")
