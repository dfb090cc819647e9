"""Linear programs as fixed points of the primal-dual hybrid gradient step, with Farkas certificates.

    min cᵀx  subject to  A x = b, x ≥ 0;   z = (x, y),   η ‖A‖ < 1
    x⁺ = max(x − η (c − Aᵀy), 0),   y⁺ = y + η (b − A (2x⁺ − x))

z ↦ z⁺ is averaged in the norm ‖x‖² + ‖y‖² + 2η ⟨y, A x⟩, and its fixed points are the primal-dual solutions. Without one, its infimal
displacement vector v = (v_x, v_y) holds a proof:

    no feasible x       y = v_y:   Aᵀy ≥ 0,  bᵀy < 0       (0 ≤ xᵀAᵀy = bᵀy < 0 for a feasible x)
    no dual solution    r = −v_x:  A r = 0,  r ≥ 0,  cᵀr < 0   (the objective falls without end along r)

D. Applegate, M. Díaz, H. Lu, M. Lubin: Infeasibility detection with primal-dual hybrid gradient for large-scale linear programming,
SIAM J. Optim. 2024, arXiv 2102.04592; J. Park, E. K. Ryu, ICML 2023, arXiv 2303.15876.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fallline.core.fixed_point import FixedPoint
from fallline.core.keys import Key
from fallline.core.operators import LinearOperator, conjugate_gradient, power_iteration
from fallline.core.problem import Problem

Point = tuple[Tensor, Tensor]
Kind = Literal["primal infeasible", "dual infeasible"]
# An estimate with a larger violation shows too little of what is zero for projections to mend, of which there are at most so many.
PROMISING, ROUNDS = 0.05, 10
ITERATIONS = 1_000  # of conjugate gradients, for a projection
DENSE = 1_000_000  # entries of a matrix whose norm is computed exactly


@dataclass(frozen=True, repr=False)
class Farkas:
    """A proof that a linear program has no feasible point, or that its dual has none; checked by products with A.

    Attributes
    ----------
    kind : {"primal infeasible", "dual infeasible"}
    vector : Tensor
        Its largest entry is 1 in magnitude. Primal: y (m,) with Aᵀy ≥ 0 and bᵀy < 0. Dual: r (n,) with A r = 0, r ≥ 0 and cᵀr < 0.
    violation : float
        The largest violation of these, relative to the terms of each sum, so that no scaling of rows or columns changes it:
        max −(Aᵀy)_j / (|A|ᵀ|y|)_j, or |A r|_i / (|A| r)_i.
    margin : float
        −bᵀy / |b|ᵀ|y|, or −cᵀr / |c|ᵀr.
    """

    kind: Kind
    vector: Tensor
    violation: float
    margin: float

    @property
    def verdict(self) -> str:
        """What is proven, in a sentence."""
        if self.kind == "primal infeasible":
            what = "the constraints A x = b, x ≥ 0 are inconsistent: Aᵀy ≥ 0 and bᵀy < 0"
        else:
            what = "the dual is infeasible: A r = 0, r ≥ 0 and cᵀr < 0, so that the objective is unbounded if there is a feasible point"
        return f"{self.kind}; {what}, with a relative violation of {self.violation:.2g} and margin {self.margin:.2g}"

    def __repr__(self) -> str:
        return f"Farkas({self.verdict})"


def LinearProgram(c: Tensor, A: Tensor, b: Tensor, x0: Tensor | None = None, y0: Tensor | None = None, **options: Any) -> Problem:
    """min cᵀx subject to A x = b, x ≥ 0, as a fixed point of the primal-dual hybrid gradient step.

    Solved by ``equations.Picard`` or ``equations.Halpern``: ``solve(LinearProgram(c, A, b), Halpern(), tol=1e-6)``. A point is the pair
    (x, y); y solves the dual, max bᵀy subject to Aᵀy ≤ c. The step is 0.99 / ‖A‖. ``observe`` reports ``residual_norm``, ``value``
    = cᵀx, ``primal_residual`` = ‖A x − b‖ and ``dual_residual`` = ‖max(Aᵀy − c, 0)‖.

    Parameters
    ----------
    c : Tensor (n,)
    A : Tensor (m, n)
        Dense or sparse; the better its rows are scaled alike, the sooner a run ends.
    b : Tensor (m,)
        The dtype of all; use float64.
    x0, y0 : Tensor (n,) and (m,), optional
        Zero by default.
    **options
        ``name``, ``facts``, ``budget`` of ``Problem``.

    Notes
    -----
    An inconsistent or unbounded program ends a run as "failed", with a ``Farkas`` certificate whose violation is at most ε^(2/3) of
    its margin (4e-11 in float64, 2e-5 in float32): a feasible point would have |y|ᵀ|A| x ≥ ε^(−2/3) |b|ᵀ|y|. The estimate of v
    itself is rarely that accurate. What it shows to be zero is made zero by a projection, and what comes out is checked from scratch;
    that takes the place of waiting for the estimate to settle.
    """
    for name, tensor, ndim in (("c", c, 1), ("A", A, 2), ("b", b, 1)):
        if not isinstance(tensor, Tensor) or tensor.ndim != ndim or not tensor.is_floating_point():
            raise ValueError(f"{name} must be a real tensor of {ndim} dimension{'s' * (ndim > 1)}, got {_described(tensor)}")
        if not bool(torch.isfinite(tensor if tensor.layout is torch.strided else tensor.to_sparse_coo().coalesce().values()).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite entries in it")
    kinds = {(tensor.dtype, tensor.device) for tensor in (c, A, b)}
    if len(kinds) > 1:
        raise ValueError(f"c, A and b must be of one dtype and on one device, got {', '.join(f'{d} on {where}' for d, where in kinds)}")
    if A.shape != (len(b), len(c)):
        raise ValueError(f"A must be {len(b)} by {len(c)} to fit b and c, got shape {tuple(A.shape)}")
    program = _Program(c, A if A.layout is torch.strided else A.to_sparse_coo().coalesce(), b)
    start = (torch.zeros_like(c) if x0 is None else x0, torch.zeros_like(b) if y0 is None else y0)
    if [len(part) for part in start] != [len(c), len(b)]:
        raise ValueError(f"x0 and y0 must have {len(c)} and {len(b)} entries, got {[len(part) for part in start]}")
    return FixedPoint(program.step, start, norm=program.norm, certify=program.certify,
                      **{"name": "linear program", "observer": program.observe, **options})


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class _Program:
    """The data of a program, the step, its norm, and the proofs."""

    def __init__(self, c: Tensor, A: Tensor, b: Tensor) -> None:
        self.c, self.A, self.b, self.transposed = c, A, b, A.t()
        self.magnitudes = A.abs()
        self.rows, self.columns = (_sums(self.magnitudes, dim) for dim in (1, 0))
        norm = _spectral_norm(A)
        if not norm > 0:
            raise ValueError("A must have an entry that is not zero")
        self.eta = 0.99 / norm
        self.small = torch.finfo(b.dtype).eps ** (2 / 3)

    def step(self, z: Point) -> Point:
        x, y = z
        new = (x - self.eta * (self.c - self.transposed @ y)).clamp(min=0)
        return new, y + self.eta * (self.b - self.A @ (2 * new - x))

    def norm(self, z: Point) -> Tensor:
        x, y = z
        return (x @ x + y @ y + 2 * self.eta * (y @ (self.A @ x))).clamp(min=0).sqrt()

    def observe(self, problem: Problem, z: Point) -> dict[str, float]:
        x, y = z
        image = problem.map(z)
        return {"residual_norm": float(self.norm((x - image[0], y - image[1]))), "value": float(self.c @ x),
                "primal_residual": float(torch.linalg.vector_norm(self.A @ x - self.b)),
                "dual_residual": float(torch.linalg.vector_norm((self.transposed @ y - self.c).clamp(min=0)))}

    def certify(self, z: Point, v: Point) -> Farkas | None:
        return self._primal_infeasible(v[1]) or self._dual_infeasible(-v[0])

    def _primal_infeasible(self, y: Tensor) -> Farkas | None:
        relative = self.transposed @ y / (self.columns * y.abs().max())
        worst = float((-relative.min()).clamp(min=0))
        if not (float(self.b @ y) < 0 and worst <= PROMISING):
            return None
        zero = relative <= worst
        for _ in range(ROUNDS):
            y = self._orthogonal(y, zero)
            relative = self.transposed @ y / (self.columns * y.abs().max())
            wrong = relative < -self.small
            if not bool(wrong.any()) or bool((wrong <= zero).all()):
                break
            zero = zero | wrong
        return self._checked("primal infeasible", y, self.rows)

    def _dual_infeasible(self, r: Tensor) -> Farkas | None:
        size = r.abs().max()
        worst = float((-r.min() / size).clamp(min=0))
        if not (float(self.c @ r) < 0 and max(worst, float((self.A @ r / (self.rows * size)).abs().max())) <= PROMISING):
            return None
        positive = r > worst * size
        for _ in range(ROUNDS):
            r = self._in_kernel(r, positive)
            wrong = r < 0
            if not bool(wrong.any()):
                break
            positive = positive & ~wrong
        return None if bool((r < 0).any()) else self._checked("dual infeasible", r, self.columns)

    def _orthogonal(self, y: Tensor, columns: Tensor) -> Tensor:
        """The vector nearest to y that is orthogonal to the chosen columns of A."""
        return _without_range(y, lambda z: self.A @ (columns * z), lambda u: columns * (self.transposed @ u))

    def _in_kernel(self, r: Tensor, columns: Tensor) -> Tensor:
        """The vector nearest to r, of those that are zero outside of the chosen columns, that A takes to zero."""
        return _without_range(columns * r, lambda w: columns * (self.transposed @ w), lambda u: self.A @ (columns * u))

    def _checked(self, kind: Kind, vector: Tensor, weights: Tensor) -> Farkas | None:
        """A certificate, if the vector is one, or becomes one without the entries that are rounding next to the largest.

        Entries are compared by what they add to A r or Aᵀy, as ``weights`` say. What is left out need not be zero: the rest is checked.
        """
        added = vector.abs() * weights
        for floor in (0.0, self.small, math.sqrt(torch.finfo(vector.dtype).eps)):
            found = self._proof(kind, torch.where(added > floor * added.max(), vector, 0))
            if found is not None:
                return found
        return None

    def _proof(self, kind: Kind, vector: Tensor) -> Farkas | None:
        primal = kind == "primal infeasible"
        objective, matrix, magnitudes = (self.b, self.transposed, self.magnitudes.t()) if primal else (self.c, self.A, self.magnitudes)
        size, total = float(vector.abs().max()), float(objective.abs() @ vector.abs())
        if not (size > 0 and total > 0):
            return None
        image, terms = matrix @ vector, magnitudes @ vector.abs()
        wrong = (-image if primal else image.abs()) / torch.where(terms > 0, terms, 1)
        violation, margin = max(0.0, float(wrong.max())), -float(objective @ vector) / total
        return Farkas(kind, vector / size, violation, margin) if margin > self.small and violation <= self.small * margin else None


def _sums(magnitudes: Tensor, dim: int) -> Tensor:
    """Sums that can be divided by: 1 for an empty row or column."""
    sums = torch.sum(magnitudes, dim)
    sums = sums.to_dense() if sums.is_sparse else sums
    return torch.where(sums > 0, sums, 1)


def _without_range(target: Tensor, apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
    """target − B z with z = argmin ‖B z − target‖: the part of a vector that Bᵀ takes to zero, by conjugate gradients."""
    right = adjoint(target)
    tol = math.sqrt(torch.finfo(right.dtype).eps)

    def normal(z: Tensor) -> Tensor:
        return adjoint(apply(z))

    operator = LinearOperator((len(right), len(right)), normal, normal, dtype=right.dtype, device=right.device)
    return target - apply(conjugate_gradient(operator, right, tol=tol, max_iterations=ITERATIONS).solution)


def _spectral_norm(A: Tensor) -> float:
    """‖A‖, or for large and sparse matrices slightly more than the estimate by a power iteration."""
    if not A.is_sparse and A.numel() <= DENSE:
        return float(torch.linalg.matrix_norm(A, 2))
    transposed = A.t()
    operator = LinearOperator((A.shape[1], A.shape[1]), lambda v: transposed @ (A @ v), dtype=A.dtype, device=A.device)
    return 1.02 * math.sqrt(power_iteration(operator, tol=1e-3, max_iterations=300, generator=Key().generator()).value)
