"""AdaFisher: on a par with Adam at half the state; how far its rate and its interval may be off; how diagonal the factors are."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import state_bytes, trained
from fallline.core.taps import Taps, input_rows, output_rows
from fallline.core.tree import Tree
from fallline.optim import AdaFisher, Adam
from fallline.problems import digits_cnn, digits_mlp

PAPER = Paper(
    slug="adafisher",
    title="AdaFisher: Adaptive Second Order Optimization via Fisher Information",
    arxiv="2405.16397",
    year=2025,
    room="optim",
    methods=("optim.AdaFisher", "optim.AdaFisherW"),
    headline="better accuracy and faster convergence than Adam, K-FAC, AdaHessian and Shampoo on CIFAR, Tiny-ImageNet, ImageNet and "
    "WikiText-2 at roughly Adam's time; stable across batch sizes and learning rates",
)
RATES, EVERY, SEEDS, EPOCHS = (1e-4, 1e-3, 1e-2), (1, 10, 100), 5, 10


@functools.cache
def problem(seed: int, convolutional: bool = False) -> fl.Training:
    """The digits, and a 64-128-128-10 network or one of convolutions."""
    return digits_cnn(seed) if convolutional else digits_mlp(seed, widths=(128, 128))


@functools.cache
def solution(seed: int, optimizer: Any, lr: float, convolutional: bool = False, **hyper: Any) -> Tree | None:
    """The weights after ten epochs; None after a divergence."""
    on = problem(seed, convolutional)
    steps = round(EPOCHS * len(on.data[0]) / on.batch_size)
    return trained(on, fl.Train(optimizer, lr=lr, **hyper), steps, seed)


def accuracy(seed: int, optimizer: Any, lr: float, convolutional: bool = False, **hyper: Any) -> float:
    """Percent of the test digits; none after a divergence."""
    x = solution(seed, optimizer, lr, convolutional, **hyper)
    found = math.nan if x is None else 100 * problem(seed, convolutional).observe(x)["accuracy"]
    return found if math.isfinite(found) else 0.0


def intervals(seed: int) -> list[Figure]:
    """Accuracy with moments at every step, every tenth and every hundredth."""
    found = {(lr, every): [accuracy(s, AdaFisher, lr, every=every) for s in range(seed, seed + SEEDS)]
             for lr in RATES for every in EVERY}
    return [recorded(f"accuracy, rate {lr:g}, every {every}", accuracies) for (lr, every), accuracies in found.items()]


def diagonal_shares(on: fl.Training, x: Tree) -> tuple[float, float]:
    """Σ_i A_ii² / ‖A‖_F² of mean x xᵀ and of mean s sᵀ on all training data, averaged over layers."""
    shares: list[tuple[float, float]] = []

    def receive(module: Any, inputs: Tensor, gradients: Tensor) -> None:
        rows = input_rows(module, inputs)
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        shares.append((_share(rows), _share(output_rows(module, gradients))))

    with Taps(on.model, (nn.Linear,), receive):
        on.gradient(x)
    inputs, outputs = zip(*shares, strict=True)
    return sum(inputs) / len(inputs), sum(outputs) / len(outputs)


def _share(rows: Tensor) -> float:
    factor = rows.mT.double() @ rows.double()
    return float(factor.diagonal().square().sum() / factor.square().sum())


def premise(seed: int) -> list[Figure]:
    """The diagonals' shares before and after ten epochs at the rate 1e-3."""
    points = {"at the start": [(s, problem(s).x0) for s in range(seed, seed + SEEDS)],
              "after ten epochs": [(s, solution(s, AdaFisher, 1e-3)) for s in range(seed, seed + SEEDS)]}
    shares = {when: [diagonal_shares(problem(s), x) for s, x in found if x is not None] for when, found in points.items()}
    return [recorded(f"share of the diagonal, {factor}, {when}", [row[i] for row in rows])
            for i, factor in enumerate(("inputs", "output gradients")) for when, rows in shares.items() if rows]


@claim("after ten epochs on the digits AdaFisher's test accuracy is at most 0.3 points below Adam's, with at most 0.55 of its state")
def accuracy_and_state(scale: Scale, seed: int) -> Evidence:
    seeds, figures = range(seed, seed + SEEDS), []
    for kind, convolutional in (("", False), (", convolutions", True))[:1 if scale is Scale.QUICK else 2]:
        found = {optimizer: [[accuracy(s, optimizer, lr, convolutional) for lr in RATES] for s in seeds]
                 for optimizer in (AdaFisher, Adam)}
        best = {optimizer: [max(row) for row in rows] for optimizer, rows in found.items()}
        ahead = [a - b for a, b in zip(best[AdaFisher], best[Adam], strict=True)]
        figures.append(at_least(f"points of accuracy ahead of Adam{kind}", ahead, -0.3))
        for optimizer, rows in found.items():
            name = optimizer.__name__
            figures += [recorded(f"accuracy, {name}{kind}", best[optimizer]),
                        recorded(f"range of the accuracy over rates, {name}{kind}", [max(row) - min(row) for row in rows])]
    sizes = [state_bytes(problem(seed), fl.Train(optimizer)) for optimizer in (AdaFisher, Adam)]
    figures.append(at_most("state bytes, AdaFisher / Adam", sizes[0] / sizes[1], 0.55))
    figures += premise(seed) + (intervals(seed) if scale is Scale.FULL else [])
    return Evidence(figures, notes=[
        "A 64-128-128-10 network, batches of 64; each side at the best of the rates 1e-4, 1e-3 and 1e-2 for every seed, AdaFisher with "
        "its moments every 100 steps. The method's premise is that the Kronecker factors grow more diagonal: the diagonals' share of "
        "the squares, mean over the layers, is recorded. AdaFisherW is the same without weight decay. Full: also moments every 1 and "
        "10 steps, and the convolutional network; not ResNet-18 on CIFAR-10."])
