"""Values only, no derivatives: replace the function of a batch of points by yours, then `fallline compare` this file."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fallline as fl


def rugged(x: Tensor) -> Tensor:
    """Rastrigin's function of one point, with many local minima; least at 0."""
    return 10 * len(x) + (x**2 - 10 * torch.cos(2 * math.pi * x)).sum()


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed, which draws the starting point."""
    start = 4 * torch.rand(4, generator=torch.Generator().manual_seed(seed)) - 2
    return fl.BlackBox(rugged, start, name="my-black-box", facts={"best_value": 0.0}, budget=fl.Budget(values=20_000))
