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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key
from fallline.core.method import Method, Report, State
from fallline.core.operators import LinearOperator, lanczos
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Integers, Range
from fallline.core.tree import Tree
from fallline.solvers.descent.curvature import Curvature, Memory
from fallline.solvers.descent.descents import Descent, Path, Ray
from fallline.solvers.descent.local import CUT, Local, finite
from fallline.solvers.descent.minimizer import KINDS, Composed
from fallline.solvers.descent.searches import Backtracking, Point, Search


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
            if float(eigenvalues[0]) < -1e-10 * float(eigenvalues[-1].abs()):
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
        return _polynomial(self.operator, self.coefficients, self.scale, v)

    def extreme_eigs(self, steps: int = 100) -> tuple[float, float]:
        """Return the least and the largest eigenvalue of BP: from Ritz values of up to ``steps`` products with B."""
        n = self.operator.shape[0]
        generator = Key(0).fold("extreme").generator()
        values = torch.linalg.eigvalsh(lanczos(self.operator, min(n, steps), generator=generator).tridiagonal)
        along = [float(value) * sum(c * (float(value) / self.scale) ** i for i, c in enumerate(self.coefficients)) for value in values]
        return min(along), max(along)

    def __repr__(self) -> str:
        return f"SymmetricPolyPrecond({self.operator!r}, degree={self.degree})"


def _polynomial(operator: LinearOperator, coefficients: Sequence[float], scale: float, v: Tensor) -> Tensor:
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
        if not apart <= 1e-8 * float(B.abs().max()):
            raise ValueError(f"B must be symmetric and finite, and differs from its transpose by up to {apart:.3g}; "
                             "(B + B.T) / 2 is symmetric")
    return _operator(B)


def _operator(B: Any) -> LinearOperator:
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
            made = SymmetricPolyPrecond(B, self.degree)
            memory = {**memory, "coefficients": made.coefficients, "scale": made.scale}
        operator, coefficients, scale = _operator(B), memory["coefficients"], memory["scale"]
        local = _Constant(operator, lambda v: _polynomial(operator, coefficients, scale, v))
        return cast(Local, local), memory


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
        seen = values > CUT * values[-1].abs()
        coefficients = torch.where(seen, vectors[0] / torch.where(seen, values, 1.0), 0.0)
        direction = torch.linalg.vector_norm(gradient) * (reduced.basis @ (vectors @ coefficients))
        return Ray(local, gradient, None if float(values[0]) < -CUT * float(values[-1].abs()) else direction)


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
        τ; 0 is gradient descent.

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
        local, memory = Constant(self.B, self.degree).at(problem, state["x"], state["curvature"])
        x, v, A, M = tree.flatten(state["x"]), state["v"], state["A"], state["M"]
        for _ in range(100):
            c = 1 + self.mu * A
            a = (c + math.sqrt(c * c + 4 * M * c * A)) / (2 * M)
            y = (A * x + a * v) / (A + a)
            value, gradient = problem.value_and_gradient(tree.unflatten(y, state["x"]))
            g = tree.flatten(gradient)
            Pg = cast(Any, local).precondition(g)
            ahead = tree.unflatten(y - Pg / M, state["x"])
            found = problem.value(ahead)
            here = Point(state["x"], value, g)
            if float(found) <= float(value) - float(g @ Pg) / (2 * M) + here.noise:
                v = (c * v + self.mu * a * y - a * Pg) / (1 + self.mu * (A + a))
                return {"x": ahead, "value": found, "gap": torch.linalg.vector_norm(g), "v": v, "A": A + a, "M": M / 2, "failure": "",
                        "curvature": memory}
            M *= 2
        return {**state, "failure": f"no M up to {M:.3g} gives a sufficient decrease: is the gradient that of the objective?"}

    def report(self, problem: Problem, state: State) -> Report:
        report = Report(state["x"], value=state["value"], gap=state["gap"])
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report
