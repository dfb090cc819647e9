"""The recurrences of Krylov methods, a step at a time: what iterates and directions become, and nothing of when to stop.

Conjugate directions, for A positive definite: propose a direction, make it A-orthogonal to the last few, go along it as far as pays,

    d = f(r),   d ← d − (⟨A p, d⟩ / ⟨p, A p⟩) p for each p kept,   α = ⟨d, r⟩ / ⟨d, A d⟩,   x ← x + α d,   r ← r − α A d

With d = M r and one p kept this is the conjugate gradient method, in the form that also bears an M that varies (Notay, SIAM J. Sci.
Comput. 22 (2000) 1444); with a network for f, a learned direction.

MINRES, for A self-adjoint: Lanczos and Givens rotations minimise ‖b − A x‖ over the Krylov space,

    β₊ v₊ = A v − α v − β v₋,   d = (v − δ d₋ − ε d₋₋) / γ,   x ← x + c φ d,   φ ← −s φ,   |φ| = ‖b − A x‖

A state is a dict of tensors and numbers; a step returns a new one, and leaves the tensors of the old one alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fallline.core.operators.linear import inner

__all__ = ["ConjugateDirections", "MinimalResiduals", "preconditioned"]

State = dict[str, Any]
Map = Callable[[Tensor], Tensor]


def preconditioned(precondition: Map | None) -> Map:
    """Return r ↦ M r, which raises where it sees that M is not positive definite; r itself without an M."""
    if precondition is None:
        return lambda r: r

    def propose(r: Tensor) -> Tensor:
        z = precondition(r)
        if inner(r, z) <= 0:
            raise ValueError(f"the preconditioner is not positive definite: ⟨r, M r⟩ = {float(inner(r, z)):.3e} for a residual r")
        return z

    return propose


class ConjugateDirections:
    """Steps along directions that are A-orthogonal to the last few.

    Parameters
    ----------
    matvec : callable ``v -> A v``
    propose : callable ``r -> d``
    window : int, default 1
        How many of the last directions a new one is made A-orthogonal to. One is enough where the proposal is M r
        with a fixed self-adjoint M: then all are.

    Notes
    -----
    ``state["kept"]`` are the last directions p with A p and ⟨p, A p⟩, at least one of them. ``state["status"]`` becomes "indefinite" at
    one with ⟨d, A d⟩ ≤ 0, and "nonfinite" at a NaN; x and r stay what they were. ``state["rayleigh"]`` is the last
    ⟨d, A d⟩ / ⟨d, d⟩, and ``state["norm_A"]`` the largest so far, a lower bound of ‖A‖.
    """

    def __init__(self, matvec: Map, propose: Map, window: int = 1) -> None:
        self.matvec, self.propose, self.window = matvec, propose, window

    def start(self, x: Tensor, r: Tensor) -> State:
        """Return the state at x with the residual r."""
        return {"x": x, "r": r, "kept": [], "norm_A": 0.0, "rayleigh": math.inf, "status": "running"}

    def step(self, state: State) -> State:
        """Return the state one direction further, by one product."""
        x, r = state["x"], state["r"]
        d = self.propose(r)
        for kept in state["kept"][-self.window:] if self.window else ():
            d = torch.sub(d, kept["p"], alpha=float(inner(kept["Ap"], d)) / kept["curvature"])
        Ad = self.matvec(d)
        curvature, slope = float(inner(d, Ad)), float(inner(d, r))
        if not (math.isfinite(curvature) and math.isfinite(slope)):
            return {**state, "status": "nonfinite"}
        rayleigh = curvature / (float(inner(d, d)) or math.inf)
        kept = [*state["kept"], {"p": d, "Ap": Ad, "curvature": curvature}][-max(self.window, 1):]
        if curvature <= 0:
            return {**state, "rayleigh": rayleigh, "kept": kept, "status": "indefinite"}
        alpha = slope / curvature
        return {**state, "x": torch.add(x, d, alpha=alpha), "r": torch.sub(r, Ad, alpha=alpha), "rayleigh": rayleigh,
                "norm_A": max(state["norm_A"], rayleigh), "kept": kept}


class MinimalResiduals:
    """Steps of MINRES.

    Parameters
    ----------
    matvec : callable ``v -> A v``

    Notes
    -----
    ``state["status"]`` becomes "least-squares" where ‖A r‖ ≤ ε^(3/4) ‖A‖ ‖r‖ before the step, for the machine precision ε; "invariant"
    where the Krylov space is exhausted, so that x is as good as it gets; "nonfinite" at a NaN. ``state["phi"]`` is ±‖r‖ as long as
    rounding leaves the basis orthogonal, ``state["norm_A"]`` a lower bound of ‖A‖.
    """

    def __init__(self, matvec: Map) -> None:
        self.matvec = matvec

    def start(self, x: Tensor, r: Tensor) -> State:
        """Return the state at x with the residual r."""
        beta = float(torch.linalg.vector_norm(r))
        nothing = torch.zeros_like(r)
        return {"x": x, "phi": beta, "v_old": nothing, "v": r / beta, "d_old": nothing, "d": nothing, "beta": 0.0,
                "c_old": 1.0, "s_old": 0.0, "c": 1.0, "s": 0.0, "norm_A": 0.0, "status": "running"}

    def step(self, state: State) -> State:
        """Return the state one Lanczos vector further, by one product."""
        v, v_old, d, d_old = state["v"], state["v_old"], state["d"], state["d_old"]
        beta, c, s = state["beta"], state["c"], state["s"]
        w = torch.sub(self.matvec(v), v_old, alpha=beta)
        alpha = float(inner(v, w))
        w = torch.sub(w, v, alpha=alpha)
        beta_next = float(torch.linalg.vector_norm(w))
        if not (math.isfinite(alpha) and math.isfinite(beta_next)):
            return {**state, "status": "nonfinite"}
        norm_A, tiny = max(state["norm_A"], math.hypot(alpha, beta, beta_next)), torch.finfo(v.dtype).eps

        # The rotations (c, s) turn the tridiagonal matrix into an upper triangular one with the entries (ε, δ, γ) in column k.
        epsilon = state["s_old"] * beta
        delta = c * state["c_old"] * beta + s * alpha
        gamma_bar = c * alpha - s * state["c_old"] * beta
        if math.hypot(gamma_bar, c * beta_next) <= tiny**0.75 * norm_A:  # ‖A r‖ / ‖r‖ of the iterate before this step
            return {**state, "norm_A": norm_A, "status": "least-squares"}
        gamma = math.hypot(gamma_bar, beta_next)
        c_next, s_next = gamma_bar / gamma, beta_next / gamma
        new = torch.sub(torch.sub(v, d_old, alpha=epsilon), d, alpha=delta) / gamma
        exhausted = beta_next <= tiny * norm_A
        return {"x": torch.add(state["x"], new, alpha=c_next * state["phi"]), "phi": -s_next * state["phi"],
                "v_old": v, "v": w if exhausted else w / beta_next, "d_old": d, "d": new, "beta": beta_next, "c_old": c, "s_old": s,
                "c": c_next, "s": s_next, "norm_A": norm_A, "status": "invariant" if exhausted else "running"}
