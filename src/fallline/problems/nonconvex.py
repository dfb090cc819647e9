"""Smooth non-convex problems with known answers."""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.constructors import FiniteSum, Smooth
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.tree import Tree


def rosenbrock(seed: int = 0, d: int = 10) -> Problem:
    """Σ 100 (x_{i+1} − x_i²)² + (1 − x_i)², minimum 0 at (1, …, 1).

    float64; starts at (−1.2, 1, −1.2, 1, …), moved a little by seeds other than 0; 1,000 steps.
    """
    if d < 2:
        raise ValueError(f"d must be at least 2, got {d}")
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64).repeat((d + 1) // 2)[:d]
    if seed:
        start = start + 0.1 * torch.randn(d, dtype=torch.float64, generator=Key(seed).fold("rosenbrock").generator())

    def value(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return Smooth(value, start, name="rosenbrock", facts={"best_value": 0.0}, budget=Budget(steps=1_000))


def matrix_sensing(seed: int = 0, n: int = 20, rank: int = 2, measurements: int = 200) -> Problem:
    """½ mean (⟨A_i, U Vᵀ⟩ − b_i)² over the factors U, V (n × rank): a rank-2 matrix from 200 Gaussian measurements.

    No noise, least value 0; float64; small random start; batches of 20; metric the relative error of U Vᵀ; 2,000 steps.
    """
    generator = Key(seed).fold("matrix sensing").generator()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    truth = normal(n, rank) @ normal(n, rank).T / n**0.5
    sensors = normal(measurements, n, n)
    answers = (sensors * truth).sum((1, 2))

    def value(x: Tree, a: Tensor, b: Tensor) -> Tensor:
        return 0.5 * (((a * (x["u"] @ x["v"].T)).sum((1, 2)) - b) ** 2).mean()

    def observer(problem: Problem, x: Tree) -> dict[str, float]:
        error = torch.linalg.matrix_norm(x["u"] @ x["v"].T - truth) / torch.linalg.matrix_norm(truth)
        return {"value": float(problem.value(x)), "relative_error": float(error)}

    start = {"u": 0.1 * normal(n, rank), "v": 0.1 * normal(n, rank)}
    return FiniteSum(value, (sensors, answers), start, batch_size=20, name="matrix-sensing", facts={"best_value": 0.0},
                     observer=observer, metric="relative_error", budget=Budget(steps=2_000))
