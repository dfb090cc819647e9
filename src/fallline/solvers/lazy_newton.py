"""Newton's method with lazy Hessians.

    z = the last iterate whose number is a multiple of m,   H = ∇²f(z),   g = ∇f(x)
    quadratic:   x⁺ = x − (H + √(M‖g‖) I)⁻¹ g                                        (convex f; theory M = 3mL)
    cubic:       x⁺ = argmin_y ⟨g, y−x⟩ + ½⟨H(y−x), y−x⟩ + (M/6)‖y−x‖³                 (any f;   theory M = 6mL)

L is the Lipschitz constant of the Hessian. The Hessian is factorised once a phase (an eigendecomposition, O(d³)), after which every
step costs a gradient and O(d²). With Hessians d times as dear as gradients, m = d is the best period.

Doikov, Chayti, Jaggi: Second-order optimization with lazy Hessians, ICML 2023, arXiv 2212.00781.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.errors import NonFiniteError
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.solvers.descent.curvature import check_period
from fallline.solvers.descent.local import finite
from fallline.solvers.descent.secular import secular_step

KINDS = ("smooth", "finite-sum", "training")
# With regularisation dominating, ‖g⁺‖ ≤ 2λ‖s‖ and the decrease is at least λ‖s‖²/2, so this share of ‖g⁺‖^{3/2}/√M is certain.
SUFFICIENT = 1 / 8
SMALLEST_M, LARGEST_M = 1e-30, 1e30


@dataclass(frozen=True)
class _Lazy(Method):
    """The phases, the factorisation and the adaptation of M; subclasses say what a step is."""

    period: int | Literal["d"] = "d"
    M: float = 1e-2
    adaptive: bool = True

    needs: ClassVar[tuple[str, ...]] = ("gradient", "hessian")
    kinds: ClassVar[tuple[str, ...]] = KINDS
    space: ClassVar[Mapping[str, Range]] = {"M": LogUniform(1e-4, 1e2)}

    def __post_init__(self) -> None:
        check_period(self.period)
        if not (math.isfinite(self.M) and self.M > 0):
            raise ValueError(f"M must be a positive number (3 or 6 times period times the Hessian's Lipschitz constant, "
                             f"or any start when adaptive), got {self.M}")

    def _displacement(self, eigenvalues: Tensor, coefficients: Tensor, M: float) -> Tensor | None:
        """Return the step in the eigenbasis, given the gradient's coefficients there; None if there is none."""
        raise NotImplementedError

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        value, gradient = problem.value_and_gradient(x)
        return {"x": x, "gradient": gradient, "value": value, "anchor": x, "anchor_gradient": gradient,
                "anchor_value": value, "eigenvalues": None, "eigenvectors": None, "k": 0, "M": float(self.M),
                "progress": 0.0, "failure": ""}

    def step(self, problem: Problem, state: State) -> State:
        if state["eigenvalues"] is None:
            eigenvalues, eigenvectors = torch.linalg.eigh(finite(problem.hessian(state["x"])))
            state = {**state, "eigenvalues": eigenvalues, "eigenvectors": eigenvectors, "anchor": state["x"],
                     "anchor_gradient": state["gradient"], "anchor_value": state["value"], "k": 0, "progress": 0.0}
        basis = state["eigenvectors"]
        coefficients = basis.T @ tree.flatten(state["gradient"]).to(basis.dtype)
        if not torch.isfinite(coefficients).all():
            raise NonFiniteError("the gradient has NaN or infinite entries")
        displacement = self._displacement(state["eigenvalues"], coefficients, state["M"])
        if displacement is None:
            return {**state, "failure": f"the Hessian has the eigenvalue {float(state['eigenvalues'][0]):.3g} < 0 and the "
                    "quadratic model has no minimum: LazyCubicNewton handles non-convex objectives"}
        x = tree.add(state["x"], tree.unflatten(basis @ displacement, state["x"]))
        value, gradient = problem.value_and_gradient(x)
        state = {**state, "x": x, "value": value, "gradient": gradient, "k": state["k"] + 1}
        return self._adapted(state) if self.adaptive else self._phase_ended(state)

    def _adapted(self, state: State) -> State:
        norm = float(tree.norm(state["gradient"]))
        progress = state["progress"] + norm**1.5
        state = {**state, "progress": progress}
        broken = not (math.isfinite(norm) and math.isfinite(float(state["value"])))
        if not broken and state["k"] < self._length(state):
            return state
        decrease = float(state["anchor_value"]) - float(state["value"])
        if not broken and decrease >= SUFFICIENT * progress / math.sqrt(state["M"]) - _noise(state):
            return self._phase_ended({**state, "M": max(state["M"] / 2, SMALLEST_M)})
        if state["M"] > LARGEST_M:
            return {**state, "failure": "no M gives a sufficient decrease: is the gradient that of the objective?"}
        return {**state, "x": state["anchor"], "value": state["anchor_value"], "gradient": state["anchor_gradient"],
                "M": 2 * state["M"], "k": 0, "progress": 0.0}

    def _phase_ended(self, state: State) -> State:
        if state["k"] < self._length(state):
            return state
        return {**state, "eigenvalues": None, "eigenvectors": None, "k": 0}

    def _length(self, state: State) -> int:
        return tree.size(state["x"]) if self.period == "d" else int(self.period)

    def report(self, problem: Problem, state: State) -> Report:
        # A phase that has not ended may yet be taken back, and its steps need not have gone down.
        back = self.adaptive and float(state["anchor_value"]) < float(state["value"]) - _noise(state)
        names = ("anchor", "anchor_value", "anchor_gradient") if back else ("x", "value", "gradient")
        x, value, gradient = (state[name] for name in names)
        report = Report(x, value=value, gap=tree.norm(gradient))
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report


