"""A problem file as a user writes it: a quadratic whose minimiser depends on the seed."""

from __future__ import annotations

import torch

from fallline.core.budget import Budget
from fallline.core.constructors import Smooth
from fallline.core.problem import Problem

SCALES = torch.logspace(0, 1, 6)


def problem(seed: int) -> Problem:
    goal = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    return Smooth(
        lambda x: 0.5 * (SCALES * (x - goal) ** 2).sum(),
        torch.zeros(6),
        name="quadratic",
        facts={"best_value": 0.0},
        budget=Budget(steps=30),
    )
