"""Cones: the nearest point, and the first point along an interior ray.

    project(x) = argmin_{z ∈ K} ‖z − x‖,        radial(x) = x + t ρ,   the least t ≥ 0 with x + t ρ ∈ K,   ρ ∈ int K

    second-order, x = (t, v), t ≥ ‖v‖       project: (t + ‖v‖)/2 · (1, v/‖v‖) outside of K and −K     radial: (max(t, ‖v‖), v)
    positive semidefinite, X = Q Λ Qᵀ       project: Q max(Λ, 0) Qᵀ                                   radial: X + max(0, −λ_min) I

Both are maps onto the cone that leave its points alone and can be differentiated: layers for what must lie in a cone. The nonnegative
numbers are ``NonNegative``.

Source: N. Parikh and S. Boyd, *Proximal Algorithms*, Found. Trends Optim. 1 (2014) 127; M. Tanneau, P. Van Hentenryck, Dual
Lagrangian learning for conic optimization, NeurIPS 2024, arXiv 2402.03086.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fallline.core.sets.base import Set

__all__ = ["PositiveSemidefinite", "SecondOrderCone", "SelfDualCone", "along_ray"]

BISECTIONS = 60


class SelfDualCone(Set):
    """A closed convex cone K that is its own dual: K = {g : ⟨g, s⟩ ≥ 0 for all s in K}."""

    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return 0, if g is in the cone.

        Raises
        ------
        ValueError
            If g is not: ⟨g, s⟩ has no minimum.
        """
        if not self.contains(g):
            raise ValueError(f"{self!r} is unbounded along -g: the linear function has no minimum unless g is in the cone")
        return torch.zeros_like(g)

    @abc.abstractmethod
    def radial(self, x: Tensor) -> Tensor:
        """Return the first point of the cone on the way from x along its interior ray."""


class SecondOrderCone(SelfDualCone):
    """{(t, v) : t ≥ ‖v‖}, t the first entry of the last dimension; the others are a batch."""

    def project(self, x: Tensor) -> Tensor:
        """Return x inside, 0 where −x is inside, else (t + ‖v‖)/2 · (1, v/‖v‖)."""
        t, v, norm = self._split(x)
        # The inner where keeps the unused branch finite, so that its gradient is 0 and not NaN.
        scale = torch.where(norm > t.abs(), (t + norm) / 2, 1.0)
        between = torch.cat([scale, scale * v / torch.where(norm > 0, norm, 1.0)], -1)
        return torch.where(norm <= t, x, torch.where(norm <= -t, 0.0, between))

    def radial(self, x: Tensor) -> Tensor:
        """Return (max(t, ‖v‖), v)."""
        t, v, norm = self._split(x)
        return torch.cat([torch.maximum(t, norm), v], -1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, v = x[..., :1], x[..., 1:]
        return t, v, torch.linalg.vector_norm(v, dim=-1, keepdim=True)

    def _violation(self, x: Tensor) -> Tensor:
        t, _, norm = self._split(x)
        return norm - t

    def __repr__(self) -> str:
        return "SecondOrderCone()"


class PositiveSemidefinite(SelfDualCone):
    """{X = Xᵀ : X ⪰ 0}, matrices in the last two dimensions; the others are a batch. The maps look at the symmetric part of X."""

    def project(self, x: Tensor) -> Tensor:
        """Return the symmetric part with its negative eigenvalues replaced by 0."""
        projected: Tensor = _ClippedEigenvalues.apply((x + x.mT) / 2)
        return projected

    def radial(self, x: Tensor) -> Tensor:
        """Return the symmetric part plus max(0, −λ_min) I."""
        symmetric = (x + x.mT) / 2
        least = torch.linalg.eigvalsh(symmetric)[..., :1, None]
        return symmetric + (-least).clamp(min=0) * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

    def _violation(self, x: Tensor) -> Tensor:
        return torch.maximum(-torch.linalg.eigvalsh((x + x.mT) / 2)[..., 0], (x - x.mT).abs().amax((-2, -1)))

    def __repr__(self) -> str:
        return "PositiveSemidefinite()"


class _ClippedEigenvalues(torch.autograd.Function):
    """Q max(Λ, 0) Qᵀ; autograd through ``eigh`` would divide by differences of eigenvalues, which may be equal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(x)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        values, Q = ctx.saved_tensors
        clipped = values.clamp(min=0)
        rise, run = (v.unsqueeze(-1) - v.unsqueeze(-2) for v in (clipped, values))
        slope = torch.where(run == 0, (values > 0).to(values.dtype).unsqueeze(-1), rise / torch.where(run == 0, 1.0, run))
        inner = Q.mT @ ((upstream + upstream.mT) / 2) @ Q
        return Q @ (slope * inner) @ Q.mT


def along_ray(x: Tensor, ray: Tensor, violation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return x + t ρ with the least t ≥ 0 that brings it into {z : violation(z) ≤ 0}, with its derivative: for cones without a formula.

    Parameters
    ----------
    x : Tensor (…, n)
    ray : Tensor (n,)
        ρ, in the interior.
    violation : callable ``(…, n) -> (…)``
        Convex and differentiable almost everywhere; 0 on the boundary, positive (it may be infinite) outside.

    Raises
    ------
    ValueError
        The ray does not lead into the cone.
    """
    start = x.detach()
    outside = violation(start) > 0
    low = torch.zeros_like(outside, dtype=x.dtype)
    high = torch.where(outside, 1.0, 0.0).to(x.dtype)
    for _ in range(BISECTIONS):
        far = violation(start + high.unsqueeze(-1) * ray) > 0
        if not bool(far.any()):
            break
        low, high = torch.where(far, high, low), torch.where(far, 2 * high, high)
    else:
        raise ValueError(f"ray must point into the interior of the cone, got {ray.tolist()}, along which x + t ray stays outside")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        far = violation(start + middle.unsqueeze(-1) * ray) > 0
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    if not x.requires_grad:
        return x + high.unsqueeze(-1) * ray
    # On the boundary, violation(x + t ρ) = 0 gives dt = −⟨∇violation, dx⟩ / ⟨∇violation, ρ⟩.
    edge = (start + high.unsqueeze(-1) * ray).requires_grad_()
    with torch.enable_grad():
        normal = torch.autograd.grad(violation(edge).sum(), edge)[0]
    along = torch.where(outside, (normal * ray).sum(-1), 1.0)
    change = -((normal * (x - start)).sum(-1) / along)
    return x + torch.where(outside, high + change, 0.0).unsqueeze(-1) * ray
