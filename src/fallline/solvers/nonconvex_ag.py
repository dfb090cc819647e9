"""Accelerated gradients for a smooth loss and a penalty that is convex plus smooth and concave, such as SCAD and MCP.

    f + r + q,   ψ = f + q with a gradient of Lipschitz constant L = max(L_f, ρ), r convex, q' ρ-Lipschitz
    α ← 2 / (1 + √(1 + 4/α²)),   δ = 0.99 / L,   ω = δ / α
    z = (1 − α) y + α x,   g = ∇ψ(z)
    x ← prox_{ω r}(x − ω g),   y ← prox_{δ r}(z − δ g)
    restart, α = 1:   when ‖z − z⁻‖ has become smaller, three steps after the last restart or later

This α, ω and δ minimise the bound of Ghadimi and Lan on ‖(z − y)/δ‖², which for convex ψ is the accelerated one; f + r + q need not be
convex. A step costs one gradient and two proximal maps, and keeps three vectors.

Yang, Asgharian, Bhatnagar: Accelerated gradient methods for sparse statistical learning with nonconvex penalties, Statistics and
Computing 34, 2024, arXiv 2009.10629; S. Ghadimi and G. Lan, Math. Program. 156 (2016) 59.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.constructors import leafwise
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register

SAFETY = 0.99
RESTART_AFTER = 3


@register("nonconvex-ag")
@dataclass(frozen=True)
class NonconvexAcceleratedGradient(Method):
    """z = (1 − α) y + α x;   x ← prox_{ωr}(x − ω∇ψ(z));   y ← prox_{δr}(z − δ∇ψ(z)), with α restarted when the moves get shorter.

    Parameters
    ----------
    L : float, optional
        The Lipschitz constant of the gradient of the loss f alone; by default ``smooth.facts["L"]``, or that of a ``LinearModel``,
        found by Lanczos. The curvature of the concave part is seen to: the step is 0.99 / max(L, weak convexity of the term).
    restart : bool, default True
        As in the authors' package; without, the paper's first algorithm.

    Notes
    -----
    Solves ``Composite(smooth, term)`` with a term whose ``split`` is known: SCAD, MCP, and every convex one. A term that has but
    ``value`` and ``prox`` is taken for convex. Where L and the weak convexity are 0, ψ is affine and any step will do: 0.99. The
    solution is y, as sparse as prox makes it. The gap is ‖z − y‖/δ, the norm of the generalised gradient at z, 0 at stationary points
    only; the paper stops by the largest move of z, which is 0 at its first step. Counts gradients of the loss; proximal maps are of
    the convex part.

    Raises
    ------
    ValueError
        ``L`` is not given and not known, or the term has no known split.
    """

    L: float | None = None
    restart: bool = True

    needs: ClassVar[tuple[str, ...]] = ("prox",)
    kinds: ClassVar[tuple[str, ...]] = ("composite",)

    def __post_init__(self) -> None:
        if self.L is not None and not (math.isfinite(self.L) and self.L > 0):
            raise ValueError(f"L must be a finite number > 0, the Lipschitz constant of the loss's gradient, or None, got {self.L!r}")

    def check(self, problem: Problem) -> None:
        """Raise unless the loss has gradients of known Lipschitz constant, and the term splits."""
        super().check(problem)
        problem.smooth.require("gradient", by=type(self).__name__)
        _split(problem.term)
        self._curvature(problem.smooth, measure=False)

    def _curvature(self, loss: Problem, measure: bool = True) -> float:
        known = self.L or loss.facts.get("L")
        if known is not None:
            return float(known)
        parts = loss._given.get("linear_model")
        if parts is None or not math.isfinite(parts.loss.largest_curvature):
            raise ValueError(f"L is not known for {loss.name!r}: give L, the Lipschitz constant of its gradient, or facts={{'L': …}}")
        return parts.largest_curvature() if measure else math.nan

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        step = SAFETY / (max(self._curvature(problem.smooth), getattr(problem.term, "weak_convexity", 0.0)) or 1.0)
        return {"x": x, "y": x, "z": x, "step": step, "alpha": 1.0, "speeds": [1.0, 1.0], "age": 0, "gap": None}

    def step(self, problem: Problem, state: State) -> State:
        x, y, before, delta = state["x"], state["y"], state["z"], state["step"]
        (earlier, last), age = state["speeds"], state["age"] + 1
        if self.restart and earlier > last and age >= RESTART_AFTER:
            alpha, age = 1.0, 0
        else:
            alpha = 2 / (1 + math.sqrt(1 + 4 / state["alpha"] ** 2))
        convex, concave = _split(problem.term)
        prox = leafwise(convex, convex.prox)
        z = tree.axpy(alpha, tree.sub(x, y), y)
        gradient = tree.add(problem.smooth.gradient(z), leafwise(problem.term, concave)(z))
        x = prox(tree.axpy(-delta / alpha, gradient, x), delta / alpha)
        y = prox(tree.axpy(-delta, gradient, z), delta)
        speed = float(tree.norm(tree.sub(z, before)))
        return {**state, "x": x, "y": y, "z": z, "alpha": alpha, "speeds": [last, speed], "age": age,
                "gap": tree.norm(tree.sub(z, y)) / delta}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["y"], gap=state["gap"])


def _split(term: Any) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A convex term and the gradient of a smooth concave one."""
    split: tuple[Any, Callable[[Tensor], Tensor]] = term.split() if hasattr(term, "split") else (term, torch.zeros_like)
    return split
