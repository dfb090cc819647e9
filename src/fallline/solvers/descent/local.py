"""The curvature at one point: what a descent may ask of a symmetric matrix H, however it is held.

    products H v,   solutions (H + λB)⁻¹ v,   and eigenvalues with a basis that holds g, in which a model of any size is solved

``Dense`` factorises; ``Decomposed`` has its eigenvalues; ``Krylov`` has products only: conjugate gradient solves, Lanczos gives the
basis; ``Diagonal`` divides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fallline.core.counts import Counts
from fallline.core.errors import NonFiniteError
from fallline.core.keys import Key
from fallline.core.operators import LinearOperator, conjugate_gradient, lanczos


def cut(values: Tensor) -> float:
    """Below what magnitude eigenvalues of a singular H count as zero: 1e-10 of the largest, or their rounding error."""
    return max(1e-10, 10 * len(values) * torch.finfo(values.dtype).eps) * float(values.abs().max())


class Unusable(Exception):
    """A curvature that a descent cannot work with; the message says why, and ends the run."""


@dataclass(frozen=True)
class Spectrum:
    """H in a basis: H ≈ V diag(θ) Vᵀ on span V, ascending; V is (n, k), and k = n if it is the whole space."""

    values: Tensor
    vectors: Tensor

    def coefficients(self, v: Tensor) -> Tensor:
        """Return Vᵀ v."""
        return self.vectors.mT @ v

    def vector(self, coefficients: Tensor) -> Tensor:
        """Return V c."""
        return self.vectors @ coefficients


class Local(Protocol):
    """A symmetric matrix H of n rows."""

    def matvec(self, v: Tensor) -> Tensor:
        """Return H v."""
        ...

    def solve(self, v: Tensor, shift: float = 0.0, metric: Tensor | None = None) -> Tensor | None:
        """Return (H + shift · B)⁻¹ v for B = ``metric`` (a diagonal (n,), a matrix, or I); None if that is not positive definite."""
        ...

    def spectrum(self, v: Tensor) -> Spectrum:
        """Return eigenvalues in a basis that holds v."""
        ...


def finite(matrix: Tensor) -> Tensor:
    """Return the symmetric part of a matrix, or raise ``NonFiniteError``."""
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError("the Hessian has NaN or infinite entries")
    return (matrix + matrix.mT) / 2


class Dense:
    """H as a matrix; factorisations are counted as ``factorizations``.

    Without a shift a singular positive semi-definite H is inverted on its range: the pseudo-inverse, cut at 1e-10 of the largest
    eigenvalue.
    """

    def __init__(self, matrix: Tensor, counts: Counts) -> None:
        self.matrix, self.counts = finite(matrix), counts
        self._factor: tuple[float, Tensor | None] | None = None
        self._spectrum: Spectrum | None = None

    def matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def solve(self, v: Tensor, shift: float = 0.0, metric: Tensor | None = None) -> Tensor | None:
        factor = self._factorized(shift, metric)
        if factor is not None:
            return torch.cholesky_solve(v.unsqueeze(1), factor).squeeze(1)
        return self._pseudo_solve(v) if shift == 0 else None

    def _factorized(self, shift: float, metric: Tensor | None) -> Tensor | None:
        if self._factor is not None and self._factor[0] == shift:
            return self._factor[1]
        self.counts.add("factorizations")
        diagonal = torch.ones_like(self.matrix[0]) if metric is None else metric
        shifted = self.matrix + shift * (diagonal if diagonal.ndim == 2 else diagonal.diag()) if shift else self.matrix
        factor, failed = torch.linalg.cholesky_ex(shifted)
        found = None if bool(failed) or not bool(torch.isfinite(factor).all()) else factor
        if found is not None and shift == 0:
            # A factor exists for some singular matrices by rounding alone: what the pseudo-inverse cuts off must not be divided by.
            pivots, rounding = found.diagonal() ** 2, len(found) * torch.finfo(found.dtype).eps
            found = None if float(pivots.min()) <= rounding * float(pivots.max()) else found
        self._factor = (shift, found)
        return found

    def _pseudo_solve(self, v: Tensor) -> Tensor | None:
        spectrum = self.spectrum(v)
        least = cut(spectrum.values)
        if float(spectrum.values[0]) < -least:
            return None
        kept = spectrum.values > least
        inverse = torch.where(kept, 1 / torch.where(kept, spectrum.values, 1.0), 0.0)
        return spectrum.vector(inverse * spectrum.coefficients(v))

    def spectrum(self, v: Tensor) -> Spectrum:
        if self._spectrum is None:
            self.counts.add("factorizations")
            self._spectrum = Spectrum(*torch.linalg.eigh(self.matrix))
        return self._spectrum


class Krylov:
    """H by products: memory of a few vectors, and of ``size`` for a spectrum.

    Parameters
    ----------
    operator : LinearOperator
    tolerance : callable ``‖v‖ -> relative residual``
        Of the solutions.
    max_iterations : int
        Products of one solution.
    size : int
        Vectors of the basis of a spectrum.
    """

    def __init__(self, operator: LinearOperator, tolerance: Callable[[float], float], max_iterations: int, size: int) -> None:
        self.operator, self.tolerance, self.max_iterations, self.size = operator, tolerance, max_iterations, size

    def matvec(self, v: Tensor) -> Tensor:
        return self.operator.matvec(v)

    def solve(self, v: Tensor, shift: float = 0.0, metric: Tensor | None = None) -> Tensor | None:
        norm = float(torch.linalg.vector_norm(v))
        if norm == 0:
            return torch.zeros_like(v)
        shifted = self.operator
        if shift:
            weigh = (lambda u: u) if metric is None else (lambda u: metric @ u) if metric.ndim == 2 else (lambda u: metric * u)
            product = lambda u: self.operator.matvec(u) + shift * weigh(u)
            shifted = LinearOperator(self.operator.shape, product, product, dtype=v.dtype, device=v.device)
        found = conjugate_gradient(shifted, v, tol=self.tolerance(norm), max_iterations=self.max_iterations)
        if found.status == "nonfinite":
            raise NonFiniteError("a product with the Hessian has NaN or infinite entries")
        return None if found.status == "indefinite" else found.solution

    def spectrum(self, v: Tensor) -> Spectrum:
        if bool(v.any()):
            reduced = lanczos(self.operator, min(self.size, len(v)), start=v)
        else:  # at a stationary point any start shows whether there is negative curvature
            reduced = lanczos(self.operator, min(self.size, len(v)), generator=Key(0).fold("krylov").generator())
        values, vectors = torch.linalg.eigh(reduced.tridiagonal)
        return Spectrum(values, reduced.basis @ vectors)


class Diagonal:
    """H as its diagonal."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal

    def matvec(self, v: Tensor) -> Tensor:
        return self.diagonal * v

    def solve(self, v: Tensor, shift: float = 0.0, metric: Tensor | None = None) -> Tensor | None:
        if metric is not None and metric.ndim == 2:
            raise ValueError("a diagonal curvature needs a diagonal metric, got a matrix; give its diagonal, or use a dense curvature")
        shifted = self.diagonal + shift * (1.0 if metric is None else metric)
        return v / shifted if bool((shifted > 0).all()) else None

    def spectrum(self, v: Tensor) -> Spectrum:
        values, order = self.diagonal.sort()
        return Spectrum(values, torch.eye(len(values), dtype=v.dtype, device=v.device)[:, order])


class Decomposed:
    """H as its eigenvalues and a basis of the whole space: every shift costs O(n²)."""

    def __init__(self, spectrum: Spectrum) -> None:
        self._spectrum = spectrum

    def matvec(self, v: Tensor) -> Tensor:
        return self._spectrum.vector(self._spectrum.values * self._spectrum.coefficients(v))

    def solve(self, v: Tensor, shift: float = 0.0, metric: Tensor | None = None) -> Tensor | None:
        if metric is not None:
            raise ValueError("a decomposed curvature is shifted by multiples of I alone; leave the metric out")
        shifted = self._spectrum.values + shift
        return self._spectrum.vector(self._spectrum.coefficients(v) / shifted) if float(shifted[0]) > 0 else None

    def spectrum(self, v: Tensor) -> Spectrum:
        return self._spectrum
