"""OptEx: a rule's progress in a fraction of its sequential iterations, from gradients predicted along the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import steps_until, trained
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.optim import Adam, OptEx
from fallline.problems import digits_cnn, digits_mlp

PAPER = Paper(
    slug="optex",
    title="OptEx: Expediting First-Order Optimization with Approximately Parallelized Iterations",
    arxiv="2402.11427",
    year=2024,
    room="optim",
    methods=("optim.OptEx",),
    headline="an effective speed-up of Ω(√N) over stochastic gradient descent in sequential iterations with N parallel gradients; "
    "large gains on synthetic functions, Q-learning, and networks on MNIST, CIFAR and text",
)
STEPS = 100
BOUNDS = {4: 50, 8: 36}


def rosenbrock(x: Tensor) -> Tensor:
    """The mean of 100 (x_{i+1} − x_i²)² + (1 − x_i)²."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).mean()


def ackley(x: Tensor) -> Tensor:
    """Ackley's function: a funnel with a cosine ripple in every coordinate."""
    return -20 * torch.exp(-0.2 * x.square().mean().sqrt()) - torch.exp(torch.cos(2 * math.pi * x).mean()) + 20 + math.e


def sphere(x: Tensor) -> Tensor:
    """The mean square."""
    return x.square().mean()


def starts(scale: Scale, seed: int) -> list[Tensor]:
    """Standard normal points: three of 1,000 coordinates, or ten of 100,000 at the full scale."""
    count, d = (3, 1_000) if scale is Scale.QUICK else (10, 100_000)
    return [torch.randn(d, dtype=torch.float64, generator=Key(s).fold("start").generator()) for s in range(seed, seed + count)]


def iterations(problem: Problem, value: Callable[[Tree], float], methods: Sequence[fl.Method], lr: float, key: int = 0) -> list[float]:
    """Sequential iterations of each method, 100 at most, until the value that Adam has after 100."""
    level = value(trained(problem, fl.Train(Adam, lr=lr), STEPS, key))
    return [steps_until(lambda x: value(x) <= level, problem, method, STEPS, key) for method in methods]


def on_starts(function: Callable[[Tensor], Tensor], lr: float, scale: Scale, seed: int, make: Any = OptEx) -> dict[int, list[float]]:
    """`iterations` from every start, by n."""
    found = [iterations(fl.Smooth(function, x), lambda x: float(function(x)), [make(n=n, lr=lr) for n in BOUNDS], lr)
             for x in starts(scale, seed)]
    return dict(zip(BOUNDS, map(list, zip(*found, strict=True)), strict=True))


def gains(counts: Iterable[float]) -> list[float]:
    """Adam's iterations over those counted; 0 where 100 were not enough."""
    return [STEPS / count for count in counts]


SIZE = ("Sequential iterations until the value that Adam alone reaches in 100, from three normal starts in 1,000 coordinates, both "
        "with the same learning rate. The full scale is ten starts in 100,000 coordinates and a convolutional network on "
        "scikit-learn's digits, not on MNIST on four GPUs.")


@claim("Adam's value after 100 steps is reached in at most 50 sequential iterations with 4 gradients at a time, and in 36 with 8")
def speed(scale: Scale, seed: int) -> Evidence:
    settings = (("Rosenbrock", rosenbrock, 0.1), ("Rosenbrock", rosenbrock, 0.01), ("Ackley", ackley, 0.01))
    judged, totals = [], []
    for name, function, lr in settings:
        for n, found in on_starts(function, lr, scale, seed).items():
            judged.append(at_most(f"iterations, {name}, lr {lr:g}, n = {n}", found, BOUNDS[n]))
            totals.append(recorded(f"gradients in all, {name}, lr {lr:g}, n = {n}", [1 + n * (count - 1) for count in found]))
    bowl = [recorded(f"iterations, sphere, lr 0.1, n = {n}", found) for n, found in on_starts(sphere, 0.1, scale, seed).items()]
    return Evidence([*judged, *totals, *bowl], notes=[
        SIZE, "The gradients in all, n an iteration after the first, stand against Adam's 100: what is saved is waiting."])


