"""Adaptive rules on a product of manifolds: one second moment for each component, and a move along the manifold.

    g = Riemannian gradient;   m ← β₁ τ + (1 − β₁) g;   v ← β₂ v + (1 − β₂) ‖g‖²_x;   u = m / (√v̂ + ε)
    move: x⁺ = exp_x(−η u), and τ = m carried from x to x⁺ by parallel transport

v̂ is the largest v so far (RAMSGrad, not debiased), or v debiased with m debiased (RAdam); Adagrad sums v and has no m. Manifolds are
geoopt's; components are what their ``component_inner`` speaks of: points of a sphere or a ball, entries of a Euclidean space, the
factors of a product. Without a manifold a tensor is a product of lines: all is elementwise, and nothing is carried.

Bécigneul, Ganea: Riemannian Adaptive Optimization Methods, ICLR 2019, arXiv 1810.00760.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.optim.engine.arithmetic import blend, over
from fallline.optim.engine.parts import Direction, Move, Scalars, Tensors
from fallline.optim.engine.state import State


@dataclass(frozen=True)
class OnManifold(Direction):
    """What the rules on a manifold share: whole tensors, Riemannian gradients, squared norms of components."""

    manifold: Any = None

    @property
    def scope(self) -> Any:  # type: ignore[override]
        """Whole tensors on a manifold."""
        return "elementwise" if self.manifold is None else "matrix"

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape)

    def each(self, p: Tensor) -> State:
        """One number a component."""
        if self.manifold is None:
            return State(nonnegative=True)
        x = p.detach()
        return State(tuple(self.manifold.component_inner(x, x).shape) if x.numel() else tuple(p.shape), nonnegative=True)

    def riemannian(self, g: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The Riemannian gradient and its squared norm at ``p``."""
        if self.manifold is None or not p.numel():
            return g, g * g
        gradient = self.manifold.egrad2rgrad(p, g)
        return gradient, self.manifold.component_inner(p, gradient)


@dataclass(frozen=True)
class RiemannianMoments(OnManifold):
    """RAdam: m̂ / (√v̂ + ε)."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1, beta2 = group["betas"]
        return {"new1": 1 - beta1, "new2": 1 - beta2, "eps": group["eps"], "debias1": 1 / (1 - beta1**t),
                "debias2": 1 / math.sqrt(1 - beta2**t)}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_avg": State(), "exp_avg_sq": self.each(p)}

    def moments(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensor]:
        """m and v after the step."""
        gradient, squared = self.riemannian(g, p)
        m = blend(s["exp_avg"], gradient, c.new1, out=over(s["exp_avg"]))
        return m, blend(s["exp_avg_sq"], squared, c.new2, out=over(s["exp_avg_sq"]))

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m, v = self.moments(g, p, s, c)
        return m * c.debias1 / (v.sqrt() * c.debias2 + c.eps), {"exp_avg": m, "exp_avg_sq": v}


@dataclass(frozen=True)
class LargestRiemannianMoments(RiemannianMoments):
    """RAMSGrad: m / (√max v + ε)."""

    def init(self, p: Tensor) -> dict[str, State]:
        return {**super().init(p), "max_exp_avg_sq": self.each(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m, v = self.moments(g, p, s, c)
        largest = torch.maximum(s["max_exp_avg_sq"], v, out=over(s["max_exp_avg_sq"]))
        return m / (largest.sqrt() + c.eps), {"exp_avg": m, "exp_avg_sq": v, "max_exp_avg_sq": largest}


@dataclass(frozen=True)
class RiemannianSum(OnManifold):
    """Adagrad: g / (√Σ ‖g‖² + ε)."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"sum": self.each(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        gradient, squared = self.riemannian(g, p)
        total = s["sum"] + squared
        return gradient / (total.sqrt() + c.eps), {"sum": total}


def parallel_transport(manifold: Any, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """The tangent vector ``v`` at ``x`` carried to ``y``, along the great circle on spheres.

    geoopt's ``Sphere.transp`` projects, which makes v shorter; elsewhere its ``transp`` is taken.
    """
    import geoopt

    if isinstance(manifold, geoopt.Scaled):
        return parallel_transport(manifold.base, x, y, v)
    if isinstance(manifold, geoopt.ProductManifold):
        factors = [(m, *(manifold.take_submanifold_value(t, i) for t in (x, y, v))) for i, m in enumerate(manifold.manifolds)]
        packed: Tensor = manifold.pack_point(*(parallel_transport(*factor) for factor in factors))
        return packed
    if isinstance(manifold, geoopt.Sphere):
        along = (y * v).sum(-1, keepdim=True) / (1 + (x * y).sum(-1, keepdim=True)).clamp(min=1e-15)
        return v - along * (x + y)
    carried: Tensor = manifold.transp(x, y, v)
    return carried


@dataclass(frozen=True)
class Geodesic(Move):
    """exp_x(−η u); the average of gradients follows by parallel transport."""

    manifold: Any

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        # A point that rounding has brought off a sphere would move away from it exponentially.
        moved: Tensor = self.manifold.projx(self.manifold.expmap(p, -c.lr * u))
        return moved

    def carry(self, p: Tensor, moved: Tensor, new: Tensors) -> Tensors:
        if "exp_avg" not in new or not p.numel():
            return {}
        return {"exp_avg": parallel_transport(self.manifold, p, moved, new["exp_avg"])}


@dataclass(frozen=True)
class Retraction(Geodesic):
    """The manifold's retraction, x − η u projected or so, in place of the geodesic."""

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        moved: Tensor = self.manifold.retr(p, -c.lr * u)
        return moved
