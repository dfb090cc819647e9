"""Stochastic estimates of traces, diagonals and spectra from products with random signs z.

    tr A ≈ mean zᵀ A z,   diag A ≈ mean z * A z,   tr f(A) ≈ n · mean Σ_k ω_k f(θ_k),

where (θ, y) are the eigenpairs of the Lanczos matrix started at z/√n and ω_k = y_{k,1}². The first two are unbiased;
the third is Gauss quadrature, exact for polynomials f of degree below twice the number of Lanczos steps.

Sources: M. F. Hutchinson, Commun. Stat. Simul. 19 (1990) 433; C. Bekas, E. Kokiopoulou and Y. Saad,
Appl. Numer. Math. 57 (2007) 1214; S. Ubaru, J. Chen and Y. Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fallline.core.operators.linear import LinearOperator, inner, random_signs, square_size
from fallline.core.operators.spectra import lanczos

__all__ = ["Estimate", "SpectralDensity", "hutchinson_diagonal", "hutchinson_trace", "spectral_density"]


@dataclass(frozen=True)
class Estimate:
    """A sample mean with its standard error (infinite for one sample), both of the same shape."""

    value: Tensor
    standard_error: Tensor
    samples: int

    def __repr__(self) -> str:
        if self.value.ndim == 0:
            return f"Estimate({float(self.value):.6g} ± {float(self.standard_error):.2g}, samples={self.samples})"
        return f"Estimate(shape={tuple(self.value.shape)}, samples={self.samples})"


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of eigenvalues as weighted nodes: Σ_k weights_k = 1, tr f(A) ≈ n Σ_k weights_k f(nodes_k).

    Attributes
    ----------
    nodes, weights : Tensor, shape (m,)
        Ritz values of all samples, ascending, with their quadrature weights.
    size : int
        n, the number of eigenvalues.
    samples : int
        Number of start vectors.
    """

    nodes: Tensor
    weights: Tensor
    size: int
    samples: int

    def trace(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the estimate of tr f(A), for a function that acts on a tensor entry by entry."""
        return self.size * (self.weights * function(self.nodes)).sum()

    def density(self, grid: Tensor, width: float) -> Tensor:
        """Return the density at the grid's points, smoothed by Gaussians of standard deviation ``width``."""
        if not width > 0:
            raise ValueError(f"width must be > 0, got {width}; 1% of the spectrum's range is typical")
        distances = (grid.unsqueeze(-1) - self.nodes) / width
        kernel = torch.exp(-(distances**2) / 2) / (width * math.sqrt(2 * math.pi))
        return kernel @ self.weights

    def __repr__(self) -> str:
        low, high = float(self.nodes[0]), float(self.nodes[-1])
        return f"SpectralDensity([{low:.4g}, {high:.4g}], nodes={len(self.nodes)}, samples={self.samples})"


def hutchinson_trace(operator: LinearOperator, samples: int, generator: torch.Generator) -> Estimate:
    """Estimate tr A by the mean of zᵀ A z over random signs z; exact for a diagonal A.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
    samples : int
        Number of products; the variance for a symmetric A is 2 Σ_{i≠j} A_ij² / samples.
    generator : torch.Generator
    """
    square_size(operator, "hutchinson_trace")
    _check_samples(samples)
    draws = []
    for _ in range(samples):
        z = random_signs(operator, generator)
        draws.append(inner(z, operator.matvec(z)))
    return _estimate(torch.stack(draws))


def hutchinson_diagonal(operator: LinearOperator, samples: int, generator: torch.Generator) -> Estimate:
    """Estimate diag A, shape (n,), by the mean of z * A z over random signs z; exact for a diagonal A.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
    samples : int
        Number of products; the variance of entry i is Σ_{j≠i} A_ij² / samples.
    generator : torch.Generator
    """
    square_size(operator, "hutchinson_diagonal")
    _check_samples(samples)
    draws = []
    for _ in range(samples):
        z = random_signs(operator, generator)
        draws.append(z * operator.matvec(z))
    return _estimate(torch.stack(draws))


def spectral_density(operator: LinearOperator, steps: int, samples: int, generator: torch.Generator) -> SpectralDensity:
    """Estimate the distribution of eigenvalues of a self-adjoint operator by stochastic Lanczos quadrature.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
    steps : int
        Lanczos steps for each sample, n at most; 30 to 100 are typical.
    samples : int
        Number of start vectors of random signs.
    generator : torch.Generator
    """
    length = square_size(operator, "spectral_density")
    _check_samples(samples)
    nodes, weights = [], []
    for _ in range(samples):
        found = lanczos(operator, steps, start=random_signs(operator, generator))
        values, vectors = torch.linalg.eigh(found.tridiagonal)
        nodes.append(values)
        weights.append(vectors[0] ** 2 / samples)
    merged, order = torch.sort(torch.cat(nodes))
    return SpectralDensity(merged, torch.cat(weights)[order], length, samples)


def _estimate(draws: Tensor) -> Estimate:
    samples = len(draws)
    mean = draws.mean(dim=0)
    if samples == 1:
        return Estimate(mean, torch.full_like(mean.real, float("inf")), samples)
    return Estimate(mean, draws.std(dim=0) / math.sqrt(samples), samples)


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
