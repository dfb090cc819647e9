"""A game, min over x and max over y: replace the function by yours.

    fallline compare my_problem.py --methods my_problem.py:Extragradient
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import fallline as fl


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed, which draws the coupling; answers are judged by the norm of (∂f/∂x, −∂f/∂y)."""
    generator = torch.Generator().manual_seed(seed)
    coupling = torch.randn(5, 5, generator=generator)

    def payoff(x: Tensor, y: Tensor) -> Tensor:
        return 0.05 * (x @ x) + x @ coupling @ y - 0.05 * (y @ y)

    return fl.Saddle(payoff, torch.ones(5), torch.ones(5), name="my-game", budget=fl.Budget(steps=500))


@dataclass(frozen=True)
class Extragradient(fl.Method):
    """z' = z − lr F(z), z ← z − lr F(z'), a method of your own to begin from: init, step and report, and what to tune."""

    lr: float = 0.1

    needs: ClassVar[tuple[str, ...]] = ("operator",)
    kinds: ClassVar[tuple[str, ...]] = ("saddle",)
    space: ClassVar[Mapping[str, Any]] = {"lr": fl.LogUniform(1e-3, 1.0)}

    def init(self, problem: fl.Problem, key: fl.Key) -> dict[str, Any]:
        x, y = problem.x0
        return {"z": (x.clone(), y.clone())}

    def step(self, problem: fl.Problem, state: dict[str, Any]) -> dict[str, Any]:
        z = state["z"]
        ahead = self._moved(z, problem.operator(z))
        return {"z": self._moved(z, problem.operator(ahead))}

    def _moved(self, z: tuple[Tensor, Tensor], direction: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return z[0] - self.lr * direction[0], z[1] - self.lr * direction[1]

    def report(self, problem: fl.Problem, state: dict[str, Any]) -> fl.Report:
        return fl.Report(state["z"])
