"""NOTEARS: structure learning by an augmented Lagrangian, the baseline of most.

    g(W) = tr e^{W∘W} − d,   ∇g = 2 W ∘ (e^{W∘W})ᵀ : 0 exactly for graphs without cycles
    inner:   W⁺ = argmin loss(W) + λ‖W‖₁ + (ρ/2) g(W)² + α g(W),   by L-BFGS-B on W = P − N with P, N ≥ 0 and diagonals 0
    outer:   if g(W⁺) ≤ g(W)/4 take W⁺ and α ← α + ρ g(W⁺), else ρ ← 10 ρ

Zheng, Aragam, Ravikumar, Xing: DAGs with NO TEARS, NeurIPS 2018, arXiv 1803.01422.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.space import Range
from fallline.graphs.nodewise_scores import LeastSquaresScore
from fallline.graphs.scores import Score
from fallline.graphs.structure import KINDS, StructureLearner

RHO_MAX = 1e16


@dataclass(frozen=True)
class Notears(Method):
    """An inner minimisation a step, from ρ = 1 and α = 0, until g(W) ≤ ``tol`` or ρ reaches 10¹⁶.

    Parameters
    ----------
    tol : float, default 1e-8

    Notes
    -----
    Takes any ``Score``. The inner solver is SciPy's and works on the CPU in float64. The gap is g(W).
    """

    tol: float = 1e-8

    needs: ClassVar[tuple[str, ...]] = ("smooth", "term")
    kinds: ClassVar[tuple[str, ...]] = KINDS
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tol) and self.tol > 0):
            raise ValueError(f"tol must be a finite number > 0, got {self.tol!r}")

    def init(self, problem: Problem, key: Key) -> State:
        return {"W": problem.x0.clone(), "rho": 1.0, "alpha": 0.0, "cycles": math.inf}

    def step(self, problem: Problem, state: State) -> State:
        W = _inner(problem, state["W"], state["rho"], state["alpha"])
        cycles = acyclicity(W.double().cpu().numpy())[0]
        if cycles > 0.25 * state["cycles"] and state["rho"] < RHO_MAX:
            return {**state, "rho": 10 * state["rho"]}
        return {**state, "W": W, "cycles": cycles, "alpha": state["alpha"] + state["rho"] * cycles}

    def report(self, problem: Problem, state: State) -> Report:
        report = Report(state["W"], gap=state["cycles"] if math.isfinite(state["cycles"]) else None)
        if state["cycles"] <= self.tol:
            report.status, report.message = "converged", f"g(W) = {state['cycles']:.3g} is within {self.tol:.3g}"
        elif state["rho"] >= RHO_MAX:
            report.status, report.message = "failed", f"g(W) = {state['cycles']:.3g} does not fall though ρ = {state['rho']:.3g}"
        return report


def acyclicity(W: np.ndarray) -> tuple[float, np.ndarray]:
    """Return g(W) = tr e^{W∘W} − d and its gradient (d, d)."""
    exponential = scipy.linalg.expm(W * W)
    return float(exponential.trace()) - len(W), 2 * W * exponential.T


def _inner(problem: Problem, W: Tensor, rho: float, alpha: float) -> Tensor:
    d, lam = len(W), problem.score.lam

    def value_and_gradient(parts: np.ndarray) -> tuple[float, np.ndarray]:
        point = parts[:d * d].reshape(d, d) - parts[d * d:].reshape(d, d)
        loss, slope = problem.smooth.value_and_gradient(torch.from_numpy(point).to(W))
        cycles, turn = acyclicity(point)
        total = slope.double().cpu().numpy() + (rho * cycles + alpha) * turn
        value = float(loss) + (rho / 2 * cycles + alpha) * cycles + lam * parts.sum()
        return value, np.concatenate([lam + total.ravel(), lam - total.ravel()])

    start = W.double().cpu().numpy()
    upper = np.where(np.eye(d, dtype=bool), 0.0, np.inf).ravel()
    found = scipy.optimize.minimize(value_and_gradient, np.concatenate([start.clip(0).ravel(), (-start).clip(0).ravel()]), jac=True,
                                    method="L-BFGS-B", bounds=scipy.optimize.Bounds(0.0, np.tile(upper, 2)))
    return torch.from_numpy((found.x[:d * d] - found.x[d * d:]).reshape(d, d)).to(W)


@dataclass(eq=False)
class NOTEARS(StructureLearner):
    """``Notears`` from data to graph: ``fit(X)``.

    Parameters
    ----------
    score : Score, default ``LeastSquaresScore(0.1)``
        As in the authors' code.
    tol : float, default 1e-8
    threshold : float, default 0.3

    Attributes
    ----------
    W_ : Tensor (d, d)
        Before the threshold, with small weights that close cycles.
    dag_ : WeightedDAG
    result_ : Result
    """

    score: Score = field(default_factory=lambda: LeastSquaresScore(0.1))
    tol: float = 1e-8
    threshold: float = 0.3

    @property
    def method(self) -> Notears:
        return Notears(self.tol)

    @property
    def budget(self) -> Budget:
        return Budget(steps=200)
