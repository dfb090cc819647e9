"""diffGrad: a friction that halves the step where the gradient changes little, against Adam and against Adam at 0.6 of the rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.claims._digits import NOTE, digits, digits_steps
from fallline.claims._networks import at_rates, trained_networks, training_losses
from fallline.claims._tuning import Factory, spaced
from fallline.optim import Adam, DiffGrad

PAPER = Paper(
    slug="diffgrad",
    title="diffGrad: An Optimization Method for Convolutional Neural Networks",
    arxiv="1909.11015",
    year=2020,
    room="optim",
    methods=("optim.DiffGrad",),
    headline="the best of momentum, Adagrad, Adadelta, RMSprop, AMSGrad and Adam on CIFAR-10 and CIFAR-100 with a ResNet-50, across "
    "batch sizes and activations; stops in the global minimum of three one-dimensional functions where Adam overshoots",
)
START = -1.0


def first(x: Tensor) -> Tensor:
    """The paper's F1: minima 0 at −0.3 and 0.05 at 0.2."""
    return torch.where(x <= 0, (x + 0.3) ** 2, (x - 0.2) ** 2 + 0.05)


def second(x: Tensor) -> Tensor:
    """The paper's F2: a steep slope down to a wave, whose least value is near −0.643."""
    return torch.where(x <= -0.9, -40 * x - 35.15, x**3 + x * torch.sin(8 * x) + 0.85)


FUNCTIONS = {"F1": first, "F2": second}


def ends(optimizer: Factory, settings: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Where 300 steps from −1 lead with each setting, function by function."""
    points = [torch.full((len(FUNCTIONS),), START, dtype=torch.float64) for _ in settings]

    def value(x: list[Tensor]) -> Tensor:
        return torch.stack([function(torch.stack(x)[:, i]).sum() for i, function in enumerate(FUNCTIONS.values())]).sum()

    def make(tensors: list[Tensor]) -> torch.optim.Optimizer:
        return optimizer([{"params": [tensor], **setting} for tensor, setting in zip(tensors, settings, strict=True)])

    found = torch.stack(fl.solve(fl.Smooth(value, points), fl.Train(make), fl.Budget(steps=300), every=300).x)
    return {name: found[:, i] for i, name in enumerate(FUNCTIONS)}


@claim("from −1 at lr 0.1 Adam overshoots the global minimum of two one-dimensional functions, and diffGrad ends in it")
def overshooting(scale: Scale, seed: int) -> Evidence:
    expected = {"Adam": {"F1": (0.2, 0.05), "F2": (0.0, 0.85)}, "DiffGrad": {"F1": (-0.3, 0.0), "F2": (-0.643, 0.0001)}}
    figures = []
    for optimizer in (Adam, DiffGrad):
        for name, x in ends(optimizer, [{"lr": 0.1, "betas": (0.95, 0.999)}]).items():
            point, value = expected[optimizer.__name__][name]
            figures += [exactly(f"where {optimizer.__name__} ends, {name}", float(x), point, tolerance=0.01),
                        exactly(f"the value there, {optimizer.__name__}, {name}", float(FUNCTIONS[name](x)), value, tolerance=0.001)]
    return Evidence(figures, notes=["300 steps with β₁ = 0.95. Two of the paper's three functions. Both scales are the same."])


@claim("over 12 learning rates and two β₁ diffGrad ends in the global minimum at least as often as Adam")
def successes(scale: Scale, seed: int) -> Evidence:
    rates = torch.logspace(-2, torch.log10(torch.tensor(0.3)).item(), 12).tolist()
    sides = {"diffGrad": (DiffGrad, 1.0), "Adam": (Adam, 1.0), "Adam at 0.6 of the learning rate": (Adam, 0.6)}
    counts = {}
    for name, (optimizer, factor) in sides.items():
        found = ends(optimizer, [{"lr": factor * lr, "betas": (beta, 0.999)} for lr in rates for beta in (0.9, 0.95)])
        counts[name] = {f: int((FUNCTIONS[f](x) <= 0.01).sum()) for f, x in found.items()}
    total = {name: sum(count.values()) for name, count in counts.items()}
    return Evidence([
        at_least("successes, diffGrad − Adam", total["diffGrad"] - total["Adam"], 0.0),
        recorded("successes, diffGrad − Adam at 0.6 of the learning rate",
                 total["diffGrad"] - total["Adam at 0.6 of the learning rate"]),
        *(recorded(f"successes of 24, {name}, {f}", count) for name, each in counts.items() for f, count in each.items()),
    ], notes=["A success is a value of at most 0.01 after 300 steps. Adam at 0.6 of every learning rate is the control: whatever it "
              "gains is due to a smaller step alone. Both scales are the same."])


@claim("on the digits diffGrad's training loss is at most 1.1 times Adam's")
def classification(scale: Scale, seed: int) -> Evidence:
    problems, settings = digits(seed), at_rates(spaced(3e-3, 10**0.5, 5))
    losses = {optimizer: training_losses(problems, trained_networks(problems, optimizer, settings, digits_steps(scale), seed)).amin(0)
              for optimizer in (DiffGrad, Adam)}
    return Evidence([
        at_most("training loss, diffGrad / Adam", (losses[DiffGrad] / losses[Adam]).tolist(), 1.1),
        *(recorded(f"training loss, {optimizer.__name__}", found.tolist()) for optimizer, found in losses.items()),
    ], notes=[f"{NOTE}, not a ResNet on images of CIFAR's size."])
