"""Newton's method on the Lagrangian, its linear systems solved by random sketches, with an exact augmented Lagrangian.

    K z = r,   K = [[B, Gᵀ], [G, 0]],   r = −(∇_x L, c),   z = (Δx, Δλ),   solved until ‖K‖ Ψ ‖Kz − r‖ ≤ θ_k δ ‖r‖
    L_η(x, λ) = f + ⟨λ, c⟩ + (η₁/2)‖c‖² + (η₂/2)‖∇_x L‖²
    z must descend:  ⟨∇L_η, z⟩ ≤ −(η₂/2)‖r‖², else η₁ ← ν²η₁, η₂ ← η₂/ν, δ ← δ/ν⁴ and on with the system
    (x, λ) ← (x, λ) + αz,   first α = 1, ½, … with L_η(new) ≤ L_η + αβ⟨∇L_η, z⟩

B = ∇²_x L, plus t I with t = ξ + ‖∇²_x L‖ where it is not positive definite on the null space of G. Ψ bounds ‖K⁻¹‖:
20 max(‖B‖², 1) / (min(σ², 1) min(ξ, 1)), σ the least singular value of G; δ ≤ (½ − β)η₂ / ((1 + η₁ + η₂) Υ²Ψ²), but at least 1e-6,
Υ = max(‖G‖, ‖∇²_x L‖, 1); all norms Frobenius's. A sketch step costs O(n + m) (a row) where a factorisation takes O((n + m)³).

Hong, Na, Mahoney, Kolar: Constrained Optimization via Exact Augmented Lagrangian and Randomized Iterative Sketching, ICML 2023,
arXiv 2305.18379.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.constraints import KKT, LagrangePoint
from fallline.core.errors import NonFiniteError
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Range
from fallline.solvers.sketches import SKETCHES, sketched_solve

LEAST_CURVATURE = 1e-6
LEAST_DELTA = 1e-6
LEAST_SINGULAR = 1e-2
"""Of σ²: below it the constraints count as dependent."""
HALVINGS = 60


@dataclass
class _System:
    """K, r and what their accuracy is measured by."""

    K: Tensor
    r: Tensor
    H: Tensor
    psi: float
    upsilon: float


@register("sketched-newton-sqp")
@dataclass(frozen=True)
class AdaSketchNewton(Method):
    """(x, λ) ← (x, λ) + αz, z from sketches of the KKT system, α by Armijo's rule on an exact augmented Lagrangian.

    For ``Constrained(smooth, equality=c)``.

    Parameters
    ----------
    sketch : {"kaczmarz", "gaussian", "block", "exact"}, default "kaczmarz"
        One random row of the system a step; a Gaussian combination of all rows; a random eighth of the rows; or a factorisation
        (Newton's method on the Lagrangian, with the same merit function).
    psi : {"bound", "estimate"}, default "bound"
        Ψ as in the paper, a bound that is far too large in practice; or 1/σ_min(K), from the singular values.
    theta, theta_power : float, default 1 and 0
        θ_k = theta / (k + 1)^theta_power: a constant gives linear, a decreasing one superlinear convergence.
    eta1, eta2, delta, xi, beta, nu : float, defaults 1, 0.1, 0.1, 0.1, 0.1, 1.5
        As above.
    max_sketches : int, default 100,000
        Steps of one system; what there is by then is taken.

    Notes
    -----
    The gap is ‖(∇_x L, c)‖, the certificate a ``KKT`` with the multipliers, which start at 0. Counts ``sketches``. Linearly dependent
    constraints (σ² < 0.01) end the run as "failed". Curvature is dense and systems are solved on the CPU in float64. In ∇L_η the
    Hessian of the Lagrangian is exact; the authors' code takes that of f.
    """

    sketch: Literal["kaczmarz", "gaussian", "block", "exact"] = "kaczmarz"
    psi: Literal["bound", "estimate"] = "bound"
    theta: float = 1.0
    theta_power: float = 0.0
    eta1: float = 1.0
    eta2: float = 0.1
    delta: float = 0.1
    xi: float = 0.1
    beta: float = 0.1
    nu: float = 1.5
    max_sketches: int = 100_000

    needs: ClassVar[tuple[str, ...]] = ("gradient", "hessian", "equality")
    kinds: ClassVar[tuple[str, ...]] = ("constrained",)
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        if self.sketch not in (*SKETCHES, "exact"):
            raise ValueError(f"sketch must be one of {', '.join(map(repr, (*SKETCHES, 'exact')))}, got {self.sketch!r}")
        if self.psi not in ("bound", "estimate"):
            raise ValueError(f"psi must be 'bound' or 'estimate', got {self.psi!r}")
        for name in ("theta", "eta1", "eta2", "delta", "xi"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number > 0, got {value}")
        if not 0 < self.beta < 0.5:
            raise ValueError(f"beta must be in (0, 1/2), got {self.beta}; 0.1 is typical")
        if not self.nu > 1:
            raise ValueError(f"nu must be > 1, got {self.nu}; 1.5 is typical")
        if not self.theta_power >= 0:
            raise ValueError(f"theta_power must be >= 0, got {self.theta_power}; 2 is typical for superlinear convergence")
        if isinstance(self.max_sketches, bool) or not isinstance(self.max_sketches, int) or self.max_sketches < 1:
            raise ValueError(f"max_sketches must be a whole number of at least 1, got {self.max_sketches!r}")

    def init(self, problem: Problem, key: Key) -> State:
        here = LagrangePoint.at(problem, tree.clone(problem.x0))
        m, n = here.jacobian.shape
        if m > n:
            raise ValueError(f"equality must not return more than the {n} variables, got {m} constraints: they cannot be independent")
        return {**_stored(here, torch.zeros_like(here.constraints)), "eta1": self.eta1, "eta2": self.eta2, "delta": self.delta,
                "k": 0, "alpha": 0.0, "key": key, "failure": ""}

    def step(self, problem: Problem, state: State) -> State:
        here, multipliers = _restored(state), state["multipliers"]
        residual = here.residual(multipliers)
        if not bool(torch.isfinite(residual).all() and torch.isfinite(here.jacobian).all()):
            raise NonFiniteError("the objective, the constraints or their derivatives have NaN or infinite entries")
        if state["failure"] or not bool(residual.any()):
            return state
        system = self._system(problem, here, multipliers)
        if isinstance(system, str):
            return {**state, "failure": system}
        z, slope, state = self._direction(problem, here, system, state)
        n = len(here.gradient)
        merit = _merit(here, multipliers, state["eta1"], state["eta2"])
        parts = abs(float(here.value)) + abs(float(multipliers @ here.constraints))  # which may cancel
        noise = 16 * torch.finfo(residual.dtype).eps * max(parts, abs(merit))
        alpha = 1.0
        for _ in range(HALVINGS):
            ahead = LagrangePoint.at(problem, tree.add(here.x, tree.unflatten(alpha * z[:n], here.x)))
            new = multipliers + alpha * z[n:]
            if _merit(ahead, new, state["eta1"], state["eta2"]) <= merit + alpha * self.beta * slope + noise:
                return {**state, **_stored(ahead, new), "k": state["k"] + 1, "alpha": alpha}
            alpha /= 2
        return {**state, "failure": f"no step was accepted down to a size of {2 * alpha:.3g}: is the derivative that of the function?"}

    def _system(self, problem: Problem, here: LagrangePoint, multipliers: Tensor) -> _System | str:
        """The KKT system at a point, or why there is none."""
        G = here.jacobian
        m, n = G.shape
        _, singular, Vh = torch.linalg.svd(G, full_matrices=True)
        if float(singular[-1]) ** 2 < LEAST_SINGULAR:
            return (f"the constraints' gradients are dependent: the least singular value of their Jacobian is "
                    f"{float(singular[-1]):.3g}; drop a constraint that follows from the others, or scale them")
        H = (problem.hessian(here.x) + problem.equality_hessian(here.x, multipliers)).to(G.dtype)
        if not bool(torch.isfinite(H).all()):
            raise NonFiniteError("the Hessian of the Lagrangian has NaN or infinite entries")
        Z = Vh[m:].mT
        convex = m == n or float(torch.linalg.eigvalsh(Z.mT @ H @ Z)[0]) >= LEAST_CURVATURE
        B = H if convex else H + (self.xi + torch.linalg.matrix_norm(H)) * torch.eye(n, dtype=H.dtype, device=H.device)
        K = torch.cat([torch.cat([B, G.mT], 1), torch.cat([G, G.new_zeros(m, m)], 1)])
        if self.psi == "estimate":
            psi = 1 / float(torch.linalg.svdvals(K)[-1])
        else:
            least = min(float(singular[-1]) ** 2, 1.0) * min(self.xi, 1.0)
            psi = 20 * max(float(torch.linalg.matrix_norm(B)) ** 2, 1.0) / least
        upsilon = max(float(torch.linalg.matrix_norm(G)), float(torch.linalg.matrix_norm(H)), 1.0)
        return _System(K, -here.residual(multipliers), H, psi, upsilon)

    def _direction(self, problem: Problem, here: LagrangePoint, system: _System, state: State) -> tuple[Tensor, float, State]:
        """z, the slope of the merit function along it, and the state with the parameters for which it descends."""
        eta1, eta2, n = state["eta1"], state["eta2"], len(here.gradient)
        delta = max(LEAST_DELTA, min(state["delta"], self._delta_bound(system, eta1, eta2)))
        norm = float(torch.linalg.vector_norm(system.r))
        theta = self.theta / (state["k"] + 1) ** self.theta_power
        rng = np.random.default_rng(state["key"].fold("sketch", state["k"]).integer())
        z, left = torch.zeros_like(system.r), self.max_sketches
        while True:
            if self.sketch == "exact":
                problem.counts.add("factorizations")
                z = torch.linalg.solve(system.K, system.r)
            else:
                tolerance = theta * delta * norm / (float(torch.linalg.matrix_norm(system.K)) * system.psi)
                z, used = sketched_solve(system.K, system.r, z, self.sketch, tolerance, left, rng)
                left -= used
                problem.counts.add("sketches", used)
            g = -system.r[:n]
            G, c = here.jacobian, here.constraints
            slope = float(torch.cat([g + eta2 * (system.H @ g) + eta1 * (G.mT @ c), c + eta2 * (G @ g)]) @ z)
            if slope <= -eta2 / 2 * norm**2 or eta1 > 1e8 or eta2 < 1e-8:
                return z, slope, {**state, "eta1": eta1, "eta2": eta2, "delta": delta}
            eta1, eta2 = eta1 * self.nu**2, eta2 / self.nu
            delta = max(LEAST_DELTA, min(delta / self.nu**4, self._delta_bound(system, eta1, eta2)))

    def _delta_bound(self, system: _System, eta1: float, eta2: float) -> float:
        return (0.5 - self.beta) * eta2 / ((1 + eta1 + eta2) * system.upsilon**2 * system.psi**2)

    def report(self, problem: Problem, state: State) -> Report:
        here, multipliers = _restored(state), state["multipliers"]
        stationarity, violation = (torch.linalg.vector_norm(v) for v in (here.stationarity(multipliers), here.constraints))
        report = Report(here.x, value=here.value, gap=torch.hypot(stationarity, violation),
                        certificate=KKT(multipliers, float(stationarity), float(violation)))
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report


def _merit(point: LagrangePoint, multipliers: Tensor, eta1: float, eta2: float) -> float:
    """L_η; infinite where something is not finite."""
    c = point.constraints
    merit = float(point.value + multipliers @ c + eta1 / 2 * (c @ c) + eta2 / 2 * point.stationarity(multipliers).square().sum())
    return merit if math.isfinite(merit) else math.inf


def _stored(point: LagrangePoint, multipliers: Tensor) -> dict[str, Any]:
    return {"x": point.x, "value": point.value, "gradient": point.gradient, "constraints": point.constraints,
            "jacobian": point.jacobian, "multipliers": multipliers}


def _restored(state: State) -> LagrangePoint:
    return LagrangePoint(*(state[name] for name in ("x", "value", "gradient", "constraints", "jacobian")))
