"""Symmetric polynomial preconditioners: P = Σ_{i=0..τ} (−1)^i e_{τ−i} B^i for a positive semi-definite B.

e_j are the elementary symmetric polynomials of B's eigenvalues, so that those of BP are λ_i e_τ(λ without λ_i): the τ largest stop to
matter, without being known, and τ = n − 1 gives a multiple of B⁻¹.

Doikov, Rodomanov: Polynomial Preconditioning for Gradient Methods, ICML 2023, arXiv 2301.13194.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key
from fallline.core.operators import LinearOperator, lanczos
from fallline.solvers.descent.local import cut


class SymmetricPolyPrecond:
    """P = Σ_i (−1)^i (e_{τ−i}/e_τ) B^i: the symmetric polynomial preconditioner of a positive semi-definite B, scaled to P → I.

    Parameters
    ----------
    B : Tensor (n, n), LinearOperator, or scipy.sparse.linalg.LinearOperator
        Symmetric; only products are used after the start.
    degree : int
        τ, from 0 to n − 1.
    probes : int, default 100
        For an operator, whose traces are estimated from so many random vectors (exactly if n or more); the eigenvalues of a matrix are
        computed, which is stable for every degree.
    key : Key or int, default 0
        Of the random vectors.

    Raises
    ------
    ValueError
        B is not symmetric, not square or has a negative eigenvalue; the degree is not from 0 to n − 1.

    Notes
    -----
    Estimated power traces give the e_j by Newton's identities, which cancel from a degree of about 8 on: where ⟨g, Pg⟩ is not positive,
    methods say so. Everything is computed with B scaled to a mean eigenvalue of 1.
    """

    def __init__(self, B: Any, degree: int, *, probes: int = 100, key: Key | int = 0) -> None:
        self.operator = checked_symmetric(B)
        n = self.operator.shape[0]
        if isinstance(degree, bool) or not isinstance(degree, int) or not 0 <= degree < n:
            raise ValueError(f"degree must be a whole number from 0 to n - 1 = {n - 1}, got {degree!r}")
        check_count("probes", probes, "100 is typical")
        self.degree = degree
        if isinstance(B, Tensor) and B.layout is torch.strided:
            eigenvalues = torch.linalg.eigvalsh(B)
            if float(eigenvalues[0]) < -cut(eigenvalues):
                raise ValueError(f"B must be positive semi-definite, got the eigenvalue {float(eigenvalues[0]):.3g}")
            self.scale = float(eigenvalues.mean())
            symmetric = _symmetric_of_values(eigenvalues.clamp(min=0) / self.scale, degree)
        else:
            traces = _power_traces(self.operator, degree, probes, as_key(key))
            self.scale = traces[0] / n
            symmetric = _symmetric_of_traces([trace / self.scale**i for i, trace in enumerate(traces, 1)], degree)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"B must be positive semi-definite and not 0, got the mean eigenvalue {self.scale:.3g}")
        if not symmetric[degree] > 0:
            raise ValueError(f"degree must be lower: the estimated traces of B give a negative e_{degree}; "
                             "take more probes, or a matrix")
        self.coefficients = [(-1) ** i * symmetric[degree - i] / symmetric[degree] for i in range(degree + 1)]

    def matvec(self, v: Tensor) -> Tensor:
        """Return P v, by ``degree`` products with B."""
        return polynomial(self.operator, self.coefficients, self.scale, v)

    def extreme_eigs(self, steps: int = 100) -> tuple[float, float]:
        """Return the least and the largest eigenvalue of BP: from Ritz values of up to ``steps`` products with B."""
        n = self.operator.shape[0]
        generator = Key(0).fold("extreme").generator()
        values = torch.linalg.eigvalsh(lanczos(self.operator, min(n, steps), generator=generator).tridiagonal)
        along = [float(value) * sum(c * (float(value) / self.scale) ** i for i, c in enumerate(self.coefficients)) for value in values]
        return min(along), max(along)

    def __repr__(self) -> str:
        return f"SymmetricPolyPrecond({self.operator!r}, degree={self.degree})"


def polynomial(operator: LinearOperator, coefficients: Sequence[float], scale: float, v: Tensor) -> Tensor:
    """Σ_i c_i (B/scale)^i v by Horner's rule."""
    found = coefficients[-1] * v
    for coefficient in reversed(coefficients[:-1]):
        found = coefficient * v + operator.matvec(found) / scale
    return found


def checked_symmetric(B: Any) -> LinearOperator:
    """Return a symmetric matrix, torch or SciPy operator as a ``LinearOperator``, or say what is wrong with it."""
    if not (isinstance(B, LinearOperator | Tensor) or (hasattr(B, "matvec") and hasattr(B, "shape"))):
        raise TypeError(f"B must be a matrix, a LinearOperator or SciPy's, got {type(B).__name__}")
    if len(B.shape) != 2 or B.shape[0] != B.shape[1]:
        raise ValueError(f"B must be square, got shape {tuple(B.shape)}")
    if isinstance(B, Tensor) and B.layout is torch.strided:
        apart = float((B - B.mT).abs().max())
        if not apart <= max(1e-8, 10 * len(B) * torch.finfo(B.dtype).eps) * float(B.abs().max()):
            raise ValueError(f"B must be symmetric and finite, and differs from its transpose by up to {apart:.3g}; "
                             "(B + B.T) / 2 is symmetric")
    return operator_of(B)


def operator_of(B: Any) -> LinearOperator:
    """Return a matrix or operator that has been checked as a ``LinearOperator``."""
    if isinstance(B, LinearOperator):
        return B
    if isinstance(B, Tensor):
        return LinearOperator.from_tensor(B)
    product = lambda v: torch.as_tensor(B.matvec(v.detach().cpu().numpy()), dtype=v.dtype).reshape(-1)
    return LinearOperator(B.shape, product, product, dtype=torch.float64)


def _symmetric_of_values(values: Tensor, degree: int) -> list[float]:
    """e_0 … e_τ by taking in one eigenvalue after the other: sums of non-negative numbers, so nothing cancels."""
    e = torch.zeros(degree + 1, dtype=torch.float64)
    e[0] = 1
    for value in values.double().cpu():
        e[1:] += value * e[:-1].clone()
    found: list[float] = e.tolist()
    return found


def _symmetric_of_traces(traces: list[float], degree: int) -> list[float]:
    """j e_j = Σ_{i=1..j} (−1)^{i−1} e_{j−i} tr B^i."""
    e = [1.0]
    for j in range(1, degree + 1):
        e.append(sum((-1) ** (i - 1) * e[j - i] * traces[i - 1] for i in range(1, j + 1)) / j)
    return e


def _power_traces(operator: LinearOperator, degree: int, probes: int, key: Key) -> list[float]:
    """tr B, …, tr B^τ (tr B at least) from zᵀB^i z over random signs z, or over the unit vectors if there are as many probes."""
    n, power = operator.shape[0], max(1, degree)
    if probes >= n:
        vectors = torch.eye(n, dtype=operator.dtype, device=operator.device)
    else:
        bits = torch.randint(2, (probes, n), generator=key.fold("traces").generator())
        vectors = (2 * bits - 1).to(operator.device, operator.dtype)
    sums = [0.0] * power
    for z in vectors:
        Bz = z
        for i in range(power):
            Bz = operator.matvec(Bz)
            sums[i] += float(z @ Bz)
    return [total * n / len(vectors) for total in sums]
