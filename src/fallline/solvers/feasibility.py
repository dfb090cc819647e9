"""A common point of two convex sets by Douglas-Rachford, or a hyperplane between them.

    a = P_A(z),   b = P_B(2a − z),   T z = z + b − a;        z − T z = a − b → v, the shortest of closure(A − B)

T is averaged. At a fixed point a = b is common. If the sets have a gap, v is the normal of a hyperplane between them. That is proven by
two more projections, from far away along an estimate of v:

    q = P_B(b + t v/‖v‖),  n ∝ b + t v/‖v‖ − q:     ⟨n, s − q⟩ ≤ 0 on B
    p = P_A(a − t n),      m = n + (p − a)/t:        ⟨m, s − p⟩ ≥ 0 on A

so that a common point s has ⟨m − n, s − q⟩ ≥ ⟨m, p − q⟩, and is no nearer to q than ⟨m, p − q⟩ / ‖m − n‖ = t ⟨m, p − q⟩ / ‖p − a‖. This
is exact, whatever the estimate was, and infinite where n is normal to both sets. The same is tried with the sets exchanged.

J. Park, E. K. Ryu, ICML 2023, arXiv 2303.15876; H. H. Bauschke, W. M. Moursi: On the Douglas-Rachford algorithm, Math. Program. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.fixed_point import FixedPoint
from fallline.core.problem import Problem

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Separation:
    """A proof that two convex sets have no common point near them.

    Attributes
    ----------
    normal : Tensor
        Of norm 1, from the second set to the first; exactly normal to one of them at its point.
    first, second : Tensor
        Points of the sets, p and q.
    gap : float
        ⟨normal, first − second⟩, which is the distance of the sets where the normal is that of their shortest difference.
    radius : float
        Every common point would be at least so far from the point at which the normal is exact; infinite where it is at both.
    """

    normal: Tensor
    first: Tensor
    second: Tensor
    gap: float
    radius: float

    @property
    def verdict(self) -> str:
        """What is proven, in a sentence."""
        return f"infeasible: a hyperplane lies between the sets, {self.gap:.6g} apart along its normal; a common point would be at " \
               f"least {self.radius:.3g} away"

    def __repr__(self) -> str:
        return f"Separation({self.verdict})"


def Feasibility(A: Any, B: Any, z0: Tensor, *, radius: float | None = None, **options: Any) -> Problem:
    """Find a point of A ∩ B, as a fixed point of the Douglas-Rachford map.

    Solved by ``equations.Picard`` or ``equations.Halpern``. The solution is the z of the iteration; ``problem.point(z)`` is P_A(z), the
    point of A, and ``observe`` reports ``residual_norm``, its distance to a point of B.

    Parameters
    ----------
    A, B : sets with ``project(x)`` (``fallline.core.sets``), or projections ``x -> x``
        Onto closed convex sets.
    z0 : Tensor
    radius : float, optional
        Where it is known: a common point, if there is one, lies within this distance of ``z0``. It is a fixed point, and runs end as
        infeasible once the iterates have shown that there is none so near.
    **options
        ``name``, ``facts``, ``budget`` of ``Problem``.

    Notes
    -----
    Runs end as infeasible where a common point would be further away than ε^(−1/2) times the larger of 1 and the coordinates (7e7 in
    float64), and with a radius further from ``z0`` than that. A gap of less than 1e-6 of the coordinates (100 √ε) is within the
    rounding of the proof, and ends no run. Sets at a distance of zero without a common point, such as a hyperbola and its asymptote,
    cannot be told from sets with one: they end as converged, with a point of each within the tolerance.
    """
    first, second = (_projection(each, name) for each, name in ((A, "A"), (B, "B")))

    def step(z: Tensor) -> Tensor:
        a = first(z)
        return z + second(2 * a - z) - a

    def certify(z: Tensor, v: Tensor) -> Separation | None:
        a = first(z)
        b = second(2 * a - z)
        found = max(_separations(first, second, a, b, v), key=lambda each: each.radius, default=None)
        if found is None:
            return None
        size = max(1.0, float(found.first.abs().max()), float(found.second.abs().max()))
        least = torch.finfo(z.dtype).eps ** -0.5 * size
        if radius is not None:
            least = max(least, radius + max(float(torch.linalg.vector_norm(point - z0)) for point in (found.first, found.second)))
        return found if found.radius > least else None

    return FixedPoint(step, z0, certify=certify, radius=radius, **{"name": "feasibility", "given": {"point": first}, **options})


def _projection(each: Any, name: str) -> Projection:
    project = getattr(each, "project", each)
    if not callable(project):
        raise TypeError(f"{name} must be a set with project(x), or a function that projects, got a {type(each).__name__}")
    return project


def _separations(first: Projection, second: Projection, a: Tensor, b: Tensor, v: Tensor) -> Iterator[Separation]:
    """The hyperplanes that come from an estimate v of the shortest difference, exact at either set."""
    if float(torch.linalg.vector_norm(v)) == 0:
        return
    far = torch.finfo(v.dtype).eps ** -0.5 * max(1.0, float(a.abs().max()), float(b.abs().max()))
    for one, other, x, y, sign in ((second, first, b, a, 1.0), (first, second, a, b, -1.0)):
        start = x + far * sign * v / torch.linalg.vector_norm(v)
        q = one(start)
        outside = torch.linalg.vector_norm(start - q)
        if not outside > 0:
            continue
        n = (start - q) / outside
        p = other(y - far * n)
        gap, miss = _dot(n, p - q), float(torch.linalg.vector_norm(p - y))
        advantage = gap + _dot(p - y, p - q) / far
        # From so far away a projection is off by ε · far, and a gap of that size is rounding.
        if min(gap, advantage) > 100 * torch.finfo(v.dtype).eps * far:
            radius = far * advantage / miss if miss > 0 else math.inf
            yield Separation(sign * n, *((p, q) if sign > 0 else (q, p)), gap, radius)


def _dot(x: Tensor, y: Tensor) -> float:
    return float(torch.vdot(x.reshape(-1), y.reshape(-1)))
