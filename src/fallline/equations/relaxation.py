"""Stationary relaxation for A x = b, A = D + L + U split into its diagonal and what is below and above.

    Jacobi   x ← x + ω D⁻¹ (b − A x)
    SOR      x ← x + (D/ω + L)⁻¹ (b − A x)          ω = 1: Gauss-Seidel

For a symmetric A with a positive diagonal SOR converges for 0 < ω < 2 if and only if A is positive definite (Ostrowski), and Jacobi if
2D/ω − A is positive definite as well. Where L and U link two colours only, as on grids, the best is ω = 1 + (ρ/(1 + √(1 − ρ²)))² for
the spectral radius ρ of I − D⁻¹A, which takes the steps from O(κ) to O(√κ).

D. M. Young: Iterative Solution of Large Linear Systems, 1971.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core.keys import Key
from fallline.core.method import State
from fallline.core.operators.linear import by_rows
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Range, Uniform
from fallline.equations.krylov import ROUNDING, SINGULAR, LinearMethod, eps, failed, norm, solved

DIVERGED = 1e6  # growth of the residual that no convergent relaxation shows


class _Relaxation(LinearMethod):
    """x ← x + M⁻¹ (b − A x) with a splitting M that is made once from the matrix."""

    needs: ClassVar[tuple[str, ...]] = ("matrix", "matvec", "residual")
    omega: float

    def _splitting(self, matrix: Tensor) -> Tensor:
        raise NotImplementedError

    def _correction(self, splitting: Tensor, r: Tensor) -> Tensor:
        raise NotImplementedError

    def init(self, problem: Problem, key: Key) -> State:
        state = self._start(problem)
        return {**state, "first": state["size"], "norm_A": 0.0, "splitting": self._splitting(problem.matrix)}

    def step(self, problem: Problem, state: State) -> State:
        if state["status"] != "running":  # until the next report ends the run
            return state
        k, correction = state["k"] + 1, self._correction(state["splitting"], state["r"])
        if k & (k - 1) == 0:  # steps 1, 2, 4, 8, …
            state = self._watched(problem, state, correction)
            if state["status"] != "running":
                return state
        x = torch.add(state["x"], correction)
        r = problem.residual(x)
        state = {**state, "k": k, "x": x, "r": r, "size": norm(r)}
        if state["size"] > DIVERGED * state["first"]:
            return failed(state, f"the residual grew to {state['size'] / state['scale']:.3g} ‖b‖ in {k} steps: {self._divergence}")
        return state

    _divergence: ClassVar[str]

    def _watched(self, problem: Problem, state: State, correction: Tensor) -> State:
        """What a product with the correction says of A: corrections turn into a vector of the null space where there is no solution."""
        length, image = norm(correction), norm(problem.matvec(correction))
        norm_A = max(state["norm_A"], image / length) if length else state["norm_A"]
        state = {**state, "norm_A": norm_A}
        rounding, relative = eps(state) * (norm_A * norm(state["x"]) + state["size"]), state["size"] / state["scale"]
        if state["size"] <= 10 * ROUNDING * rounding and relative <= solved(state):
            return {**state, "status": "exhausted", "message": f"the residual {relative:.3g} ‖b‖ is as small as rounding allows"}
        # Corrections in a null space leave rounding; those of a slow convergence may, but not one that small against themselves.
        if image <= min(SINGULAR * (rounding + eps(state) * norm_A * length), math.sqrt(eps(state)) * norm_A * length):
            return failed(state, f"A is singular: A p = 0 to rounding for the last correction p, the certificate (step "
                                 f"{state['k'] + 1}), and the residual stays at {relative:.3g} ‖b‖, so that b is not in the range "
                                 "of A", correction)
        return state

    def pack(self, state: State) -> State:
        return {name: value for name, value in state.items() if name != "splitting"}

    def unpack(self, problem: Problem, key: Key, packed: State) -> State:
        return {**packed, "splitting": self._splitting(problem.matrix)}


def _diagonal(matrix: Tensor) -> Tensor:
    """D, or an error that says where it is zero."""
    if matrix.layout is torch.strided:
        diagonal = matrix.diagonal()
    else:
        entries = matrix.to_sparse_coo().coalesce()
        (rows, columns), values = entries.indices(), entries.values()
        on = rows == columns
        diagonal = values.new_zeros(len(matrix)).index_put((rows[on],), values[on])
    if bool((diagonal == 0).any()):
        raise ValueError(f"A must have no zero on its diagonal, to be divided by it, and has one in row "
                         f"{int((diagonal == 0).nonzero()[0])}; permute its rows, or take MINRES")
    return diagonal


@register("jacobi")
@dataclass(frozen=True)
class Jacobi(_Relaxation):
    """Weighted Jacobi relaxation: x ← x + ω D⁻¹ (b − A x).

    Parameters
    ----------
    omega : float, default 1
        Above 0. 2/3 to 4/5 smooth well on grids.

    Raises
    ------
    MissingOracle
        A is not given as a matrix.
    WrongProblem
        A is not square.
    ValueError
        A zero on the diagonal.

    Notes
    -----
    The gap is ‖b − A x‖ / ‖b‖, or ‖b − A x‖ where b = 0. A step costs a product, and at steps 1, 2, 4, 8, … another, which watches A.
    The run ends as "failed", and says why, where the residual has grown a millionfold, or the corrections became a vector of A's null
    space.
    """

    omega: float = 1.0

    space: ClassVar[Mapping[str, Range]] = {"omega": Uniform(0.3, 1.2)}
    _divergence: ClassVar[str] = "Jacobi needs 2 D/ω − A positive definite beside A; lower omega, or take SOR"

    def __post_init__(self) -> None:
        if not self.omega > 0:
            raise ValueError(f"omega must be above 0, got {self.omega!r}; 1 is plain Jacobi")

    def _splitting(self, matrix: Tensor) -> Tensor:
        return _diagonal(matrix) / self.omega

    def _correction(self, splitting: Tensor, r: Tensor) -> Tensor:
        return r / splitting


@register("sor")
@dataclass(frozen=True)
class SOR(_Relaxation):
    """Successive over-relaxation: x ← x + (D/ω + L)⁻¹ (b − A x).

    Parameters
    ----------
    omega : float, default 1
        In (0, 2), outside of which it diverges; 1 is Gauss-Seidel.

    Raises
    ------
    MissingOracle
        A is not given as a matrix.
    WrongProblem
        A is not square.
    ValueError
        omega is out of range, or a zero is on the diagonal.

    Notes
    -----
    Gap, products and statuses as for ``Jacobi``; a step also solves with a triangle. For a symmetric A with a positive diagonal,
    divergence proves that A is not positive definite.
    """

    omega: float = 1.0

    space: ClassVar[Mapping[str, Range]] = {"omega": Uniform(1.0, 1.95)}
    _divergence: ClassVar[str] = "a symmetric A is not positive definite, and suits MINRES; one that is not need not suit SOR"

    def __post_init__(self) -> None:
        if not 0 < self.omega < 2:
            raise ValueError(f"omega must be in (0, 2), outside of which SOR diverges, got {self.omega!r}; 1 is Gauss-Seidel")

    def _splitting(self, matrix: Tensor) -> Tensor:
        diagonal = _diagonal(matrix) / self.omega
        if matrix.layout is torch.strided:
            return torch.tril(matrix, -1) + torch.diag(diagonal)
        entries = matrix.to_sparse_coo().coalesce()
        below = entries.indices()[0] > entries.indices()[1]
        places = torch.arange(len(diagonal), device=diagonal.device).expand(2, -1)
        triangle = torch.sparse_coo_tensor(torch.cat([entries.indices()[:, below], places], 1),
                                           torch.cat([entries.values()[below], diagonal]), matrix.shape, check_invariants=False)
        return by_rows(triangle.coalesce())

    def _correction(self, splitting: Tensor, r: Tensor) -> Tensor:
        column = r.unsqueeze(1)
        if splitting.layout is torch.strided:
            return torch.linalg.solve_triangular(splitting, column, upper=False).squeeze(1)
        solution: Any = torch.triangular_solve(column, splitting, upper=False)[0]  # the one that takes sparse triangles
        return solution.squeeze(1)
