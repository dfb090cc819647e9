"""A mean over data points: replace the loss of one mini-batch and the data by yours, then `fallline compare` this file."""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl


def loss(w: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """The mean loss over the rows of a mini-batch."""
    return torch.nn.functional.huber_loss(rows @ w, targets)


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed, which draws the data."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(500, 20, generator=generator)
    targets = rows @ torch.randn(20, generator=generator) + 0.1 * torch.randn(500, generator=generator)
    return fl.FiniteSum(loss, (rows, targets), torch.zeros(20), batch_size=16, name="my-sum", budget=fl.Budget(steps=500))
