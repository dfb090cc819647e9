"""Descent of a convex-concave splitting, implicit in the convex part, with momentum.

    E = C + K,   C convex with a proximal map, K smooth and concave
    v = u + β_n (u − u⁻),   u⁺ = prox_{τC}(v − τ ∇K(v)),   u₋₁ = u₀
    β_n = n / (n + 3)  (FISTA),  a constant,  or 0: the convex-splitting gradient flow

At β = 0, E falls at every step, whatever τ: E(u⁺) ≤ E(u) − ‖u⁺ − u‖²/τ. With momentum it need not: the steps discretise
u_tt + α u_t = −∇E(u), α = 3/t or constant. Momentum needs fewer steps if τ is large, and gains less if τ is huge.

Akande, Dondl, Gupta, Onwunta, Wojtowytsch: Momentum-based minimization of the Ginzburg-Landau functional on Euclidean spaces and
graphs, arXiv 2501.00389; A. Beck and M. Teboulle, SIAM J. Imaging Sci. 2 (2009) 183 (FISTA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fallline.core import tree
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.solvers.ginzburg_landau import KIND


@register("momentum-splitting")
@dataclass(frozen=True)
class MomentumSplitting(Method):
    """v = u + β_n (u − u⁻);   u⁺ = prox_{τC}(v − τ ∇K(v)), for ``GinzburgLandau`` energies.

    Parameters
    ----------
    tau : float, default 1
        τ > 0, in units of the gradient in L²: on a grid the step is τ / ``facts["cell"]``.
    momentum : "fista", float in [0, 1), or None; default "fista"
        β_n = n/(n + 3); a constant β; none.

    Notes
    -----
    A gradient of K and a proximal map of C a step (one linear solve), and two copies of u. The gap is ‖u⁺ − v‖/τ in L², 0 at stationary
    points. Any ``Composite`` of a smooth concave part and a convex term will do: give it ``kind="convex-splitting"``.
    """

    tau: float = 1.0
    momentum: str | float | None = "fista"

    needs: ClassVar[tuple[str, ...]] = ("smooth", "prox")
    kinds: ClassVar[tuple[str, ...]] = (KIND,)
    space: ClassVar[Mapping[str, Range]] = {"tau": LogUniform(1e-2, 10.0)}

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise ValueError(f"tau must be a finite number > 0, got {self.tau!r}")
        constant = isinstance(self.momentum, int | float) and 0 <= self.momentum < 1
        if not (constant or self.momentum in ("fista", None)):
            raise ValueError(f"momentum must be 'fista', a number in [0, 1), or None, got {self.momentum!r}")

    def _beta(self, n: int) -> float:
        return n / (n + 3) if isinstance(self.momentum, str) else self.momentum or 0.0

    def init(self, problem: Problem, key: Key) -> State:
        u = tree.clone(problem.x0)
        return {"u": u, "before": u, "n": 0, "gap": None}

    def step(self, problem: Problem, state: State) -> State:
        u, n = state["u"], state["n"]
        cell = problem.facts.get("cell", 1.0)
        v = tree.axpy(self._beta(n), tree.sub(u, state["before"]), u)
        after = problem.prox(tree.axpy(-self.tau / cell, problem.smooth.gradient(v), v), self.tau / cell)
        gap = tree.norm(tree.sub(after, v)) * (math.sqrt(cell) / self.tau)
        return {"u": after, "before": u, "n": n + 1, "gap": gap}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["u"], gap=state["gap"])
