"""Krylov methods for A x = b with a self-adjoint A.

Conjugate gradient (A positive definite) minimises ‖x - x*‖_A over the Krylov space, MINRES (A may be indefinite or singular) the
residual ‖b - A x‖. Their formulas are in ``recurrences``; here they run to a tolerance.

The recurrences drift from the true residual by rounding, so both restart from the true residual once their
own reaches the tolerance, and converge only when the true one does.

Sources: M. R. Hestenes and E. Stiefel, J. Res. Nat. Bur. Standards 49 (1952) 409;
C. C. Paige and M. A. Saunders, SIAM J. Numer. Anal. 12 (1975) 617.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.operators.linear import LinearOperator, square_size
from fallline.core.operators.recurrences import ConjugateDirections, MinimalResiduals, preconditioned

__all__ = ["Solution", "conjugate_gradient", "minres"]


@dataclass(frozen=True)
class Solution:
    """What a linear solver found.

    Attributes
    ----------
    solution : Tensor or tree
        Shaped as b.
    iterations : int
        Steps of the recurrence, over all restarts.
    residual_norm : float
        ‖b - A x‖, computed from x.
    converged : bool
        Whether ``residual_norm <= tol * ‖b‖``.
    status : str
        ``"converged"``; ``"budget"``: the iterations ran out; ``"stagnated"``: rounding allows no smaller residual;
        ``"indefinite"``: conjugate gradient met a direction p with ⟨p, A p⟩ <= 0; ``"least-squares"``: MINRES
        reached a least-squares solution of a singular system that has no exact one; ``"nonfinite"``.
    negative_curvature : Tensor or tree, optional
        The direction p behind ``"indefinite"``, shaped as b.
    """

    solution: Any
    iterations: int
    residual_norm: float
    converged: bool
    status: str
    negative_curvature: Any = None

    def __repr__(self) -> str:
        return f"Solution({self.status}, iterations={self.iterations}, residual_norm={self.residual_norm:.3e})"


@dataclass
class _Cycle:
    """One run of a recurrence on A d = r from d = 0."""

    correction: Tensor
    iterations: int
    status: str
    direction: Tensor | None = None


def conjugate_gradient(
    operator: LinearOperator,
    b: tree.Tree,
    *,
    x0: tree.Tree | None = None,
    tol: float = 1e-8,
    max_iterations: int | None = None,
    preconditioner: Callable[[Tensor], Tensor] | LinearOperator | None = None,
) -> Solution:
    """Solve A x = b for a self-adjoint positive definite A.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n)
    b : Tensor of shape (n,), or a tree of n entries
    x0 : like b, optional
        Start, zero by default.
    tol : float
        Relative: stop when ‖b - A x‖ <= tol ‖b‖.
    max_iterations : int, optional
        10 n by default.
    preconditioner : function or LinearOperator, optional
        M ≈ A⁻¹, self-adjoint positive definite, on flat vectors.

    Returns
    -------
    Solution
        On meeting ⟨p, A p⟩ <= 0 it stops with status ``"indefinite"``, the iterate reached so far, and p.
    """
    if isinstance(preconditioner, LinearOperator):
        if preconditioner.shape != operator.shape:
            raise ValueError(f"preconditioner must have the operator's shape {operator.shape}, got {preconditioner.shape}")
        preconditioner = preconditioner.matvec
    propose = preconditioned(preconditioner)

    def cycle(r: Tensor, threshold: float, budget: int) -> _Cycle:
        norm = lambda state: float(torch.linalg.vector_norm(state["r"]))
        return _cycle(ConjugateDirections(operator.matvec, propose), norm, r, threshold, budget)

    return _solve(cycle, operator, b, x0, tol, max_iterations, "conjugate_gradient")


def minres(
    operator: LinearOperator,
    b: tree.Tree,
    *,
    x0: tree.Tree | None = None,
    tol: float = 1e-8,
    max_iterations: int | None = None,
) -> Solution:
    """Solve A x = b for a self-adjoint A that may be indefinite or singular.

    Parameters and Returns as in ``conjugate_gradient``. A singular system without an exact solution ends with status
    ``"least-squares"`` when ‖A r‖ <= ε^(3/4) ‖A‖ ‖r‖ for the residual r and the machine precision ε.
    """

    def cycle(r: Tensor, threshold: float, budget: int) -> _Cycle:
        return _cycle(MinimalResiduals(operator.matvec), lambda state: abs(state["phi"]), r, threshold, budget)

    return _solve(cycle, operator, b, x0, tol, max_iterations, "minres")


def _solve(
    cycle: Callable[[Tensor, float, int], _Cycle],
    operator: LinearOperator,
    b: tree.Tree,
    x0: tree.Tree | None,
    tol: float,
    max_iterations: int | None,
    purpose: str,
) -> Solution:
    length = square_size(operator, purpose)
    flat = tree.flatten(b)
    if flat.numel() != length:
        raise ValueError(f"b must have {length} entries for {operator!r}, got {flat.numel()}")
    if x0 is not None and tree.size(x0) != length:
        raise ValueError(f"x0 must have {length} entries for {operator!r}, got {tree.size(x0)}")
    if not tol > 0:
        raise ValueError(f"tol must be > 0, got {tol}; typical values are 1e-12 to 1e-4")
    budget = 10 * length if max_iterations is None else max_iterations
    if budget < 1:
        raise ValueError(f"max_iterations must be >= 1, got {budget}")

    threshold = tol * float(torch.linalg.vector_norm(flat))
    x = torch.zeros_like(flat) if x0 is None else tree.flatten(x0)
    r = flat if x0 is None else flat - operator.matvec(x)
    size = float(torch.linalg.vector_norm(r))
    iterations, direction = 0, None
    status = "converged" if size <= threshold else "running"
    precision = torch.finfo(flat.dtype).eps
    while status == "running":
        part = cycle(r, max(threshold, precision * size), budget - iterations)
        iterations += part.iterations
        x = x + part.correction
        r = flat - operator.matvec(x)
        previous, size = size, float(torch.linalg.vector_norm(r))
        direction = part.direction
        if size <= threshold:
            status, direction = "converged", None
        elif not size < float("inf"):
            status = "nonfinite"
        elif part.status != "reached":
            status = part.status
        elif iterations >= budget:
            status = "budget"
        elif size > 0.5 * previous:
            status = "stagnated"
    is_flat = isinstance(b, Tensor) and b.ndim == 1
    return Solution(
        solution=x if is_flat else tree.unflatten(x, b),
        iterations=iterations,
        residual_norm=size,
        converged=status == "converged",
        status=status,
        negative_curvature=direction if is_flat or direction is None else tree.unflatten(direction, b),
    )


def _cycle(recurrence: ConjugateDirections | MinimalResiduals, size: Callable[[dict[str, Any]], float], r: Tensor, threshold: float,
           budget: int) -> _Cycle:
    """Steps until the residual norm that the recurrence knows is at most the threshold."""
    state = recurrence.start(torch.zeros_like(r), r)
    for iteration in range(1, budget + 1):
        state = recurrence.step(state)
        if state["status"] not in ("running", "invariant"):
            met = state["kept"][-1]["p"] if state["status"] == "indefinite" else None
            return _Cycle(state["x"], iteration, state["status"], met)
        if size(state) <= threshold or state["status"] == "invariant":
            return _Cycle(state["x"], iteration, "reached")
    return _Cycle(state["x"], budget, "budget")
