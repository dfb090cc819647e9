"""An accelerated cubic Newton method for inexact gradients and Hessians.

    v = (1 − α) x + α y,   α = 3/(t + 3)
    x ← argmin_z ⟨g(v), z−v⟩ + ½⟨H(v)(z−v), z−v⟩ + (δ̄/2)‖z−v‖² + (M/6)‖z−v‖³,   δ̄ = 2δ₂ + (σ₁/R)(t + 3)^{3/2},   M = 4L₂
    s ← s + a g(x),   a = (t + 1)(t + 2)/2
    y = argmin_u ⟨s, u⟩ + (c/2)‖u − x₀‖² + (κ/3)‖u − x₀‖³,   c = 2δ̄αa + (σ₁/R)(t + 3)^{5/2},   κ = (8M/3) α₊² a₊

a = α/A with A = Π (1 − α) over the steps so far; α₊ and a₊ are those of the next step. σ₁ bounds the standard deviation of gradients,
δ₂ the error of Hessians, L₂ the Lipschitz constant of the Hessian and R the distance to the solution. After T steps the gap is
O(σ₁R/√T + δ₂R²/T² + L₂R³/T³), the first two of which no method can better; without acceleration they are δ₂R²/T + L₂R³/T².

Agafonov, Kamzolov, Gasnikov, Kavis, Antonakopoulos, Cevher, Takáč: Advancing the lower bounds: An accelerated, stochastic, second-order
method with optimal adaptation to inexactness, ICLR 2024, arXiv 2309.01570.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.checks import check_count
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.tree import Tree
from fallline.solvers.descent.curvature import Curvature, Exact
from fallline.solvers.descent.descents import CubicNewton
from fallline.solvers.descent.minimizer import KINDS


@register("accelerated-cubic")
@dataclass(frozen=True)
class AcceleratedCubic(Method):
    """x ← cubic Newton step with slack δ̄ from (1 − α)x + αy, y ← minimiser of the gradients seen so far plus a cubic prox.

    Parameters
    ----------
    L2 : float, default 1
        Lipschitz constant of the Hessian; the cubic model has M = 4 L₂.
    sigma1 : float, default 0
        σ₁: standard deviation of the gradients; 0 for exact ones.
    delta2 : float, default 0
        δ₂: bound on the error of the Hessians, in spectral norm.
    R : float, default 1
        An upper bound on the distance from the start to the solution; not used where σ₁ = 0.
    gradient_batch, hessian_batch : int, optional
        Samples of the problem's data behind every gradient and Hessian, drawn anew; all data by default.
    curvature : Curvature, default ``Exact()``
        What stands for the Hessian.

    Notes
    -----
    For convex objectives. A step costs two gradients, a Hessian and an eigendecomposition. The constants of the paper's schedules are
    recalled within factors: the rates do not depend on them. On strongly convex problems plain cubic Newton wins locally. The gap is
    the norm of the last gradient seen, of a batch where there is one. Memory O(d²).
    """

    L2: float = 1.0
    sigma1: float = 0.0
    delta2: float = 0.0
    R: float = 1.0
    gradient_batch: int | None = None
    hessian_batch: int | None = None
    curvature: Curvature = field(default_factory=Exact)

    needs: ClassVar[tuple[str, ...]] = ("gradient", "hessian")
    kinds: ClassVar[tuple[str, ...]] = KINDS
    space: ClassVar[Mapping[str, Range]] = {"L2": LogUniform(1e-3, 1e2)}

    def __post_init__(self) -> None:
        for name, value, least in (("L2", self.L2, "> 0"), ("R", self.R, "> 0"), ("sigma1", self.sigma1, ">= 0"),
                                   ("delta2", self.delta2, ">= 0")):
            if not (math.isfinite(value) and (value > 0 if least == "> 0" else value >= 0)):
                raise ValueError(f"{name} must be a finite number {least}, got {value}")
        for name, size in (("gradient_batch", self.gradient_batch), ("hessian_batch", self.hessian_batch)):
            if size is not None:
                check_count(name, size, "None takes all data")

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        gradient = problem.gradient(x)
        return {"x": x, "y": x, "s": torch.zeros_like(tree.flatten(x)), "start": x, "gap": tree.norm(gradient), "t": 0,
                "curvature": self.curvature.start(key), "key": key}

    def step(self, problem: Problem, state: State) -> State:
        t, key = state["t"], state["key"].fold(state["t"])
        alpha, weight = _alpha(t), _weight(t)
        v = tree.axpy(alpha, tree.sub(state["y"], state["x"]), state["x"])
        slack = 2 * self.delta2 + self.sigma1 / self.R * (t + 3) ** 1.5
        local, memory = self.curvature.at(_sampled(problem, key.fold("hessian"), self.hessian_batch), v, state["curvature"])
        step = CubicNewton(slack).path(local, self._gradient(problem, v, key.fold("at v")))(1 / (4 * self.L2))
        assert step is not None  # a cubic model has a minimiser
        x = tree.add(v, tree.unflatten(step.displacement, v))
        gradient = self._gradient(problem, x, key.fold("at x"))
        s = state["s"] + weight * gradient
        square = 2 * slack * alpha * weight + self.sigma1 / self.R * (t + 3) ** 2.5
        cube = 8 * 4 * self.L2 / 3 * _alpha(t + 1) ** 2 * _weight(t + 1)
        y = tree.add(state["start"], tree.unflatten(_cubic_prox(s, square, cube), x))
        return {**state, "x": x, "y": y, "s": s, "gap": torch.linalg.vector_norm(gradient), "t": t + 1, "curvature": memory}

    def _gradient(self, problem: Problem, x: Tree, key: Key) -> Tensor:
        return tree.flatten(_sampled(problem, key, self.gradient_batch).gradient(x))

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["x"], gap=state["gap"])


def _sampled(problem: Problem, key: Key, size: int | None) -> Problem:
    """All data where no size is given, but a sample of a problem that has its noise inside and no data."""
    if size is None and problem.samples:
        return problem
    return problem.draw(key, size=size)


def _alpha(t: int) -> float:
    return 3 / (t + 3)


def _weight(t: int) -> float:
    """α_t / A_t for A_t = Π_{j ≤ t} (1 − α_j) = 6/((t+1)(t+2)(t+3)), which itself would underflow."""
    return (t + 1) * (t + 2) / 2


def _cubic_prox(s: Tensor, square: float, cube: float) -> Tensor:
    """argmin_u ⟨s, u⟩ + (square/2)‖u‖² + (cube/3)‖u‖³: along −s, of the length r with cube r² + square r = ‖s‖."""
    length = torch.linalg.vector_norm(s)
    # Not (√(c² + 4κ‖s‖) − c)/2κ, which cancels where c dominates.
    return -2 * s / (square + torch.sqrt(square**2 + 4 * cube * length)) if float(length) > 0 else torch.zeros_like(s)
