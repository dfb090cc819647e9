"""EXAdam: half of Adam's steps at one learning rate, and what is left of it when both are tuned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, between, claim, recorded
from fallline.claims._digits import digits
from fallline.claims._networks import Weights, at_rates, trained_networks
from fallline.claims._tuning import Factory
from fallline.optim import Adam, EXAdam

PAPER = Paper(
    slug="exadam",
    title="EXAdam: The Power of Adaptive Cross-Moments",
    arxiv="2412.20302",
    year=2024,
    room="optim",
    methods=("optim.EXAdam",),
    headline="a convolutional network on CIFAR-10 converges 48.07 % faster than with Adam, with 4.6, 4.13 and 2.39 points more "
    "accuracy in training, validation and testing",
)
GOAL, LIMIT = 0.25, 400


def steps_to_goal(problems: list[fl.Training], optimizer: Factory, rates: list[float], key: int) -> Tensor:
    """The first step whose loss on all training data is at most 0.25, ``(rates, seeds)``.

    The run ends once every seed has arrived at some rate: what has not arrived by then, or within 400 steps, is infinite.
    """
    found = torch.full((len(rates), len(problems)), math.inf, dtype=torch.float64)

    def watch(step: int, weights: Weights) -> bool:
        for i, row in enumerate(weights):
            for s, (problem, x) in enumerate(zip(problems, row, strict=True)):
                if found[i, s].isinf() and float(problem.value(x)) <= GOAL:
                    found[i, s] = step
        return bool(found.isfinite().any(0).all())

    trained_networks(problems, optimizer, at_rates(rates), LIMIT, key, watch=watch)
    return found


@claim("at one learning rate EXAdam reaches a training loss in at most 0.52 of Adam's steps, and in about as many when both are tuned")
def equal_and_tuned(scale: Scale, seed: int) -> Evidence:
    problems = digits(seed, 3 if scale is Scale.QUICK else 10)
    equal = {optimizer: steps_to_goal(problems, optimizer, [1e-3], seed)[0] for optimizer in (EXAdam, Adam)}
    grids = {EXAdam: [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2], Adam: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}
    tuned = {optimizer: steps_to_goal(problems, optimizer, rates, seed).min(0) for optimizer, rates in grids.items()}
    best = {optimizer: torch.tensor([grids[optimizer][i] for i in found.indices], dtype=torch.float64)
            for optimizer, found in tuned.items()}
    return Evidence([
        at_most("steps at lr 0.001, EXAdam / Adam", (equal[EXAdam] / equal[Adam]).tolist(), 0.52),
        between("steps at the best of six rates, EXAdam / Adam", (tuned[EXAdam].values / tuned[Adam].values).tolist(), 0.6, 1.15),
        at_most("best rate, EXAdam / Adam", (best[EXAdam] / best[Adam]).tolist(), 1 / 3 + 1e-9),
        *(recorded(f"steps at lr 0.001, {optimizer.__name__}", found.tolist()) for optimizer, found in equal.items()),
        *(recorded(f"steps at the best rate, {optimizer.__name__}", found.values.tolist()) for optimizer, found in tuned.items()),
        *(recorded(f"best rate, {optimizer.__name__}", rates.tolist()) for optimizer, rates in best.items()),
    ], notes=["Steps to a loss of 0.25 on all training data of the digits, of 400 at most. The step's logarithm and its doubled "
              "numerator make EXAdam's learning rate worth several of Adam's, which the comparison at one rate does not show.",
              "The full scale is ten seeds of this network, not a convolutional one on images of CIFAR's size."])
