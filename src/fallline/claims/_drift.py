"""A constant drift under noise, g = 1 + σ ξ with ξ standard normal: how far a rule gets against what it divides by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fallline as fl
from fallline.claims._tuning import Factory
from fallline.core.keys import Key

SEEDS, REPLICAS, ROWS = 3, 64, 8_192


def displacement(optimizer: Factory, deviations: Sequence[float], steps: int, seed: int, **hyper: Any) -> Tensor:
    """How far along the drift ``steps`` steps go, mean over 64 replicas: ``(deviations, seeds)``, the same noise for all deviations."""
    noise = torch.randn(ROWS, 1, SEEDS, REPLICAS, dtype=torch.float64, generator=Key(seed).fold("drift").generator())
    sigma = torch.tensor(deviations, dtype=torch.float64).view(-1, 1, 1)
    start = torch.zeros(len(deviations), SEEDS, REPLICAS, dtype=torch.float64)
    problem = fl.FiniteSum(lambda x, xi: ((1 + sigma * xi.mean(0)) * x).sum(), noise - noise.mean(0), start)
    return -fl.solve(problem, fl.Train(optimizer, **hyper), fl.Budget(steps=steps), key=seed, every=steps).x.mean(-1)
