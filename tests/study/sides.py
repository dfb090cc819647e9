"""Contenders and a problem file for the tests of this folder; importable by worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from fallline.core.method import Train
from fallline.core.space import Choice, LogUniform
from fallline.study import Contender, Record

PROBLEM = Path(__file__).with_name("descent_problem.py")
SGD = Contender("sgd", factory=torch.optim.SGD, space={"lr": LogUniform(1e-3, 0.15)})
ADAM = Contender("adam", factory=torch.optim.Adam, space={"lr": LogUniform(1e-3, 1.0)})
WILD = Contender("wild", factory=torch.optim.SGD, space={"lr": Choice(0.05, 1e6)})


def dying_sgd(lr: float, flag: str, always: bool = False) -> Train:
    """SGD whose worker process ends as if killed: at its first use, or always."""
    if multiprocessing.parent_process() is not None and (always or not Path(flag).exists()):
        Path(flag).touch()
        os._exit(9)
    return Train(torch.optim.SGD, lr=lr)


def unlucky_sgd(lr: float) -> Train:
    """A method with a mistake that only some settings meet."""
    if lr < 0.02:
        raise RuntimeError(f"lr {lr} is out of luck")
    return Train(torch.optim.SGD, lr=lr)


class Notes:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.total = 0
        self.stored: list[str] = []
        self.run: list[str] = []

    def start(self, total: Mapping[str, int]) -> None:
        self.total = sum(total.values())

    def finished(self, record: Record, stored: bool) -> None:
        (self.stored if stored else self.run).append(record.id)

    def say(self, text: str) -> None:
        """Nothing is expected to be said."""
        raise AssertionError(text)

    def stop(self) -> None:
        """Nothing to close."""
