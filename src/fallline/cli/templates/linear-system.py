"""A linear system A x = b: replace the matrix (or a function x -> A x) by yours.

    fallline compare my_problem.py --methods my_problem.py:Descent
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import fallline as fl


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed, which draws the right-hand side; answers are judged by the norm of the residual."""
    n = 50
    ones = torch.ones(n - 1, dtype=torch.float64)
    matrix = 2 * torch.eye(n, dtype=torch.float64) - torch.diag(ones, 1) - torch.diag(ones, -1)
    right = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return fl.LinearSystem(matrix, right, name="my-system", budget=fl.Budget(matvecs=200))


@dataclass(frozen=True)
class Descent(fl.Method):
    """x ← x + lr (b − A x), a method of your own to begin from: init, step and report, and what to tune."""

    lr: float = 0.1

    needs: ClassVar[tuple[str, ...]] = ("matvec",)
    kinds: ClassVar[tuple[str, ...]] = ("linear-system",)
    space: ClassVar[Mapping[str, Any]] = {"lr": fl.LogUniform(1e-3, 1.0)}

    def init(self, problem: fl.Problem, key: fl.Key) -> dict[str, Any]:
        return {"x": problem.x0.clone(), "gap": None}

    def step(self, problem: fl.Problem, state: dict[str, Any]) -> dict[str, Any]:
        residual = problem.b - problem.matvec(state["x"])
        return {"x": state["x"] + self.lr * residual, "gap": residual.norm()}

    def report(self, problem: fl.Problem, state: dict[str, Any]) -> fl.Report:
        return fl.Report(state["x"], gap=state["gap"])
