"""A network to train: replace the network, the loss and the data by yours, then `fallline compare` this file."""

from __future__ import annotations

import torch
from torch import nn

import fallline as fl


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed: the seed draws the initial weights, the data are the same for all."""
    data = torch.Generator().manual_seed(0)
    inputs = torch.randn(1_200, 20, generator=data)
    labels = (inputs[:, :3].sum(1) + inputs[:, 3] * inputs[:, 4] > 0).long()

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

    return fl.Training(
        model,
        nn.functional.cross_entropy,  # loss(model(inputs), labels)
        data=(inputs[:1_000], labels[:1_000]),
        validation=(inputs[1_000:], labels[1_000:]),  # the comparison is decided by the loss on these
        batch_size=32,
        name="my-training",
        budget=fl.Budget(steps=300),  # of every trial, unless --budget says otherwise
    )
