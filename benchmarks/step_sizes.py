"""Time of one step of every step size over a direction

    python benchmarks/step_sizes.py [--repeats 15] [--threads 2] [--quick]

As in ``optim_rules.py``: every contestant takes turns with ``torch.optim.AdamW(fused=True)``, which moves seven words a parameter, on
four GPT blocks. A step size looks at all parameters before any of them moves, so a step has two passes: the first reads what the
statistics are of (and, where they are of the direction, computes and stores it), the second moves. The goal is 1.15 times the words
of both over seven.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from figures import Goal, Table
from harness import Contestant, Options, race, run
from optim_rules import Make
from optim_step import MODELS, REFERENCE, SMALL, Stepping, state_bytes_of

import fallline.optim as optim
from fallline.optim.step_sizes import AccumulatedGradientNorm, DistanceOverGradients, OverGradientNorm, Polyak

TITLE = next(iter(MODELS))
LOSS = torch.tensor(1.0)


def with_loss(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer with a loss at every step."""
    optimizer.step = functools.partial(optimizer.step, lambda: LOSS)  # type: ignore[method-assign]
    return optimizer


def over(base: str, step_size: optim.StepSize) -> Make:
    """The base with another step size, compiled."""
    return lambda p: with_loss(optim.WithStepSize(p, base, step_size, compile=True))


@dataclass(frozen=True)
class Row:
    """A contestant, and the words a parameter that both passes of its step move."""

    make: Make
    words: int


ROWS = {
    "sgd": Row(lambda p: optim.SGD(p, compile=True), 3),
    "sgd, normalised": Row(over("sgd", OverGradientNorm()), 4),
    "sgd, AdaGrad-Norm": Row(over("sgd", AccumulatedGradientNorm()), 4),
    "sgd, distance over gradients": Row(over("sgd", DistanceOverGradients()), 6),
    "dog": Row(lambda p: optim.DoG(p, compile=True), 8),
    "sgd, Polyak": Row(over("sgd", Polyak()), 4),
    "adam": Row(lambda p: optim.Adam(p, compile=True), 7),
    "adam, normalised": Row(over("adam", OverGradientNorm()), 8),
    "adam, distance over gradients": Row(over("adam", DistanceOverGradients()), 10),
    "adam, Polyak": Row(over("adam", Polyak()), 9),
    "psps adagrad": Row(lambda p: with_loss(optim.PSPS(p, precond="adagrad", compile=True)), 7),
    "sania": Row(lambda p: with_loss(optim.SANIA(p, compile=True)), 7),
    "u-dog": Row(lambda p: optim.UDoG(p, compile=True), 12),
}


def tables(options: Options) -> list[Table]:
    """One table."""
    shapes = SMALL if options.quick else MODELS[TITLE]
    entrants = [Contestant(name, lambda row=row: Stepping(row.make, shapes).operation) for name, row in ROWS.items()]
    reference = Contestant(REFERENCE, lambda: Stepping(lambda p: torch.optim.AdamW(p, fused=True), shapes).operation)
    goals = [Goal(name, "ratio", round(1.15 * row.words / 7, 2), f"{row.words} words of seven, and 15 %") for name, row in ROWS.items()]
    further = lambda name, pairs: {"state bytes a parameter": state_bytes_of(ROWS[name].make, shapes)} if name in ROWS else {}
    return race(TITLE, reference, entrants, options, memory=False, further=further, goals=goals)


if __name__ == "__main__":
    run(__file__, __doc__, tables, ())
