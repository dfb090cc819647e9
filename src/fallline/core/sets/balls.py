"""The simplex, the ℓ1, ℓ2 and nuclear-norm balls.

The projection onto the simplex {x >= 0, Σ x_i = r} is max(x - θ, 0), with θ such that the sum is r; with x sorted in
descending order, the support is the largest k with x_k > (x_1 + … + x_k - r)/k. The ℓ1 ball follows from it by signs,
the nuclear ball by singular values.

    linear minimisation    simplex: r e_i, i = argmin g_i       ℓ1: -r sign(g_i) e_i, i = argmax |g_i|
                           ℓ2: -r g/‖g‖                         nuclear: -r u₁ v₁ᵀ, the top singular pair of g

Sources: J. Duchi et al., ICML 2008; M. Jaggi, ICML 2013.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.operators import LinearOperator, top_eigenvalues
from fallline.core.sets.base import Set, check_radius

__all__ = ["L1Ball", "L2Ball", "NuclearBall", "Simplex"]

# Above this length of the shorter side, Lanczos finds one singular pair faster than a full eigendecomposition.
_DENSE_SIDE = 256


class Simplex(Set):
    """{x : x >= 0, Σ x_i = total}, for vectors along a dimension.

    Parameters
    ----------
    total : float
        > 0.
    dim : int or None
        The dimension that forms a vector; the others are a batch. None: all of x is one vector.
    """

    def __init__(self, total: float = 1.0, dim: int | None = -1) -> None:
        self.total = check_radius("total", total)
        self.dim = dim

    def project(self, x: Tensor) -> Tensor:
        """Return max(x - θ, 0) with entries that sum to ``total``."""
        vectors = _to_last(x, self.dim)
        return _from_last(_project_simplex(vectors, self.total), x, self.dim)

    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return the vertex of the least entry of g (the first of equals)."""
        vectors = _to_last(g, self.dim)
        return _from_last(self.total * _one_hot(vectors.argmin(dim=-1), vectors), g, self.dim)

    def _violation(self, x: Tensor) -> Tensor:
        vectors = _to_last(x, self.dim)
        return torch.maximum((vectors.sum(dim=-1) - self.total).abs(), -vectors.amin(dim=-1))

    def _scale(self) -> float:
        return self.total

    def __repr__(self) -> str:
        return f"Simplex({self.total:g}, dim={self.dim})"


class L1Ball(Set):
    """{x : Σ |x_i| <= radius}, for vectors along a dimension (``dim`` as in ``Simplex``)."""

    def __init__(self, radius: float = 1.0, dim: int | None = -1) -> None:
        self.radius = check_radius("radius", radius)
        self.dim = dim

    def project(self, x: Tensor) -> Tensor:
        """Return x inside the ball, else sign(x) max(|x| - θ, 0) of norm ``radius``."""
        return _from_last(_project_l1(_to_last(x, self.dim), self.radius), x, self.dim)

    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return the vertex -radius sign(g_i) e_i of the largest |g_i|; zero where g is zero."""
        vectors = _to_last(g, self.dim)
        vertex = _one_hot(vectors.abs().argmax(dim=-1), vectors)
        return _from_last(-self.radius * vectors.sign() * vertex, g, self.dim)

    def _violation(self, x: Tensor) -> Tensor:
        return _to_last(x, self.dim).abs().sum(dim=-1) - self.radius

    def _scale(self) -> float:
        return self.radius

    def __repr__(self) -> str:
        return f"L1Ball({self.radius:g}, dim={self.dim})"


class L2Ball(Set):
    """{x : ‖x‖ <= radius}.

    Parameters
    ----------
    radius : float
        > 0.
    dim : int, tuple of int, or None
        The dimensions that form a vector; the others are a batch. None: all of x is one vector.
    """

    def __init__(self, radius: float = 1.0, dim: int | tuple[int, ...] | None = -1) -> None:
        self.radius = check_radius("radius", radius)
        self.dim = dim

    def project(self, x: Tensor) -> Tensor:
        """Return x inside the ball, else radius x/‖x‖."""
        norms = self._norms(x)
        outside = norms > self.radius
        return x * torch.where(outside, self.radius / torch.where(outside, norms, 1.0), 1.0)

    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return -radius g/‖g‖; zero where g is zero."""
        norms = self._norms(g)
        nonzero = norms > 0
        return torch.where(nonzero, -self.radius / torch.where(nonzero, norms, 1.0), 0.0) * g

    def _norms(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=self.dim, keepdim=True)

    def _violation(self, x: Tensor) -> Tensor:
        return self._norms(x) - self.radius

    def _scale(self) -> float:
        return self.radius

    def __repr__(self) -> str:
        return f"L2Ball({self.radius:g}, dim={self.dim})"


