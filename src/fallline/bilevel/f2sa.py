"""Bilevel optimization by first-order information alone.

    min_x F(x, y*(x)),  y*(x) = argmin_y G(x, y)
    L_λ(x) = min_y [F(x, y) + λ G(x, y)] − λ min_z G(x, z),     ∇L_λ → ∇F as λ → ∞ (bias O(1/λ))

    T times:   z ← z − γ_k ∇_y G(x, z);    y ← y − α_k (∇_y F(x, y) + λ_k ∇_y G(x, y))
    then       x ← x − ξ α_k (∇_x F(x, y) + λ_k (∇_x G(x, y) − ∇_x G(x, z)))

    α_k = α (1 + k/k₀)^−a,   γ_k = 2 λ_k α_k ∝ (1 + k/k₀)^−c,   λ_k = λ₀ (1 + k/k₀)^{a−c}

Kwon, Kwon, Wright, Nowak: A fully first-order method for stochastic bilevel optimization, ICML 2023, arXiv 2301.10945.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from fallline.core import tree
from fallline.core.estimators import storm
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.tree import Tree

Noise = Literal["both", "upper", "none"]
Gradients = Callable[[str, Callable[[Problem, Tree], Tree], Tree], Tree]


@dataclass(frozen=True)
class _Penalty(Method):
    """The two copies of y, the schedules, and the three updates; subclasses say how a gradient is estimated."""

    alpha: float = 0.05
    xi: float = 1.0
    lam0: float = 1.0
    T: int = 10
    k0: float = 10.0
    noise: Noise = "both"

    exponents: ClassVar[Mapping[str, tuple[float, float]]] = {}
    needs: ClassVar[tuple[str, ...]] = ("upper", "lower")
    kinds: ClassVar[tuple[str, ...]] = ("bilevel",)
    space: ClassVar[Mapping[str, Range]] = {"alpha": LogUniform(1e-3, 1.0), "xi": LogUniform(1e-2, 1e2)}

    def __post_init__(self) -> None:
        if isinstance(self.T, bool) or not isinstance(self.T, int) or self.T < 1:
            raise ValueError(f"T must be a whole number of at least 1 (inner steps a step), got {self.T!r}")
        for name in ("alpha", "xi", "lam0", "k0"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.noise not in self.exponents:
            raise ValueError(f"noise must be one of {', '.join(self.exponents)} (which level's gradients are stochastic), "
                             f"got {self.noise!r}")

    def schedule(self, k: int) -> tuple[float, float, float]:
        """Return ``(α_k, γ_k, λ_k)``."""
        a, c = self.exponents[self.noise]
        growth = 1 + k / self.k0
        alpha, lam = self.alpha * growth**-a, self.lam0 * growth ** (a - c)
        return alpha, 2 * lam * alpha, lam

    def init(self, problem: Problem, key: Key) -> State:
        x, y = tree.clone(problem.x0[0]), tree.clone(problem.x0[1])
        return {"x": x, "y": y, "z": tree.clone(y), "k": 0, "key": key, "gap": None, "memory": {}}

    def step(self, problem: Problem, state: State) -> State:
        alpha, gamma, lam = self.schedule(state["k"])
        key, x, y, z = state["key"].fold(state["k"]), state["x"], state["y"], state["z"]
        memory = dict(state["memory"])

        def upper(wrt: int) -> Callable[[Problem, Tree], Tree]:
            return lambda drawn, point: drawn.upper.gradient(point, wrt=wrt)

        def lower(wrt: int) -> Callable[[Problem, Tree], Tree]:
            return lambda drawn, point: drawn.lower.gradient(point, wrt=wrt)

        for t in range(self.T):
            estimate = self._estimator(problem.draw(key.fold("inner", t)), memory, state["k"])
            z_gradient = estimate("lower at z", lower(1), (x, z))
            y_gradient = tree.axpy(lam, estimate("lower at y", lower(1), (x, y)), estimate("upper at y", upper(1), (x, y)))
            z, y = tree.axpy(-gamma, z_gradient, z), tree.axpy(-alpha, y_gradient, y)
        # One realisation for the whole x step: the two lower gradients share their noise, which then mostly cancels.
        estimate = self._estimator(problem.draw(key.fold("outer")), memory, state["k"])
        difference = tree.sub(estimate("lower in x at y", lower(0), (x, y)), estimate("lower in x at z", lower(0), (x, z)))
        x_gradient = tree.axpy(lam, difference, estimate("upper in x", upper(0), (x, y)))
        x = tree.axpy(-self.xi * alpha, x_gradient, x)
        return {**state, "x": x, "y": y, "z": z, "k": state["k"] + 1, "gap": tree.norm(x_gradient), "memory": memory}

    def _estimator(self, drawn: Problem, memory: dict[str, Tree], k: int) -> Gradients:
        raise NotImplementedError

    def report(self, problem: Problem, state: State) -> Report:
        return Report((state["x"], state["z"]), gap=state["gap"], certificate={"penalised": state["y"]})


@register("f2sa")
@dataclass(frozen=True)
class F2SA(_Penalty):
    """Fully first-order stochastic approximation: z and y follow their minimisers, x the gradient of L_λ, λ grows.

    Parameters
    ----------
    alpha : float, default 0.05
        α_0, the step of y; α_k λ_k times the smoothness of G must stay below 1.
    xi : float, default 1
        The step of x over that of y.
    lam0 : float, default 1
        λ_0; large enough that F + λG is convex in y where G is.
    T : int, default 10
        Inner steps a step.
    k0 : float, default 10
        Steps before the schedules begin to decay.
    noise : {"both", "upper", "none"}, default "both"
        Which gradients are stochastic: (a, c) = (5/7, 4/7), (3/5, 2/5), (1/3, 0), so λ grows as k^{1/7}, k^{1/5}, k^{1/3}.

    Notes
    -----
    3T + 3 gradients a step (2T + 3 when the two gradients of y's update are counted as one), memory two copies of y. The solution
    is ``(x, z)``, z being the answer of the lower level; the gap is the norm of the last x gradient.
    """

    exponents: ClassVar[Mapping[str, tuple[float, float]]] = {"both": (5 / 7, 4 / 7), "upper": (3 / 5, 2 / 5),
                                                              "none": (1 / 3, 0.0)}

    def _estimator(self, drawn: Problem, memory: dict[str, Tree], k: int) -> Gradients:
        return lambda name, gradient, point: gradient(drawn, point)


@register("f3sa")
@dataclass(frozen=True)
class F3SA(_Penalty):
    """F2SA with every gradient replaced by its STORM estimate d ← G(now; ξ) + (1 − η_k)(d − G(before; ξ)).

    η_k = (1 + k/k₀)^−2c. The exponents (a, c) are (3/5, 2/5), (1/2, 1/4), (1/3, 0) for noise "both", "upper", "none". Every gradient is
    taken at two points of one sample, so a step costs 6T + 6 gradients. Other parameters as in ``F2SA``.

    The paper's own exponents were not at hand: these, and that of η, are ones that match its stated complexities, and are unchecked.
    """

    exponents: ClassVar[Mapping[str, tuple[float, float]]] = {"both": (3 / 5, 2 / 5), "upper": (1 / 2, 1 / 4),
                                                              "none": (1 / 3, 0.0)}

    def _estimator(self, drawn: Problem, memory: dict[str, Tree], k: int) -> Gradients:
        eta = (1 + k / self.k0) ** (-2 * self.exponents[self.noise][1])

        def estimate(name: str, gradient: Callable[[Problem, Tree], Tree], point: Tree) -> Tree:
            now = gradient(drawn, point)
            if name in memory:
                before, kept = memory[name]
                now = storm(kept, now, gradient(drawn, before), eta)
            memory[name] = (point, now)
            return now

        return estimate
