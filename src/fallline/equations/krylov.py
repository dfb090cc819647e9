"""Krylov methods for A x = b with a self-adjoint A: conjugate gradients and MINRES.

    ConjugateGradient   d = M r, made A-orthogonal to the last direction;  x ← x + (⟨d, r⟩ / ⟨d, A d⟩) d       A positive definite
    MINRES              ‖b − A x‖ least over the Krylov space span{r_0, A r_0, …}                              A may be indefinite

The recurrences are in ``core.operators.recurrences``. The residual that they carry along drifts from the true one by rounding, by
about 3ε (‖A‖ ‖x‖ + ‖r‖) a step in quadrature. The gap is its norm and this drift together, relative to ‖b‖; once the drift is a tenth
of it, the true residual takes its place. So nothing converges on a residual that is not there.

M. R. Hestenes, E. Stiefel: J. Res. Nat. Bur. Standards 49 (1952) 409; C. C. Paige, M. A. Saunders: SIAM J. Numer. Anal. 12 (1975) 617;
H. A. van der Vorst, Q. Ye: SIAM J. Sci. Comput. 22 (2000) 835, of residuals replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core.errors import WrongProblem
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.operators.linear import inner
from fallline.core.operators.recurrences import ConjugateDirections, MinimalResiduals, preconditioned
from fallline.core.problem import Problem
from fallline.core.registry import register

ROUNDING = 3.0  # units of ε‖A‖‖x‖ that a step is allowed to be off
SINGULAR = 10.0  # units of ε‖A‖ below which a curvature is none


def eps(state: State) -> float:
    """The machine precision of x."""
    return torch.finfo(state["x"].dtype).eps


def solved(state: State) -> float:
    """The relative residual up to which an answer with nothing but rounding left is one, ε^(1/4): about four digits of b in float64."""
    return eps(state) ** 0.25


def norm(v: Tensor) -> float:
    """‖v‖."""
    return float(torch.linalg.vector_norm(v))


class LinearMethod(Method):
    """What methods for square systems share: where they start, and the relative residual as the gap."""

    needs: ClassVar[tuple[str, ...]] = ("matvec", "residual")
    kinds: ClassVar[tuple[str, ...]] = ("linear-system",)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        rows, columns = len(problem.b), len(problem.x0)
        if rows != columns:
            raise WrongProblem(f"{type(self).__name__} needs a square A, and that of {problem.name!r} is {rows} by {columns}; "
                               "the least-squares solution solves AᵀA x = Aᵀ b")

    @staticmethod
    def _start(problem: Problem) -> State:
        """x_0, its residual and its norm, and ‖b‖, or 1 where b = 0, to which residuals are relative."""
        x = problem.x0.detach().clone()
        r = problem.residual(x) if bool(x.any()) else problem.b.detach().clone()
        size = norm(r)
        state: State = {"x": x, "r": r, "size": size, "scale": norm(problem.b) or 1.0, "k": 0,
                        "status": "running", "message": "", "certificate": None}
        return state if size else {**state, "status": "converged", "message": "the residual of x0 is zero"}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["x"], gap=(state["size"] + state.get("drift", 0.0)) / state["scale"], status=state["status"],
                      message=state["message"], certificate=state["certificate"])


def failed(state: State, message: str, certificate: Tensor | None = None) -> State:
    """The state of a run that ends here."""
    return {**state, "status": "failed", "message": message, "certificate": certificate}


class KrylovMethod(LinearMethod):
    """A recurrence, with the rounding of its residual watched, and A with it."""

    def _recurrence(self, problem: Problem) -> Any:
        raise NotImplementedError

    def _advance(self, problem: Problem, recurrence: State) -> State:
        return self._recurrence(problem).step(recurrence)

    def _residual(self, r: Tensor, new: State) -> Tensor:
        """The residual after a step, from that before it."""
        raise NotImplementedError

    def _asymmetry(self, old: State, new: State) -> tuple[float, float]:
        """⟨u, A v⟩ − ⟨A u, v⟩ of two directions, and what to compare it with; both for nothing, as the products are there."""
        raise NotImplementedError

    def init(self, problem: Problem, key: Key) -> State:
        state = self._start(problem)
        recurrence = self._recurrence(problem).start(state["x"], state["r"]) if state["status"] == "running" else {}
        return {**state, "drift": 0.0, "recurrence": recurrence}

    def step(self, problem: Problem, state: State) -> State:
        if state["status"] != "running":  # until the next report ends the run
            return state
        old, k = state["recurrence"], state["k"] + 1
        new = self._advance(problem, old)
        if new["status"] == "nonfinite":
            return {**state, "k": k, "size": math.nan}
        if k & (k - 1) == 0 and new["status"] == "running":  # steps 1, 2, 4, 8, …
            apart, comparable = self._asymmetry(old, new)
            if abs(apart) > math.sqrt(eps(state)) * comparable:
                return failed(state, f"A is not symmetric: ⟨u, A v⟩ − ⟨A u, v⟩ = {apart:.3g} for two directions with ‖A‖‖u‖‖v‖ about "
                                     f"{comparable:.3g} (step {k}); {type(self).__name__} needs a symmetric A: solve AᵀA x = Aᵀ b")
        if (verdict := self._breakdown(state, new)) is not None:
            return verdict
        r = self._residual(state["r"], new)
        state = {**state, "k": k, "x": new["x"], "r": r, "recurrence": new, "size": norm(r),
                 "drift": math.hypot(state["drift"], self._rounding(state, new))}
        if state["size"] <= 10 * state["drift"] or new["status"] != "running":
            return self._replaced(problem, state, new)
        return state

    def _breakdown(self, state: State, new: State) -> State | None:
        """The end of a run in which A turned out to be of the wrong sort."""
        return None

    @staticmethod
    def _rounding(state: State, new: State) -> float:
        return ROUNDING * eps(state) * (new["norm_A"] * norm(new["x"]) + state["size"])

    def _replaced(self, problem: Problem, state: State, new: State) -> State:
        """The state with the true residual; at its end where that is rounding only, or a least-squares residual."""
        r = problem.residual(state["x"])
        size = norm(r)
        state = {**state, "r": r, "size": size}
        drift = self._rounding(state, new)
        if size <= 10 * drift or size == 0:
            relative = size / state["scale"]
            if relative <= solved(state):
                return {**state, "drift": 0.0, "status": "exhausted",
                        "message": f"the residual {relative:.3g} ‖b‖ is as small as rounding allows"}
            return failed(state, f"A is singular, or too ill-conditioned for {state['x'].dtype}: the residual, {relative:.3g} ‖b‖, is "
                                 f"no larger than the rounding of A x, with ‖A‖‖x‖ of about {drift / ROUNDING / eps(state):.3g}")
        if new["status"] == "least-squares":
            return failed(state, f"the system is inconsistent: A is singular, and x a least-squares solution, with A r = 0 to rounding "
                                 f"for its residual r = b − A x, of norm {size / state['scale']:.6g} ‖b‖", r)
        return {**state, "drift": drift, "recurrence": self._resumed(problem, new, r)}

    def _resumed(self, problem: Problem, new: State, r: Tensor) -> State:
        raise NotImplementedError


class ConjugateMethod(KrylovMethod):
    """Conjugate directions: what the residual says is replaced, and the directions stay."""

    def _residual(self, r: Tensor, new: State) -> Tensor:
        carried: Tensor = new["r"]
        return carried

    def _asymmetry(self, old: State, new: State) -> tuple[float, float]:
        if not old["kept"]:
            return 0.0, 0.0
        u, v = old["kept"][-1], new["kept"][-1]
        return float(inner(u["p"], v["Ap"])) - float(inner(u["Ap"], v["p"])), new["norm_A"] * norm(u["p"]) * norm(v["p"])

    def _breakdown(self, state: State, new: State) -> State | None:
        floor, rayleigh = SINGULAR * eps(state) * new["norm_A"], new["rayleigh"]
        if rayleigh > floor and new["status"] == "running":
            return None
        p, image = new["kept"][-1]["p"], new["kept"][-1]["Ap"]
        found = f"⟨p, A p⟩ = {rayleigh:.3g} ⟨p, p⟩ for the direction p in the certificate (step {state['k'] + 1})"
        if rayleigh >= -floor and norm(image) <= math.sqrt(SINGULAR * eps(state)) * new["norm_A"] * norm(p):
            return failed(state, f"A is singular: A p = 0 to rounding, {found}, and the residual is "
                                 f"{state['size'] / state['scale']:.3g} ‖b‖, so that b is not in the range of A; MINRES finds a "
                                 "least-squares solution", p)
        return failed(state, f"A is not positive definite: {found}; {type(self).__name__} needs a positive definite A, MINRES a "
                             "symmetric one", p)

    def _resumed(self, problem: Problem, new: State, r: Tensor) -> State:
        return {**new, "r": r}


@register("conjugate-gradient")
@dataclass(frozen=True)
class ConjugateGradient(ConjugateMethod):
    """The conjugate gradient method: d = M r, A-orthogonal to the direction before; x ← x + (⟨d, r⟩ / ⟨d, A d⟩) d.

    Iterates minimise ‖x − x*‖_A over the Krylov space: at most one step for every distinct eigenvalue of M A, and
    ‖x_k − x*‖_A ≤ 2 ((√κ − 1)/(√κ + 1))^k ‖x_0 − x*‖_A. A step costs a product and an M r.

    Parameters
    ----------
    preconditioner : callable ``r -> M r``, or an operator with ``matvec``, optional
        M ≈ A⁻¹, symmetric positive definite.

    Raises
    ------
    WrongProblem
        A is not square.
    ValueError
        The preconditioner gives ⟨r, M r⟩ ≤ 0.

    Notes
    -----
    The gap is ‖b − A x‖ / ‖b‖, or ‖b − A x‖ where b = 0. The run ends as "failed", and says why, at a direction p with ⟨p, A p⟩ < 0 (A
    is indefinite) or 0 to rounding (A is singular; if it is positive semi-definite, ⟨b, p⟩ ≠ 0 proves that there is no solution), which
    is the certificate; and where ⟨u, A v⟩ ≠ ⟨A u, v⟩ for two directions in succession, looked at in steps 2, 4, 8, … A consistent
    singular system is solved. Complex A are Hermitian.

    The coefficient that makes directions A-orthogonal is that of Notay, −⟨A p, M r⟩ / ⟨p, A p⟩, so that M may vary from step to step.
    """

    preconditioner: Any = None

    def __post_init__(self) -> None:
        M = self.preconditioner
        if M is not None and not (hasattr(M, "matvec") or callable(M)):
            raise TypeError(f"preconditioner must be a function r -> M r or an operator with matvec, got a {type(M).__name__}")

    def _recurrence(self, problem: Problem) -> ConjugateDirections:
        M: Callable[[Tensor], Tensor] | None = getattr(self.preconditioner, "matvec", self.preconditioner)
        return ConjugateDirections(problem.matvec, preconditioned(M))

    def __repr__(self) -> str:
        M = self.preconditioner
        return f"ConjugateGradient({'' if M is None else getattr(M, '__qualname__', type(M).__name__)})"


@register("minres")
@dataclass(frozen=True)
class MINRES(KrylovMethod):
    """MINRES: x_k minimises ‖b − A x‖ over the Krylov space, for a symmetric A that may be indefinite or singular.

    A step costs a product, and the method seven vectors of memory. Residuals never grow.

    Raises
    ------
    WrongProblem
        A is not square.

    Notes
    -----
    The gap is ‖b − A x‖ / ‖b‖, or ‖b − A x‖ where b = 0, of the residual vector itself, r ← s² r − c φ v, which stays right where
    rounding or an A that is not symmetric spoils the scalar recurrence. The run ends as "failed", and says why, at a least-squares
    solution of an inconsistent system (‖A r‖ ≤ ε^(3/4) ‖A‖ ‖r‖; the certificate is r, and A r = 0 ≠ ⟨b, r⟩ proves that there is no
    solution), and where the Lanczos vectors show that A is not symmetric, looked at in steps 2, 4, 8, … A consistent singular system is
    solved.
    """

    def _recurrence(self, problem: Problem) -> MinimalResiduals:
        return MinimalResiduals(problem.matvec)

    def _residual(self, r: Tensor, new: State) -> Tensor:
        return r if new["status"] == "least-squares" else torch.sub(new["s"] ** 2 * r, new["v"], alpha=new["c"] * new["phi"])

    def _asymmetry(self, old: State, new: State) -> tuple[float, float]:
        return new["beta"] * float(inner(old["v_old"], new["v"])), new["norm_A"]

    def _resumed(self, problem: Problem, new: State, r: Tensor) -> State:
        """From the start where the Krylov space holds no more: it is used up, or the true residual twice the one that it knows."""
        if new["status"] == "running" and norm(r) <= 2 * abs(new["phi"]):
            return new
        return self._recurrence(problem).start(new["x"], r)
