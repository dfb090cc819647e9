"""Moves that keep a term or a set in view: proximal steps, and mirror steps in other geometries than the Euclidean one.

    proximal   x⁺ = prox_{η h}(x − η u) = argmin_z h(z) + ⟨u, z − x⟩ + ‖z − x‖² / (2 η)
    entropy    x⁺ ∝ x exp(−η u), on the simplex:   ψ(x) = Σ x log x
    p-norm     ∇ψ(x⁺) = ∇ψ(x) − η u:   ψ(x) = ‖x‖_p² / (2 (p − 1)), 1 < p ≤ 2

x⁺ = argmin_z h(z) + ⟨u, z − x⟩ + D_ψ(z, x) / η in all of them. Both ψ are 1-strongly convex, in ‖·‖₁ and in ‖·‖_p, and ∇ψ of the p-norm
and its inverse are ∇(‖x‖_p² / 2) / (p − 1) and ∇(‖·‖_q² / 2) at (p − 1) θ, 1/p + 1/q = 1. Parameters come stacked, ``(B, *shape)``, and
each is treated by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.terms import Term
from fallline.optim.engine.parts import Move


def _each(term: Term, x: Tensor, step: Any) -> Tensor:
    """The proximal map of every tensor of a stack: a term may take all of a tensor for one vector."""
    return torch.stack([term.prox(one, step) for one in x]) if len(x) > 1 else term.prox(x[0], step)[None]


@dataclass(frozen=True)
class Proximal(Move):
    """prox_{η h}(x − η u); the projection where h is a set."""

    term: Term

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        moved = super().__call__(p, u, c, decays)
        return _each(self.term, moved, c.lr) if moved.numel() else moved


@dataclass(frozen=True)
class Mirror(Move):
    """What mirror moves share: ``dim`` is the dimension of a parameter that forms a vector, None all of it."""

    dim: int | None = None

    def axes(self, p: Tensor) -> tuple[int, ...]:
        """The dimensions of a stack that form the vectors."""
        if self.dim is None:
            return tuple(range(1, p.ndim))
        return (self.dim if self.dim < 0 else self.dim + 1,)


@dataclass(frozen=True)
class EntropicMirror(Mirror):
    """x exp(−η u) / Σ x exp(−η u), from logarithms.

    An entry that has become too small for the precision counts as the smallest normal number, from which it can come back.
    """

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        if not p.numel():
            return p
        axes = self.axes(p)
        exponents = p.clamp(min=torch.finfo(p.dtype).tiny).log() - c.lr * u
        found = (exponents - exponents.amax(axes, keepdim=True)).exp()
        return found / found.sum(axes, keepdim=True)


@dataclass(frozen=True)
class PNormMirror(Mirror):
    """(∇ψ)⁻¹(∇ψ(x) − η u); a term is added in the dual, which is right where its subgradients depend on signs only."""

    p: float = 1.5
    term: Term | None = None

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        if not p.numel():
            return p
        axes = self.axes(p)
        dual = _half_square_gradient(p, self.p, axes) / (self.p - 1) - c.lr * u
        if self.term is not None:
            dual = _each(self.term, dual, c.lr)
        return _half_square_gradient((self.p - 1) * dual, self.p / (self.p - 1), axes)


def _half_square_gradient(x: Tensor, r: float, axes: tuple[int, ...]) -> Tensor:
    """∇(‖x‖_r² / 2) = sign(x) |x|^{r−1} ‖x‖_r^{2−r}, scaled by the largest entry, so that no power overflows."""
    largest = x.abs().amax(axes, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    size = x.abs() / largest
    norm = size.pow(r).sum(axes, keepdim=True).pow(1 / r)
    return x.sign() * size.pow(r - 1) * torch.where(norm > 0, norm, 1.0).pow(2 - r) * largest
