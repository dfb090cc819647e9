"""Newton's direction with a step size that is safe from any start.

    n = H⁻¹g,   G = √⟨g, n⟩,   x⁺ = x − α n
    search:  α_j = 1/(1 + θ_j),  θ_j = c^j σ G^β:  first j = 0, 1, … with 2 α_j θ_j ⟨∇f(x_j), n⟩ ≥ ⟨∇f(x_j), H⁻¹∇f(x_j)⟩;  σ ← c^{j−1} σ
    root:    α = 1/(1 + θ),  θ = (9M)^{1/(q−1)} G^{(q−2)/(q−1)}
    AICN:    α = (√(1 + 2LG) − 1)/(LG)

q = p + ν ∈ [2, 4] for a p-th derivative (p = 2, 3) that is Hölder continuous of exponent ν in the local norm √⟨h, Hh⟩, with constant M
(L at q = 3). Global rate O(k^{−(q−1)}), so k⁻³ at q = 4, where AICN has k⁻²; the search matches the best (q, M) without knowing it. All
are the same in every basis of the variables. Near the solution θ → 0, and Newton's method is left.

Hanzely, Abdukhakimov, Takáč: Damped Newton Method with Near-Optimal Global O(k⁻³) Convergence Rate, arXiv 2405.18926.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.solvers.descent.curvature import Curvature, Exact
from fallline.solvers.descent.descents import Descent, NewtonStep, Path, Ray
from fallline.solvers.descent.minimizer import Composed
from fallline.solvers.descent.searches import Found, Memory, Search, Trials

TRIALS = 100


def _ray(path: Path, search: Search) -> Ray:
    if not isinstance(path, Ray) or not path.newton:
        raise TypeError(f"{type(search).__name__} sizes Newton's direction: use it with NewtonStep()")
    return path


def _indefinite() -> str:
    return ("the Hessian has a negative eigenvalue, so that Newton's direction need not descend: LazyCubicNewton and TrustRegionCG "
            "handle non-convex objectives")


@dataclass(frozen=True)
class DampedSearch(Search):
    """The largest α_j = 1/(1 + c^j σ G^β) that passes the test of the gradient at its end; σ is adapted."""

    beta: float = 1.0
    sigma: float = 1.0
    c: float = 2.0

    def __post_init__(self) -> None:
        if not 2 / 3 <= self.beta <= 1:
            raise ValueError(f"beta must be from 2/3 to 1, got {self.beta}; (q − 2)/(q − 1) fits the class q, and 1 all of them")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be a finite number > 0, got {self.sigma}")
        if not (math.isfinite(self.c) and self.c > 1):
            raise ValueError(f"c must be > 1, got {self.c}: with 1 the damping would never grow")

    def start(self) -> Memory:
        return {"sigma": float(self.sigma)}

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        ray, sigma = _ray(path, self), memory["sigma"]
        if ray.indefinite:
            return Found(None, memory, _indefinite())
        for j in range(TRIALS):
            theta = math.exp(min(700.0, j * math.log(self.c))) * sigma * ray.decrement**self.beta
            alpha = 1 / (1 + theta)
            step = ray(alpha)
            point = None if step is None else trials.at(step)
            if point is None or not point.finite:
                continue
            solved = ray.local.solve(point.gradient)
            assert solved is not None and ray.preconditioned is not None  # the same factor gave the direction
            if 2 * alpha * theta * float(point.gradient @ ray.preconditioned) >= float(point.gradient @ solved):
                return Found(point, {"sigma": self.c ** (j - 1) * sigma})
        return Found(None, memory, f"no step was accepted in {TRIALS} trials, down to a size of {alpha:.3g}: the decrement is "
                     f"{ray.decrement:.3g}, which may be rounding; else is the gradient that of the objective?")


@dataclass(frozen=True)
class _Formula(Search):
    """α as a function of G."""

    def size(self, decrement: float) -> float:
        """Return α."""
        raise NotImplementedError(f"{type(self).__name__} must define size")

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        ray = _ray(path, self)
        step = None if ray.indefinite else ray(self.size(ray.decrement))
        return Found(None, memory, _indefinite()) if step is None else Found(trials.at(step), memory)


@dataclass(frozen=True)
class RootSize(_Formula):
    """α = 1/(1 + (9M)^{1/(q−1)} G^{(q−2)/(q−1)})."""

    q: float = 4.0
    M: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.q <= 4:
            raise ValueError(f"q must be from 2 to 4, got {self.q}: 3 for a Lipschitz Hessian, 4 for a Lipschitz third derivative")
        if not (math.isfinite(self.M) and self.M > 0):
            raise ValueError(f"M must be a finite number > 0, got {self.M}")

    def size(self, decrement: float) -> float:
        return 1 / (1 + (9 * self.M) ** (1 / (self.q - 1)) * decrement ** ((self.q - 2) / (self.q - 1)))


@dataclass(frozen=True)
class AffineInvariantCubicSize(_Formula):
    """α = (√(1 + 2LG) − 1)/(LG) = 2/(√(1 + 2LG) + 1)."""

    L: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.L) and self.L > 0):
            raise ValueError(f"L must be a finite number > 0, got {self.L}")

    def size(self, decrement: float) -> float:
        return 2 / (math.sqrt(1 + 2 * self.L * decrement) + 1)


@dataclass(frozen=True)
class _DampedNewton(Composed):
    def _size(self) -> Search:
        raise NotImplementedError(f"{type(self).__name__} must define _size")

    def __post_init__(self) -> None:
        self._size()  # the door

    def parts(self) -> tuple[Descent, Search, Curvature]:
        return NewtonStep(), self._size(), Exact()


@register("damped-newton")
@dataclass(frozen=True)
class DampedNewton(_DampedNewton):
    """x⁺ = x − α H⁻¹g with the largest α = 1/(1 + c^j σ G^β), j = 0, 1, …, that passes
    2αθ⟨∇f(x⁺), n⟩ ≥ ⟨∇f(x⁺), H⁻¹∇f(x⁺)⟩. For convex objectives; no constant to know.

    Parameters
    ----------
    beta : float, default 1
        From 2/3 to 1; (q − 2)/(q − 1) matches the class q.
    sigma0 : float, default 1
        σ of the first step; the run adapts it.
    c : float, default 2
        How the damping grows between trials; > 1.

    Notes
    -----
    A step costs one Hessian and its factorisation, and a gradient for every trial. A singular Hessian is inverted on its range. Where
    it has a negative eigenvalue the run ends as "failed". Reports the gradient norm as the gap. Memory O(d²).
    """

    beta: float = 1.0
    sigma0: float = 1.0
    c: float = 2.0

    def _size(self) -> Search:
        return DampedSearch(self.beta, self.sigma0, self.c)


@register("root-newton")
@dataclass(frozen=True)
class RootNewton(_DampedNewton):
    """x⁺ = x − n/(1 + θ), θ = (9M)^{1/(q−1)} G^{(q−2)/(q−1)}. For convex objectives whose class q and constant M are known.

    Parameters
    ----------
    q : float, default 4
        From 2 to 4.
    M : float, default 1
        The Hölder constant in the local norm.
    """

    q: float = 4.0
    M: float = 1.0

    space: ClassVar[Mapping[str, Range]] = {"M": LogUniform(1e-2, 1e3)}

    def _size(self) -> Search:
        return RootSize(self.q, self.M)


@register("aicn")
@dataclass(frozen=True)
class AICN(_DampedNewton):
    """x⁺ = x − α n, α = (√(1 + 2LG) − 1)/(LG): the affine-invariant cubic Newton method.

    Parameters
    ----------
    L : float, default 1
        The semi-strong self-concordance constant: the Lipschitz constant of the Hessian in the local norm.
    """

    L: float = 1.0

    space: ClassVar[Mapping[str, Range]] = {"L": LogUniform(1e-2, 1e3)}

    def _size(self) -> Search:
        return AffineInvariantCubicSize(self.L)
