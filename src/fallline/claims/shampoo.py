"""Shampoo: iterations that barely depend on the condition number, in any basis of rows and columns."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import fewest_steps, observed, steps_until
from fallline.core.keys import Key
from fallline.core.tree import Tree
from fallline.optim import SGD, Adagrad, Adam, Shampoo
from fallline.problems import digits_cnn, tiny_lm

PAPER = Paper(
    slug="shampoo",
    title="Shampoo: Preconditioned Stochastic Tensor Optimization",
    arxiv="1802.09568",
    year=2018,
    room="optim",
    methods=("optim.Shampoo",),
    headline="O(√T) regret in the convex case; on networks for CIFAR-10 and CIFAR-100 and a Transformer on LM1B faster per step than "
    "SGD, AdaGrad and Adam at a time per step close to theirs",
)
# Five each; gradient descent's are fractions of 1/L, the others' steps are of the size of the weights. The likeliest come first: the
# order changes no count, but a rate that has lost already is not run to its end.
RATES: dict[Any, tuple[float, ...]] = {Shampoo: (1.0, 3.0, 0.3, 10.0, 0.1), Adagrad: (1.0, 3.0, 0.3, 10.0, 0.1),
                                       SGD: (1.9, 1.5, 1.0, 0.5, 0.25)}
LIMIT = 5_000


def quadratic(condition: float, n: int, seed: int, rotated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and the start W₀, the Hessian A² ⊗ B² of that condition number: A and B diagonal, or all turned, so that f(W₀) stays."""
    generator = Key(seed).generator()
    P, Q = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0] for _ in range(2))
    start = torch.randn(n, n, dtype=torch.float64, generator=generator)
    A = torch.diag(torch.logspace(0, -math.log10(condition) / 4, n, dtype=torch.float64))
    return (P @ A @ P.T, Q @ A @ Q.T, P @ start @ Q.T) if rotated else (A, A, start)


def iterations(optimizer: Any, condition: float, n: int, seed: int, rotated: bool = True) -> float:
    """Steps until f = ½‖A W B‖² is a thousandth, at the best of five rates."""
    A, B, start = quadratic(condition, n, seed, rotated)

    def value(W: Tensor) -> Tensor:
        return (A @ W @ B).square().sum() / 2

    goal = 1e-3 * float(value(start))
    problem = fl.Smooth(value, start, gradient=lambda W: A @ A @ W @ B @ B)
    return fewest_steps(lambda W: float(value(W)) <= goal, problem, optimizer, RATES[optimizer], LIMIT)


def counts(optimizer: Any, condition: float, n: int, seed: int, rotated: bool = True) -> list[float]:
    """`iterations` for three seeds; for the methods compared with, a count that is over the limit enters as the limit."""
    found = [iterations(optimizer, condition, n, s, rotated) for s in range(seed, seed + 3)]
    return found if optimizer is Shampoo else [min(count, LIMIT) for count in found]


@claim("from condition 10 to 1e5 Shampoo's iterations grow at most threefold, AdaGrad's at least 8-fold, gradient descent's 30-fold")
def conditioning(scale: Scale, seed: int) -> Evidence:
    n = 16 if scale is Scale.QUICK else 128
    found = {optimizer.__name__: {condition: counts(optimizer, condition, n, seed) for condition in (1e1, 1e3, 1e5)}
             for optimizer in RATES}
    growth = {name: [late / early for late, early in zip(by[1e5], by[1e1], strict=True)] for name, by in found.items()}
    return Evidence([
        at_most("growth of the iterations, Shampoo", growth["Shampoo"], 3.0),
        at_least("growth of the iterations, AdaGrad", growth["Adagrad"], 8.0),
        at_least("growth of the iterations, gradient descent", growth["SGD"], 30.0),
        *(recorded(f"iterations at condition {condition:g}, {name}", by) for name, of in found.items() for condition, by in of.items()),
        *(networks(seed) if scale is Scale.FULL else ()),
    ], notes=["Every method at the best of five learning rates. The full scale has matrices of 128 for 16, and the two networks."])


@claim("turning the problem's rows and columns changes Shampoo's iterations at most by half, AdaGrad's at least 20-fold")
def rotation(scale: Scale, seed: int) -> Evidence:
    n = 16 if scale is Scale.QUICK else 128
    changes = {}
    for optimizer in (Shampoo, Adagrad):
        pairs = zip(counts(optimizer, 1e5, n, seed, rotated=True), counts(optimizer, 1e5, n, seed, rotated=False), strict=True)
        changes[optimizer.__name__] = [max(a / b, b / a) for a, b in pairs]
    return Evidence([
        at_most("change of the iterations, Shampoo", changes["Shampoo"], 1.5),
        at_least("change of the iterations, AdaGrad", changes["Adagrad"], 20.0),
    ], notes=["Condition 1e5; the start is turned with the rows and columns, so that both runs begin at the same value."])


def _as_good(problem: fl.Training, goal: float, x: Tree) -> bool:
    return problem.observe(x)["loss"] <= goal


def networks(seed: int) -> list[Figure]:
    """Steps to Adam's final validation loss over Adam's own steps, for a convolutional network and a small language model."""
    figures = []
    problems: tuple[fl.Training, ...] = (digits_cnn(seed), tiny_lm(seed))
    for problem in problems:
        steps = int(problem.budget.limits["steps"])
        goal = min(observed(problem, fl.Train(Adam, lr=lr), steps, seed) for lr in (1e-3, 3e-3, 1e-2))
        reached = functools.partial(_as_good, problem, goal)
        taken = min(steps_until(reached, problem, fl.Train(Shampoo, lr=lr), 2 * steps, seed, every=10) for lr in (0.03, 0.1, 0.3))
        figures.append(recorded(f"steps to Adam's final loss / Adam's steps, {problem.name}", taken / steps))
    return figures
