"""A problem inside a problem: replace the two levels by yours, then `fallline compare` this file."""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed, which draws the data: x holds the logarithms of ridge penalties, y the weights."""
    generator = torch.Generator().manual_seed(seed)
    rows, valid = (torch.randn(n, 10, generator=generator) for n in (40, 40))
    weights = torch.randn(10, generator=generator) * (torch.arange(10) < 3)
    targets, wanted = (a @ weights + 0.5 * torch.randn(40, generator=generator) for a in (rows, valid))

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((rows @ y - targets) ** 2).mean() + 0.5 * (x.exp() * y**2).sum()

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((valid @ y - wanted) ** 2).mean()

    return fl.Bilevel(upper, lower, torch.zeros(10), torch.zeros(10), name="my-bilevel", budget=fl.Budget(gradients=5_000))
