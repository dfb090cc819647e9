"""Polynomials of a curvature matrix as preconditioners.

    0 ⪯ B,   μB ⪯ ∇²f ⪯ LB:   P = Σ_{i=0..τ} (−1)^i e_{τ−i} B^i,   e_j the elementary symmetric polynomials of B's eigenvalues
    preconditioned:  x⁺ = x − (1/M) P ∇f(x),   M doubled until f(x⁺) ≤ f(x) − ⟨g, Pg⟩/2M, then halved
    Krylov:          x⁺ = x − (1/M) K (KᵀBK)⁻¹ Kᵀg,   K a basis of span{g, Bg, …, B^τ g};   the same test

The eigenvalues of BP are λ_i e_τ(λ without λ_i): the τ largest stop to matter, without being known, and τ = n − 1 gives a multiple of
B⁻¹. The Krylov step is as good as the best polynomial of that degree. A step costs τ (Krylov: τ + 1) products with B beside the
gradient.

Doikov, Rodomanov: Polynomial Preconditioning for Gradient Methods, ICML 2023, arXiv 2301.13194.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.operators import LinearOperator, lanczos
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Integers, Range
from fallline.core.tree import Tree
from fallline.solvers.descent.curvature import Curvature, Memory
from fallline.solvers.descent.descents import Descent, Path, Ray
from fallline.solvers.descent.local import Local, Unusable, cut, finite
from fallline.solvers.descent.minimizer import KINDS, Composed
from fallline.solvers.descent.searches import Backtracking, Point, Search
from fallline.solvers.symmetric_polynomials import SymmetricPolyPrecond, checked_symmetric, operator_of, polynomial


class _Constant:
    """A local curvature that is the same everywhere."""

    def __init__(self, operator: LinearOperator, precondition: Callable[[Tensor], Tensor]) -> None:
        self.matvec, self.precondition = operator.matvec, precondition


@dataclass(frozen=True)
class Constant(Curvature):
    """A fixed B, by default the Hessian at the start; with a degree, also its polynomial preconditioner.

    Parameters
    ----------
    B : Tensor (n, n) or operator, optional
    degree : int, default 0
    """

    B: Any = None
    degree: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("hessian",) if self.B is None else ()

    def start(self, key: Key) -> Memory:
        return {"matrix": None, "coefficients": None, "scale": None}

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        if self.B is None and memory["matrix"] is None:
            memory = {**memory, "matrix": finite(problem.hessian(x))}
        B = memory["matrix"] if self.B is None else self.B
        if memory["coefficients"] is None:
            memory = {**memory, **self._coefficients(B)}
        operator, coefficients, scale = operator_of(B), memory["coefficients"], memory["scale"]
        local = _Constant(operator, lambda v: polynomial(operator, coefficients, scale, v))
        return cast(Local, local), memory

    def _coefficients(self, B: Any) -> Memory:
        degree = min(self.degree, B.shape[0] - 1)
        if degree == 0:  # P = I: no traces are needed
            return {"coefficients": [1.0], "scale": 1.0}
        try:
            made = SymmetricPolyPrecond(B, degree)
        except ValueError as error:
            raise Unusable(f"{error}; give a positive semi-definite B" if self.B is None else str(error)) from None
        return {"coefficients": made.coefficients, "scale": made.scale}


@dataclass(frozen=True)
class PolynomialStep(Descent):
    """−t P g, P the polynomial of a ``Constant`` curvature."""

    def path(self, local: Local, gradient: Tensor) -> Path:
        if not isinstance(local, _Constant):
            raise TypeError("PolynomialStep needs the curvature Constant(B, degree), whose polynomial it takes")
        ray = Ray(local, gradient, local.precondition(gradient))
        ray.remedy = "B is indefinite, or the degree too high for the precision of its traces: lower it, or give a matrix"
        return ray


@dataclass(frozen=True)
class KrylovStep(Descent):
    """−t K (KᵀHK)⁻¹ Kᵀg, K an orthonormal basis of span{g, Hg, …, H^τ g} for any positive semi-definite curvature H.

    Parameters
    ----------
    degree : int, default 3
        τ.
    """

    degree: int = 3

    def __post_init__(self) -> None:
        check_degree(self.degree)

    def path(self, local: Local, gradient: Tensor) -> Path:
        shape = (len(gradient), len(gradient))
        operator = LinearOperator(shape, local.matvec, local.matvec, dtype=gradient.dtype, device=gradient.device)
        reduced = lanczos(operator, min(self.degree + 1, len(gradient)), start=gradient)
        values, vectors = torch.linalg.eigh(reduced.tridiagonal)
        # A direction that H does not see must not be divided by: the step leaves it out.
        seen = values > cut(values)
        coefficients = torch.where(seen, vectors[0] / torch.where(seen, values, 1.0), 0.0)
        direction = torch.linalg.vector_norm(gradient) * (reduced.basis @ (vectors @ coefficients))
        return Ray(local, gradient, None if float(values[0]) < -cut(values) else direction)


def check_degree(degree: Any) -> None:
    """Raise unless the degree is a whole number of at least 0."""
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
        raise ValueError(f"degree must be a whole number of at least 0 (0 is plain gradient descent), got {degree!r}")


@dataclass(frozen=True)
class _WithMatrix(Composed):
    B: Any = None
    degree: int = 3

    kinds: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    space: ClassVar[Mapping[str, Range]] = {"degree": Integers(0, 10)}

    def __post_init__(self) -> None:
        check_degree(self.degree)
        if self.B is not None:
            n = checked_symmetric(self.B).shape[0]
            if self.degree >= n:
                raise ValueError(f"degree must be below n = {n}, got {self.degree}")


@register("preconditioned-gd")
@dataclass(frozen=True)
class PreconditionedGD(_WithMatrix):
    """x⁺ = x − (1/M) P_τ(B) ∇f(x), M by backtracking on f(x⁺) ≤ f(x) − ⟨g, Pg⟩/2M.

    Parameters
    ----------
    B : Tensor (n, n), LinearOperator or SciPy's, optional
        Symmetric positive semi-definite with μB ⪯ ∇²f ⪯ LB: AᵀA for linear models. By default the Hessian at the start.
    degree : int, default 3
        τ, below n (where B is left out it is cut to that); 0 is gradient descent.

    Notes
    -----
    τ products with B a step; its traces are computed once. Without the paper's composite term. The gap is the gradient norm.
    """

    def parts(self) -> tuple[Descent, Search, Curvature]:
        return PolynomialStep(), Backtracking(), Constant(self.B, self.degree)


@register("krylov-gd")
@dataclass(frozen=True)
class KrylovGD(_WithMatrix):
    """x⁺ = x − (1/M) K(KᵀBK)⁻¹Kᵀ∇f(x), K a basis of span{g, Bg, …, B^τ g}, M by backtracking.

    Parameters
    ----------
    B : Tensor (n, n), LinearOperator or SciPy's, optional
        As in ``PreconditionedGD``.
    degree : int, default 3

    Notes
    -----
    τ + 1 products with B and as many vectors of memory a step. The basis is orthonormal (Lanczos), as that of powers would be nearly
    singular.
    """

    def parts(self) -> tuple[Descent, Search, Curvature]:
        return KrylovStep(self.degree), Backtracking(), Constant(self.B)


@register("preconditioned-fgm")
@dataclass(frozen=True)
class PreconditionedFGM(Method):
    """Nesterov's fast gradient method in the norm of P⁻¹: y = (Ax + av)/(A + a), x⁺ = y − P∇f(y)/M,
    v⁺ = ((1 + μA)v + μa y − a P∇f(y))/(1 + μ(A + a)), M a² = (A + a)(1 + μA), A⁺ = A + a.

    Parameters
    ----------
    B, degree
        As in ``PreconditionedGD``.
    mu : float, default 0
        μ: the strong convexity of f in that norm, where it is known.

    Notes
    -----
    M is doubled until f(x⁺) ≤ f(y) − ⟨g, Pg⟩/2M, then halved. Two evaluations a trial. The gap is the gradient norm at y.
    """

    B: Any = None
    degree: int = 3
    mu: float = 0.0

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    kinds: ClassVar[tuple[str, ...]] = KINDS
    space: ClassVar[Mapping[str, Range]] = {"degree": Integers(0, 10)}

    def __post_init__(self) -> None:
        PreconditionedGD(self.B, self.degree)  # the door
        if not (math.isfinite(self.mu) and self.mu >= 0):
            raise ValueError(f"mu must be a finite number of at least 0, got {self.mu}")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        problem.require(*Constant(self.B).needs, by=type(self).__name__)

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        value, gradient = problem.value_and_gradient(x)
        return {"x": x, "value": value, "gap": tree.norm(gradient), "v": tree.flatten(x), "A": 0.0, "M": 1.0, "failure": "",
                "curvature": Constant(self.B, self.degree).start(key)}

    def step(self, problem: Problem, state: State) -> State:
        if state["failure"]:
            return state
        try:
            local, memory = Constant(self.B, self.degree).at(problem, state["x"], state["curvature"])
        except Unusable as error:
            return {**state, "failure": str(error)}
        x, v, A, M = tree.flatten(state["x"]), state["v"], state["A"], state["M"]
        for _ in range(100):
            c = 1 + self.mu * A
            a = (c + math.sqrt(c * c + 4 * M * c * A)) / (2 * M)
            y = (A * x + a * v) / (A + a)
            value, gradient = problem.value_and_gradient(tree.unflatten(y, state["x"]))
            g = tree.flatten(gradient)
            if not bool(g.any()):
                x = tree.unflatten(y, state["x"])
                return {**state, "x": x, "value": value, "gap": torch.linalg.vector_norm(g), "v": y, "curvature": memory}
            Pg = cast(Any, local).precondition(g)
            ahead = tree.unflatten(y - Pg / M, state["x"])
            found = problem.value(ahead)
            here = Point(state["x"], value, g)
            fall = float(g @ Pg) / (2 * M)
            if float(found) <= float(value) - fall + here.noise:
                v = (c * v + self.mu * a * y - a * Pg) / (1 + self.mu * (A + a))
                return {"x": ahead, "value": found, "gap": torch.linalg.vector_norm(g), "v": v, "A": A + a,
                        "M": M / 2 if fall > here.noise else M,  # rounding passes with every M
                        "failure": "", "curvature": memory}
            M *= 2
        return {**state, "failure": f"no M up to {M:.3g} gives a sufficient decrease: is the gradient that of the objective?"}

    def report(self, problem: Problem, state: State) -> Report:
        report = Report(state["x"], value=state["value"], gap=state["gap"])
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report
