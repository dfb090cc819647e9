"""The Hessian of over-parametrised networks: its bulk, what moves its outliers, the Gauss-Newton part, and shared basins."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.core.keys import Key
from fallline.core.operators import LinearOperator, top_eigenvalues
from fallline.core.tree import Tree
from fallline.landscape import gauss_newton_spectrum, hessian_spectrum, same_basin, spectrum_summary

PAPER = Paper(
    slug="hessian-spectrum",
    title="Empirical Analysis of the Hessian of Over-Parametrized Neural Networks",
    arxiv="1706.04454",
    year=2017,
    room="landscape",
    methods=("landscape.hessian_spectrum", "landscape.spectrum_summary", "landscape.same_basin"),
    headline="a bulk at zero and few outliers; more parameters only lengthen the bulk, the data move only the outliers; small- and "
    "large-batch solutions are joined by a flat path",
)


def clusters(k: int, seed: int, n: int = 400, d: int = 20) -> tuple[Tensor, Tensor]:
    """Gaussian clusters, one a class: centres of norm 3, standard deviation 0.3."""
    generator = Key(seed).fold("clusters", k).generator()
    centres = torch.randn(k, d, dtype=torch.float64, generator=generator)
    centres = 3 * centres / centres.norm(dim=1, keepdim=True)
    labels = torch.arange(n) % k
    return centres[labels] + 0.3 * torch.randn(n, d, dtype=torch.float64, generator=generator), labels


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the mean squared error against one-hot targets."""
    return mse_loss(outputs, one_hot(targets, outputs.shape[-1]).to(outputs.dtype)) / 2


def problem(k: int, width: int, seed: int, loss: Any = cross_entropy, batch_size: int | None = None) -> fl.Training:
    """A tanh network on the clusters."""
    data = clusters(k, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("weights", width).integer())
        model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, k)).double()
    return fl.Training(model, loss, data, batch_size=batch_size)


def descend(task: fl.Problem, x: Tree, steps: int, lr: float, key: int = 0, batch: int | None = None) -> Tree:
    """Gradient descent from ``x`` on all data, or on batches."""
    for t in range(steps):
        drawn = task if batch is None else task.draw(Key(key).fold(t), size=batch)
        gradient = drawn.gradient(x)
        x = {name: value - lr * gradient[name] for name, value in x.items()}
    return x


@claim("more width only lengthens the bulk: its share rises and the largest eigenvalue stays; more clusters raise the largest")
def bulk_and_outliers(scale: Scale, seed: int) -> Evidence:
    narrow, wide = (10, 30) if scale is Scale.QUICK else (30, 300)
    rises: dict[int, list[float]] = {k: [] for k in (2, 3, 5)}
    factors: dict[int, list[float]] = {k: [] for k in rises}
    raised = []
    for s in range(seed, seed + 3):
        largest = {}
        for k in rises:
            summaries = []
            for width in (narrow, wide):
                task = problem(k, width, s)
                summaries.append(spectrum_summary(hessian_spectrum(task, descend(task, task.x0, 20, 0.3))))
            rises[k].append(summaries[1].bulk_fraction - summaries[0].bulk_fraction)
            ratio = summaries[1].largest / summaries[0].largest
            factors[k].append(max(ratio, 1 / ratio))
            largest[k] = summaries[0].largest
        raised.append(largest[5] / largest[2])
    return Evidence([
        *(at_least(f"rise of the bulk's share, {k} clusters", values, 1e-12) for k, values in rises.items()),
        *(at_most(f"factor between the largest eigenvalues, {k} clusters", values, 1.6) for k, values in factors.items()),
        at_least("largest eigenvalue, 5 clusters / 2 clusters", raised, 1.5),
    ], notes=[f"Widths {narrow} and {wide}; 20 steps of 0.3 on cross-entropy."])


@claim("with squared error and a loss below 0.01 the ten largest eigenvalues of Hessian and Gauss-Newton differ by at most 5 %")
def gauss_newton(scale: Scale, seed: int) -> Evidence:
    early, late, losses = [], [], []
    for s in range(seed, seed + 3):
        task = problem(3, 10, s, squared)
        x = descend(task, task.x0, 20, 0.3)
        early.append(_difference(task, x))
        for _ in range(50):
            x = descend(task, x, 50, 0.5)
            if float(task.value(x)) < 0.005:
                break
        losses.append(float(task.value(x)))
        late.append(_difference(task, x))
    return Evidence([
        at_most("training loss", losses, 0.01),
        at_most("largest relative difference of the top ten", late, 0.05),
        at_most("the same, over its value after 20 steps", [b / a for a, b in zip(early, late, strict=True)], 1.0),
    ])


def _difference(task: fl.Problem, x: Tree) -> float:
    found = spectrum_summary(hessian_spectrum(task, x), gauss_newton_spectrum(task, x), k=10).gauss_newton_difference
    assert found is not None
    return found


@claim("a large-batch solution and its small-batch continuation share a basin, and two independent starts do not")
def basins(scale: Scale, seed: int) -> Evidence:
    same, apart = [], []
    for s in range(seed, seed + 3):
        task = problem(5, 10, s)
        large = descend(task, task.x0, 300, 0.3)
        small = descend(task, large, 300, 0.3, key=s, batch=20)
        same.append(same_basin(task, large, small).barrier)
        other = problem(5, 10, s + 100)
        apart.append(same_basin(task, large, descend(task, other.x0, 300, 0.3)).barrier)
    return Evidence([
        at_most("barrier, large batch then small", same, 0.02),
        at_least("barrier, independent starts", apart, 0.2),
    ])


@claim("Lanczos finds the five largest eigenvalues of the dense Hessian to 1e-4")
def lanczos_is_dense(scale: Scale, seed: int) -> Evidence:
    errors = []
    for s in range(seed, seed + 3):
        task = problem(3, 30, s)
        x = descend(task, task.x0, 20, 0.3)
        dense = hessian_spectrum(task, x).eigenvalues[:5]
        operator = LinearOperator.from_function(functools.partial(task.hvp, x), x)
        found = top_eigenvalues(operator, 5, generator=Key(s).generator()).values
        errors.append(float(((found - dense) / dense).abs().max()))
    return Evidence([at_most("largest relative error of the top five", errors, 1e-4), recorded("variables", 30 * 21 + 3 * 31)])
