"""A script that compares what it defines itself, with as many workers as it is told."""

from __future__ import annotations

import sys

import torch
from sides import PROBLEM

from fallline.core.method import Train
from fallline.core.space import LogUniform
from fallline.study import Contender, runs

SPACE = {"lr": LogUniform(1e-3, 0.1)}
CALLS: list[float] = []


class Own(torch.optim.SGD):
    """An optimizer of the script's own."""


def changing(lr: float) -> Train:
    """A method whose factory changes what it reads."""
    CALLS.append(lr)
    return Train(torch.optim.SGD, lr=lr)


if __name__ == "__main__":
    sides = [Contender("class", factory=Own, space=SPACE), Contender("function", factory=changing, space=SPACE)]
    table = runs(PROBLEM, sides, tune=3, seeds=2, workers=int(sys.argv[1]), storage=sys.argv[2])
    print(*sorted(record.id for record in table.records), *(value for side in table.sides for value in side.values))
