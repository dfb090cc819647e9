"""Frank-Wolfe: descent over a convex set by linear minimisation alone, for objectives that are infinite outside a domain of their own.

    v = argmin_{v ∈ C} ⟨∇f(x), v⟩,   gap = ⟨∇f(x), x − v⟩ ≥ f(x) − f*   (convex f)
    x ← (1 − γ) x + γ v,   γ from a rule (``MonotoneStep``: 2/(t + 2), or no step where that does not lower f or leaves its domain)
    away steps, with x = Σ c_i a_i:   a = argmax ⟨∇f(x), a_i⟩;   where ⟨∇f(x), a − x⟩ > gap:   x ← x + γ (x − a),   γ ≤ c_a / (1 − c_a)

For generalised self-concordant f (log barriers, logistic and Poisson losses) f − f* and the gap fall like 1/t without a constant of f
and without a Hessian; with away steps and backtracking, linearly on polytopes.

Carderera, Besançon, Pokutta: Simple steps are all you need: Frank-Wolfe and generalized self-concordant functions, NeurIPS 2021,
arXiv 2105.13913.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.constructors import contained
from fallline.core.errors import MissingOracle, NonFiniteError, WrongProblem
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.tree import Tree
from fallline.solvers.segment_steps import BacktrackingStep, LineSearchStep, MonotoneStep, OpenLoopStep, Segment, SegmentStep

STEP_SIZES: dict[str, SegmentStep] = {
    "monotone": MonotoneStep(), "open_loop": OpenLoopStep(), "backtracking": BacktrackingStep(), "line_search": LineSearchStep(),
}
LEAST_WEIGHT = 1e-15  # an atom of less is rounding, and is dropped


@dataclass(frozen=True, repr=False)
class FrankWolfeGap:
    """f(x) − f* ≤ gap for convex f, and what x is made of where the method keeps it."""

    gap: Tensor
    """⟨∇f(x), x − v⟩."""
    vertex: Tree
    """The v of least ⟨∇f(x), v⟩ in the set: proof of the gap."""
    atoms: Tensor | None = None
    """The active set ``(k, n)``, flattened: x = weights @ atoms."""
    weights: Tensor | None = None
    """``(k,)``, positive, summing to 1."""

    def __repr__(self) -> str:
        made = "" if self.atoms is None else f"; x is a mixture of {len(self.atoms)} atoms"
        return f"FrankWolfeGap(f(x) − f* ≤ {float(self.gap):.3g} for convex f{made})"


@dataclass(frozen=True)
class _FrankWolfe(Method):
    """What both methods share: the door, the gap and its certificate."""

    step_size: str | SegmentStep = "monotone"

    needs: ClassVar[tuple[str, ...]] = ("gradient", "linear_minimize")
    kinds: ClassVar[tuple[str, ...]] = ("constrained",)

    def __post_init__(self) -> None:
        if self.step_size not in STEP_SIZES if isinstance(self.step_size, str) else not callable(self.step_size):
            raise ValueError(f"step_size must be one of {', '.join(map(repr, STEP_SIZES))}, or a rule such as BacktrackingStep(L=1.0), "
                             f"got {self.step_size!r}")

    @property
    def _rule(self) -> SegmentStep:
        return STEP_SIZES[self.step_size] if isinstance(self.step_size, str) else self.step_size

    def check(self, problem: Problem) -> None:
        """Raise unless the problem is f over a set with a linear minimisation oracle, and x0 is in it."""
        name = type(self).__name__
        if problem.kind == "constrained":
            if problem.has("equality") or problem.has("inequality"):
                raise WrongProblem(f"{name} keeps to a set alone, and {problem.name!r} has equality or inequality constraints as well")
            if not problem.has("linear_minimize"):
                raise MissingOracle(f"{name} needs a set with linear_minimize(g), which {problem.set!r} does not have; those of "
                                    "fallline.core.sets do")
        super().check(problem)
        if self._rule.compares:
            problem.require("value", by=name)
        if not contained(problem.set, problem.x0):
            raise ValueError(f"x0 must lie in {problem.set!r}, and does not; start at a point of it, such as its linear_minimize(g) "
                             "for some g where f is finite")

    def _begin(self, problem: Problem) -> State:
        x = tree.clone(problem.x0)
        value = None
        if self._rule.compares:
            value = float(problem.value(x))
            if not math.isfinite(value):
                raise NonFiniteError(f"x0 must lie in the domain of f, and f(x0) = {value}; start in the interior of it")
        return {"x": x, "value": value, "memory": None, "failure": "", "t": 0, **self._looked(problem, x, "x0")}

    def _looked(self, problem: Problem, x: Tree, name: str) -> State:
        """The gradient at x, the vertex it points to, and the gap."""
        gradient = problem.gradient(x)
        if not tree.all_finite(gradient):
            raise NonFiniteError(f"the gradient at {name} has NaN or infinite entries: outside the domain of f, or on its boundary")
        vertex = problem.linear_minimize(gradient)
        gap = tree.dot(gradient, tree.sub(x, vertex)).clamp(min=0)
        return {"gradient": gradient, "vertex": vertex, "gap": gap}

    def _moved(self, problem: Problem, state: State, segment: Segment) -> tuple[float, State]:
        """γ, and the state at the point there."""
        gamma, value, memory, failure = self._rule(segment, state["t"], state["memory"])
        state = {**state, "t": state["t"] + 1, "memory": memory, "failure": failure}
        if gamma == 0:
            return gamma, state
        x = segment.point(gamma)
        return gamma, {**state, "x": x, "value": value, **self._looked(problem, x, "the new point")}

    def report(self, problem: Problem, state: State) -> Report:
        certificate = FrankWolfeGap(state["gap"], state["vertex"], state.get("atoms"), state.get("weights"))
        return Report(state["x"], value=state["value"], gap=state["gap"], certificate=certificate, message=state["failure"],
                      status="failed" if state["failure"] else "running")


@register("frank-wolfe")
@dataclass(frozen=True)
class FrankWolfe(_FrankWolfe):
    """x ← (1 − γ) x + γ v with v = argmin_{v ∈ C} ⟨∇f(x), v⟩: x stays in C, a mixture of x0 and vertices.

    Parameters
    ----------
    step_size : {"monotone", "open_loop", "backtracking", "line_search"}, or a rule of ``segment_steps``; default "monotone"
        "open_loop" may leave the domain of f: its first step discards x0 for a vertex.

    Notes
    -----
    Solves ``Constrained(smooth, set)`` for a set with ``linear_minimize``, from an x0 in it where f is finite. A gradient and a
    linear minimisation a step that moves, and the values of the rule: one for "monotone". Memory: gradient and vertex beside x. The
    gap bounds f(x) − f* for convex f only; the certificate is a ``FrankWolfeGap``.

    Raises
    ------
    ValueError
        x0 is outside the set, or ``step_size`` is unknown.
    NonFiniteError
        x0 is outside the domain of f.
    MissingOracle
        The set has no linear minimisation oracle.
    """

    def init(self, problem: Problem, key: Key) -> State:
        return self._begin(problem)

    def step(self, problem: Problem, state: State) -> State:
        x, vertex = state["x"], state["vertex"]
        # Products of nonnegative weights: no rounding takes a zero coordinate below zero.
        point = lambda gamma: tree.map(lambda a, b: (1 - gamma) * a + gamma * b, x, vertex)
        segment = Segment(problem, point, tree.sub(vertex, x), state["value"], -float(state["gap"]))
        return self._moved(problem, state, segment)[1]


@register("away-frank-wolfe")
@dataclass(frozen=True)
class AwayFrankWolfe(_FrankWolfe):
    """Frank-Wolfe that also steps away from the worst atom x is made of, dropping it at the longest step; for polytopes.

    Parameters
    ----------
    step_size : {"backtracking", "line_search", "monotone", "open_loop"}, or a rule of ``segment_steps``; default "backtracking"
        Linear convergence is that of the first two; the others are cut at the longest step.

    Notes
    -----
    As ``FrankWolfe``, and k atoms of n numbers beside it: the active set begins with x0, and holds every vertex that x is made of.
    On sets that are no polytopes, new vertices need never repeat, and k grows with the steps.
    """

    step_size: str | SegmentStep = "backtracking"

    def init(self, problem: Problem, key: Key) -> State:
        state = self._begin(problem)
        atoms = tree.flatten(state["x"])[None]
        return {**state, "atoms": atoms, "weights": torch.ones_like(atoms[:, 0])}

    def step(self, problem: Problem, state: State) -> State:
        x, atoms, weights = state["x"], state["atoms"], state["weights"]
        flat, gradient = tree.flatten(x), tree.flatten(state["gradient"])
        scores = atoms @ gradient
        worst = int(scores.argmax())
        away = len(atoms) > 1 and float(scores[worst] - flat @ gradient) > float(state["gap"])
        if away:
            share = float(weights[worst])
            longest, slope, sign = share / (1 - share), float(flat @ gradient - scores[worst]), -1.0
        else:
            atoms, weights, worst = _with_atom(atoms, weights, tree.flatten(state["vertex"]))
            longest, slope, sign = 1.0, -float(state["gap"]), 1.0
        unit = torch.zeros_like(weights)
        unit[worst] = 1.0
        mixed = lambda gamma: ((1 - sign * gamma) * weights + sign * gamma * unit).clamp(min=0)
        direction = tree.unflatten(sign * (atoms[worst] - flat), x)
        segment = Segment(problem, lambda gamma: tree.unflatten(mixed(gamma) @ atoms, x), direction, state["value"], slope,
                          longest)
        gamma, state = self._moved(problem, state, segment)
        if gamma == 0:
            return state
        left = mixed(gamma)
        kept = left > LEAST_WEIGHT
        if away and gamma == longest:
            kept[worst] = False
        return {**state, "atoms": atoms[kept], "weights": left[kept] / left[kept].sum()}


def _with_atom(atoms: Tensor, weights: Tensor, vertex: Tensor) -> tuple[Tensor, Tensor, int]:
    """The active set with the vertex in it, of weight 0 if it is new, and its row."""
    same = (atoms == vertex).all(dim=1).nonzero()
    if len(same):
        return atoms, weights, int(same[0])
    return torch.cat([atoms, vertex[None]]), torch.cat([weights, torch.zeros_like(weights[:1])]), len(atoms)