class NuclearBall(Set):
    """{X : Σ σ_i(X) <= radius}, for matrices in the last two dimensions; the others are a batch."""

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = check_radius("radius", radius)

    def project(self, x: Tensor) -> Tensor:
        """Return U diag(p) Vᵀ, with p the projection of the singular values onto the ℓ1 ball."""
        U, sigma, Vh = torch.linalg.svd(x, full_matrices=False)
        return (U * _project_l1(sigma, self.radius).unsqueeze(-2)) @ Vh

    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return -radius u₁ v₁ᵀ; zero where g is zero."""
        peak = g.abs().amax(dim=(-2, -1), keepdim=True)
        # Scaled to a largest entry of 1, the squares in the Gram matrix neither overflow nor vanish.
        scaled = g / torch.where(peak > 0, peak, 1.0)
        tall = scaled if g.shape[-2] >= g.shape[-1] else scaled.mT
        v = _top_right_singular_vector(tall)
        u = tall @ v.unsqueeze(-1)
        norms = torch.linalg.vector_norm(u, dim=-2, keepdim=True)
        nonzero = norms > 0
        pair = (u / torch.where(nonzero, norms, 1.0)) @ v.unsqueeze(-2)
        return -self.radius * (pair if g.shape[-2] >= g.shape[-1] else pair.mT)

    def _violation(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x).sum(dim=-1) - self.radius

    def _scale(self) -> float:
        return self.radius

    def __repr__(self) -> str:
        return f"NuclearBall({self.radius:g})"


def _top_right_singular_vector(tall: Tensor) -> Tensor:
    """Return v₁, shape (..., n), of matrices (..., m, n) with m >= n."""
    if tall.ndim > 2 or tall.shape[-1] <= _DENSE_SIDE:
        return torch.linalg.eigh(tall.mT @ tall).eigenvectors[..., -1]
    A = LinearOperator.from_tensor(tall)
    precision = torch.finfo(tall.dtype).eps ** 0.5
    # A fixed seed keeps the oracle a function of its argument; a random start is orthogonal to v₁ with probability zero.
    generator = torch.Generator().manual_seed(0)
    return top_eigenvalues(A.H @ A, tol=precision, generator=generator).vectors[:, 0]


def _project_simplex(x: Tensor, total: float) -> Tensor:
    shifted = x - x.amax(dim=-1, keepdim=True)
    descending = shifted.sort(dim=-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    support = descending * counts > descending.cumsum(dim=-1) - total
    size = support.sum(dim=-1, keepdim=True)
    # The sum over the support, and not the last partial sum: in float32 the running sum of a long vector has drifted.
    theta = (torch.where(support, descending, 0.0).sum(dim=-1, keepdim=True) - total) / size
    return (shifted - theta).clamp(min=0)


def _project_l1(x: Tensor, radius: float) -> Tensor:
    outside = x.abs().sum(dim=-1, keepdim=True) > radius
    return torch.where(outside, x.sign() * _project_simplex(x.abs(), radius), x)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter(-1, index.unsqueeze(-1), 1.0)


def _to_last(x: Tensor, dim: int | None) -> Tensor:
    return x.reshape(-1) if dim is None else x.movedim(dim, -1)


def _from_last(result: Tensor, x: Tensor, dim: int | None) -> Tensor:
    return result.reshape(x.shape) if dim is None else result.movedim(-1, dim)
