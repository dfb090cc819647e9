"""A differentiable function to minimise: replace the function and the start by yours, then `fallline compare` this file."""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's function, least at (1, …, 1)."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed, which draws the starting point."""
    start = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return fl.Smooth(
        valley,
        start,
        name="my-function",
        facts={"best_value": 0.0},  # if you know it: the comparison is then decided by the gap to it
        budget=fl.Budget(gradients=500),
    )