def _noise(state: State) -> float:
    """The rounding error of f, relative to f itself, below which differences of f say nothing and must decide nothing."""
    return 16 * torch.finfo(state["value"].dtype).eps * abs(float(state["anchor_value"]))


@register("lazy-newton")
@dataclass(frozen=True)
class LazyNewton(_Lazy):
    """x⁺ = x − (H_z + √(M‖g‖) I)⁻¹ g, the Hessian H_z = ∇²f(z) renewed every ``period`` steps. For convex objectives.

    Parameters
    ----------
    period : int or "d", default "d"
        Steps between Hessians; 1 is regularised Newton, "d" the number of variables.
    M : float, default 0.01
        Regularisation; a start when ``adaptive``.
    adaptive : bool, default True
        A phase that lowers f by less than ‖g‖^{3/2}/(8√M), summed over its steps, is taken back and M doubled; else M is halved.
        The share 1/8 follows from the analysis of one step in which the regularisation dominates.

    Notes
    -----
    Reports the gradient norm as the gap. Memory O(d²). Works in the dtype of ``x0``: use float64 for digits. Where the quadratic
    model has no minimum the run ends as "failed" and names ``LazyCubicNewton``. An adaptive run within a phase reports the phase's
    start while that is lower.
    """

    def _displacement(self, eigenvalues: Tensor, coefficients: Tensor, M: float) -> Tensor | None:
        shifted = eigenvalues + torch.sqrt(M * torch.linalg.vector_norm(coefficients))
        if float(shifted[0]) <= 0 and float(torch.linalg.vector_norm(coefficients)) > 0:
            return None
        return torch.where(coefficients == 0, 0, -coefficients / shifted)


@register("lazy-cubic-newton")
@dataclass(frozen=True)
class LazyCubicNewton(_Lazy):
    """x⁺ = argmin_y ⟨g, y−x⟩ + ½⟨H_z(y−x), y−x⟩ + (M/6)‖y−x‖³, H_z renewed every ``period`` steps. For any smooth objective.

    The step's length r solves r = ‖(H_z + (Mr/2) I)⁻¹ g‖; where the gradient has no part along the lowest eigenvector, the step
    goes along it (so a saddle point is left even with g = 0).

    Parameters
    ----------
    period : int or "d", default "d"
    M : float, default 0.01
    adaptive : bool, default True
        As in ``LazyNewton``.
    """

    def _displacement(self, eigenvalues: Tensor, coefficients: Tensor, M: float) -> Tensor | None:
        return secular_step(eigenvalues, coefficients, lambda shift: 2 * shift / M)[0]