class RandomWalk(OptEx):
    """The control: predictions from true gradients along a random walk from the start, in steps as long as Adam's longest, lr √d."""

    def _remembered(self, problem: Problem, state: dict[str, Any], points: list[Tree], gradients: list[Tree]) -> dict[str, Tensor]:
        generator = state["key"].fold("walk", state["t"]).generator()
        normal = torch.randn(len(points), points[0].numel(), dtype=torch.float64, generator=generator)
        strides = self.hyperparameters["lr"] * math.sqrt(points[0].numel()) * normal / normal.norm(dim=1, keepdim=True)
        walk = [*((state["positions"][-1:] if len(state["positions"]) else points[0][None]) + strides.cumsum(0))]
        return super()._remembered(problem, state, walk, [problem.gradient(x) for x in walk])


class Unpredicted(OptEx):
    """Predictions of 0: the chain goes on by Adam's momentum alone."""

    def _remembered(self, problem: Problem, state: dict[str, Any], points: list[Tree], gradients: list[Tree]) -> dict[str, Tensor]:
        return super()._remembered(problem, state, points, [torch.zeros_like(g) for g in gradients])


@claim("the speed-up comes from the history of the path: one of a random walk gives none")
def control(scale: Scale, seed: int) -> Evidence:
    name = "Adam's 100 steps / iterations, Rosenbrock, lr {:g}, n = {}, {}"
    walks = {lr: on_starts(rosenbrock, lr, scale, seed, RandomWalk) for lr in (0.1, 0.01)}
    coasts = {lr: on_starts(rosenbrock, lr, scale, seed, Unpredicted) for lr in (0.1, 0.01)}
    return Evidence([
        *(at_most(name.format(lr, n, "history of a random walk"), gains(counts), 1.0)
          for lr, by_n in walks.items() for n, counts in by_n.items()),
        *(recorded(name.format(lr, n, "predictions of 0"), gains(counts)) for lr, by_n in coasts.items() for n, counts in by_n.items()),
    ], notes=[SIZE, "0 means that 100 iterations were not enough. At a learning rate of 0.01 a walk from the start stays where "
              "gradients resemble those of the path; and predictions of 0, by which momentum alone carries Adam on, save some too."])


def noisy(function: Callable[[Tensor], Tensor], start: Tensor) -> Problem:
    """Gradients with normal noise of 0.1 times their norm, a draw for every evaluation."""

    def sample(problem: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
        noise = torch.randn(start.shape, dtype=start.dtype, generator=key.generator()) / math.sqrt(start.numel())
        exact = fl.Smooth(function, start)

        def gradient(x: Tensor) -> Tensor:
            g = exact.gradient(x)
            return g + 0.1 * g.norm() * noise

        return fl.Smooth(function, start, gradient=gradient)

    return fl.Smooth(function, start, sampler=sample)


@claim("with gradient noise of a tenth of the gradient the speed-up in sequential iterations is at least √n / 2")
def noise(scale: Scale, seed: int) -> Evidence:
    figures = []
    for lr in (0.1, 0.01):
        methods = [OptEx(n=n, noise=0.01, lr=lr) for n in BOUNDS]
        found = [iterations(noisy(rosenbrock, x), lambda x: float(rosenbrock(x)), methods, lr, seed + i)
                 for i, x in enumerate(starts(scale, seed))]
        figures += [at_least(f"Adam's 100 steps / iterations, Rosenbrock, lr {lr:g}, n = {n}", gains(counts), math.sqrt(n) / 2)
                    for n, counts in zip(BOUNDS, zip(*found, strict=True), strict=True)]
    methods = [OptEx(n=n, noise=0.1, lr=1e-3) for n in BOUNDS]
    found = [network(scale, s, methods) for s in range(seed, seed + 2)]
    return Evidence([
        *figures,
        *(recorded(f"Adam's 100 steps / iterations, network on digits, lr 0.001, n = {n}", gains(counts))
          for n, counts in zip(BOUNDS, zip(*found, strict=True), strict=True)),
    ], notes=[SIZE, "OptEx is told the ratio of the variances, 0.01; for the network, where mini-batches of 64 differ by more, 0.1. "
              "The network's level is its validation loss, at two seeds."])


def network(scale: Scale, seed: int, methods: Sequence[fl.Method]) -> list[float]:
    """`iterations` on digits: a network 64-64-64-10, or a convolutional one at the full scale."""
    problem = digits_mlp(seed) if scale is Scale.QUICK else digits_cnn(seed)
    return iterations(problem, lambda x: problem.observe(x)["loss"], methods, 1e-3, seed)
