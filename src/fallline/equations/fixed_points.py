"""Fixed points of a nonexpansive T, and the proof that there is none.

    Picard     x⁺ = T x
    Halpern    x⁺ = x_0/(k+2) + (k+1)/(k+2) T x

Without a fixed point the residuals x_k − T x_k go to the infimal displacement vector v, the shortest of closure(range(I − T)), as do

    Picard     (x_0 − x_k)/k                 squared errors O(1/k²), of residuals O(1/k)
    Halpern    2 (x_0 − x_k)/k               squared errors O(1/k²), of residuals O(1/k²) up to logarithms

No method does better than Ω(1/k²). With a fixed point x*, v = 0, and ‖x_k − x*‖ ≤ ‖x_0 − x*‖ gives ‖x_0 − x*‖ ≥ ‖x_0 − x_k‖/2: the
further an iterate goes, the larger the ball around x_0 in which there is no fixed point.

J. Park, E. K. Ryu: Accelerated infeasibility detection of constrained optimization and fixed-point iterations, ICML 2023,
arXiv 2303.15876.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.tree import Tree

ESTIMATES = ("residual", "normalized")


@dataclass(frozen=True, repr=False)
class Displacement:
    """What an iteration knows of the infimal displacement vector v and of fixed points; no proof that there is none.

    Attributes
    ----------
    residual : tree
        x_k − T x_k.
    travelled : tree
        x_0 − x_k.
    factor : float
        1/k for Picard, 2/k for Halpern.
    norm : callable
        The problem's norm.
    """

    residual: Tree
    travelled: Tree
    factor: float
    norm: Callable[[Tree], Tensor]

    @property
    def normalized(self) -> Tree:
        """factor · (x_0 − x_k); the residual before the first step."""
        return tree.scale(self.factor, self.travelled) if self.factor else self.residual

    @property
    def radius(self) -> float:
        """‖x_0 − x_k‖/2: no fixed point is nearer to x_0 than this."""
        return float(self.norm(self.travelled)) / 2

    @property
    def verdict(self) -> str:
        """The last in a sentence."""
        return f"there is no fixed point within {self.radius:.6g} of x0"

    def __repr__(self) -> str:
        return f"Displacement(residual norm {float(self.norm(self.residual)):.6g}, {self.verdict})"


class _Iteration(Method):
    """The point, its image, and at every power of two steps a look at whether there can be a fixed point."""

    needs: ClassVar[tuple[str, ...]] = ("map",)
    kinds: ClassVar[tuple[str, ...]] = ("fixed-point",)
    growth: ClassVar[float]  # x_0 − x_k ≈ k v / growth

    def _next(self, state: State) -> Tree:
        raise NotImplementedError

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        return {"x": x, "x0": x, "image": problem.map(x), "k": 0, "proof": ""}

    def step(self, problem: Problem, state: State) -> State:
        if state["proof"]:  # until the next report ends the run
            return state
        x = self._next(state)
        new = {**state, "x": x, "image": problem.map(x), "k": state["k"] + 1}
        if new["k"] & (new["k"] - 1) == 0:
            _check_nonexpansive(problem, state, new)
            proven = [name for name in ESTIMATES if self._certificate(problem, new, name) is not None]
            new["proof"] = proven[0] if proven else ""
        return new

    def _displacement(self, problem: Problem, state: State) -> Displacement:
        factor = self.growth / state["k"] if state["k"] else 0.0
        return Displacement(tree.sub(state["x"], state["image"]), tree.sub(state["x0"], state["x"]), factor, problem.norm)

    def _certificate(self, problem: Problem, state: State, estimate: str) -> Any:
        """The problem's own proof from an estimate of v; else that a fixed point would be further away than it can be."""
        found = self._displacement(problem, state)
        certificate = None if problem.certify is None else problem.certify(state["x"], getattr(found, estimate))
        if certificate is not None:
            return certificate
        eps = torch.finfo(tree.precision(state["x"])).eps
        rounding = 100 * eps * float(problem.norm(state["x"]) + problem.norm(state["x0"]))
        return found if found.radius > problem.facts.get("radius", math.inf) * (1 + math.sqrt(eps)) + rounding else None

    def report(self, problem: Problem, state: State) -> Report:
        gap = problem.norm(tree.sub(state["x"], state["image"]))
        if not state["proof"]:
            return Report(state["x"], gap=gap, certificate=self._displacement(problem, state))
        certificate = self._certificate(problem, state, state["proof"])
        return Report(state["x"], gap=gap, status="failed", message=certificate.verdict, certificate=certificate)


def _check_nonexpansive(problem: Problem, old: State, new: State) -> None:
    before = float(problem.norm(tree.sub(new["x"], old["x"])))
    after = float(problem.norm(tree.sub(new["image"], old["image"])))
    eps = torch.finfo(tree.precision(new["x"])).eps
    rounding = 100 * eps * float(problem.norm(new["x"]) + problem.norm(new["image"]))
    if after > before * (1 + math.sqrt(eps)) + rounding:
        raise ValueError(f"T must be nonexpansive in the problem's norm, and takes two points that are {before:.6g} apart to two that "
                         f"are {after:.6g} apart (step {new['k']}); the iterates of such a T prove nothing: damp it, or give "
                         "FixedPoint its norm")


@register("picard")
@dataclass(frozen=True)
class Picard(_Iteration):
    """x⁺ = T x, with proofs of infeasibility.

    The gap is ‖x − T x‖ in the problem's norm. For an averaged T (a projection, a proximal map, Douglas-Rachford, PDHG) it goes to 0
    where there is a fixed point, and to ‖v‖ as O(1/√k) where there is none; for polyhedra both become linear.

    Raises
    ------
    ValueError
        Where two points are found that T moves apart.

    Notes
    -----
    At steps 1, 2, 4, 8, … both estimates of v are shown to the problem's ``certify``. If it returns a certificate the run ends as
    "failed" with its verdict: never because a residual stays large. Where the problem knows a ``radius``, it is infeasible as well
    when the ball without fixed points is larger by more than rounding (√ε of it). Else the certificate is a ``Displacement``. A
    tolerance above ‖v‖ cannot tell an infeasible problem from a solved one.
    """

    growth: ClassVar[float] = 1.0

    def _next(self, state: State) -> Tree:
        return state["image"]


@register("halpern")
@dataclass(frozen=True)
class Halpern(_Iteration):
    """x⁺ = x_0/(k+2) + (k+1)/(k+2) T x, with proofs of infeasibility.

    For every nonexpansive T with a fixed point x* the gap ‖x − T x‖ is at most 2 ‖x_0 − x*‖/(k+1), which is optimal, and so are its
    estimates of v. One vector of memory, x_0, which is never renewed.

    Raises
    ------
    ValueError
        Where two points are found that T moves apart.

    Notes
    -----
    Proofs as for ``Picard``.
    """

    growth: ClassVar[float] = 2.0

    def _next(self, state: State) -> Tree:
        k = state["k"]
        return tree.axpy((k + 1) / (k + 2), state["image"], tree.scale(1 / (k + 2), state["x0"]))
