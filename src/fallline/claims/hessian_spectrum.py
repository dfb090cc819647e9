"""The Hessian's spectrum: what more parameters and harder data do to it, its Gauss-Newton part, and one basin for two batch sizes."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.core import tree
from fallline.landscape import Spectrum, gauss_newton_spectrum, hessian_spectrum, same_basin, spectrum_summary

PAPER = Paper(
    slug="hessian-spectrum",
    title="Empirical Analysis of the Hessian of Over-Parametrized Neural Networks",
    arxiv="1706.04454",
    year=2018,
    room="landscape",
    methods=("landscape.hessian_spectrum", "landscape.spectrum_summary", "landscape.same_basin"),
    headline="a bulk of eigenvalues at zero and a few outliers; more parameters only lengthen the bulk, the data move only the "
    "outliers; solutions of small and large batches are joined by a flat path in one basin",
)
SAMPLES, FEATURES, LR, STEPS = 400, 20, 0.3, 20
CLASSES = (2, 3, 5)


def network(classes: int, width: int, seed: int) -> nn.Module:
    """One hidden layer of tanh in float64, its weights by the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fl.Key(seed).fold("weights").integer())
        return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, classes)).double()


def clusters(classes: int, width: int, seed: int, weights: int | None = None, squared: bool = False) -> fl.Training:
    """400 points in 20 dimensions around one centre of norm 3 a class, standard deviation 0.3, and a network to tell them apart."""
    generator = fl.Key(seed).fold("clusters", classes).generator()
    centres = torch.randn(classes, FEATURES, dtype=torch.float64, generator=generator)
    labels = torch.arange(SAMPLES) % classes
    points = (3 * centres / centres.norm(dim=1, keepdim=True))[labels]
    points = points + 0.3 * torch.randn(SAMPLES, FEATURES, dtype=torch.float64, generator=generator)
    model = network(classes, width, seed if weights is None else weights)
    if squared:
        return fl.Training(model, mse_loss, (points, one_hot(labels, classes).double()), batch_size=10)
    return fl.Training(model, cross_entropy, (points, labels), batch_size=10)


def descend(problem: fl.Training, x: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    """Gradient descent on all data."""
    for _ in range(steps):
        x = tree.axpy(-LR, problem.gradient(x), x)
    return x


@functools.cache
def trained(classes: int, width: int, seed: int) -> tuple[fl.Training, dict[str, Tensor], Spectrum]:
    """A network after 20 steps, and all eigenvalues of its Hessian."""
    problem = clusters(classes, width, seed)
    x = descend(problem, problem.x0, STEPS)
    return problem, x, hessian_spectrum(problem, x)


@claim("a wider network lengthens the bulk and leaves the largest eigenvalue, more clusters raise it")
def bulk_and_outliers(scale: Scale, seed: int) -> Evidence:
    widths = (10, 30) if scale is Scale.QUICK else (10, 100)
    seeds = range(seed, seed + 3)
    bulk = {(k, w): [spectrum_summary(trained(k, w, s)[2]).bulk_fraction for s in seeds] for k in CLASSES for w in widths}
    top = {(k, w): [float(trained(k, w, s)[2].eigenvalues[0]) for s in seeds] for k in CLASSES for w in widths}
    narrow, wide = widths
    figures = []
    for k in CLASSES:
        ratios = [b / a for a, b in zip(top[k, narrow], top[k, wide], strict=True)]
        figures += [
            at_least(f"{k} classes: bulk fraction at width {wide} over width {narrow}",
                     [b / a for a, b in zip(bulk[k, narrow], bulk[k, wide], strict=True)], 1.0),
            at_most(f"{k} classes: factor between largest eigenvalues", [max(r, 1 / r) for r in ratios], 1.6),
            *(recorded(f"{k} classes, width {w}: bulk fraction", bulk[k, w]) for w in widths),
        ]
    figures += [at_least(f"width {w}: largest eigenvalue of 5 classes over 2",
                         [b / a for a, b in zip(top[2, w], top[5, w], strict=True)], 1.5) for w in widths]
    curves = {f"{k} classes, width {w}": (range(1, 41), trained(k, w, seed)[2].eigenvalues[:40].tolist())
              for k in CLASSES for w in widths}
    return Evidence(figures, curves=curves, axes=("rank of the eigenvalue", "eigenvalue"),
                    notes=["Full: width 100 instead of 30; the density of a convolutional network's spectrum is not taken."])


def agreement(classes: int, seed: int, levels: tuple[float, ...]) -> list[float]:
    """How far Gauss-Newton's ten largest eigenvalues are from the Hessian's, when the squared error first is below each level."""
    problem = clusters(classes, 10, seed, squared=True)
    x, found = problem.x0, []
    for level in levels:
        while float(problem.value(x)) >= level:
            x = descend(problem, x, 5)
        difference = spectrum_summary(hessian_spectrum(problem, x), gauss_newton_spectrum(problem, x)).gauss_newton_difference
        assert difference is not None
        found.append(difference)
    return found


@claim("at a squared error below 0.01 the ten largest eigenvalues are those of Gauss-Newton within 5 %, the nearer the lower the error")
def gauss_newton(scale: Scale, seed: int) -> Evidence:
    levels = (0.03, 0.01, 0.003) if scale is Scale.QUICK else (0.03, 0.01, 0.003, 0.001)
    seeds = range(seed, seed + 3)
    found = [agreement(5, s, levels) for s in seeds]
    fewer = {k: [agreement(k, s, (0.01,))[0] for s in seeds] for k in (2, 3)}
    return Evidence([
        at_most("5 classes: relative difference at error 0.01", [d[1] for d in found], 0.05),
        *(at_most(f"5 classes: difference at {b} over difference at {a}", [d[i + 1] / d[i] for d in found], 1.0)
          for i, (a, b) in enumerate(itertools.pairwise(levels))),
        *(at_most(f"{k} classes: relative difference at error 0.01", differences, 0.05) for k, differences in fewer.items()),
    ], curves={f"difference against error, seed {s}": (levels, d) for s, d in zip(seeds, found, strict=True)},
        axes=("squared error", "relative difference"),
        notes=["The difference is the largest of the ten, each relative to the Hessian's. With 2 and 3 classes fewer than ten "
               "eigenvalues stand out (classes squared of them): the ten reach into the bulk, where the two need not agree. "
               "Full: down to an error of 0.001."])


@claim("a small batch that goes on from a large one stays in its basin, and two initialisations end in two basins")
def one_basin(scale: Scale, seed: int) -> Evidence:
    small_steps = 400 if scale is Scale.QUICK else 4_000
    same, apart, late, losses = [], [], [], []
    for s in range(seed, seed + 3):
        problem, other = clusters(5, 10, s), clusters(5, 10, s, weights=s + 1_000)
        large, second = descend(problem, problem.x0, STEPS), descend(other, other.x0, STEPS)
        apart.append(same_basin(problem, large, second).barrier)
        plateau, far = descend(problem, large, 480), descend(other, second, 480)
        late.append(same_basin(problem, plateau, far).barrier)
        for start in (large, plateau):
            x = start
            for t in range(small_steps):
                x = tree.axpy(-LR, problem.draw(fl.Key(s).fold(t)).gradient(x), x)
            same.append(same_basin(problem, start, x).barrier)
        losses.append(float(problem.value(plateau)))
    return Evidence([
        at_most("barrier, large batch then small, from 20 steps", same[::2], 0.02),
        at_most("barrier, large batch then small, from 500 steps", same[1::2], 0.02),
        at_least("barrier, two initialisations, at 20 steps", apart, 0.2),
        at_least("barrier, two initialisations, at 500 steps", late, 0.2),
        recorded("loss at 500 steps", losses),
    ], notes=["Large batch: all data. Small: 10 samples. The barrier between two initialisations is a matter of the cross-entropy's "
              "scale, and falls with the loss as training goes on. Full: ten times the steps of small batches."])


@claim("Lanczos finds the five largest eigenvalues of the dense Hessian within 1e-4")
def lanczos(scale: Scale, seed: int) -> Evidence:
    width = 30 if scale is Scale.QUICK else 100
    differences, products = [], []
    for s in range(seed, seed + 3):
        problem, x, dense = trained(5, width, s)
        before = problem.counts["hvps"]
        found = hessian_spectrum(problem, x, k=5, key=s)
        products.append(problem.counts["hvps"] - before)
        exact = dense.eigenvalues[:5]
        differences.append(float(((found.eigenvalues[:5] - exact).abs() / exact).max()))
    return Evidence([at_most("largest relative difference", differences, 1e-4), recorded("products, both ends", products)],
                    notes=["Full: width 100 instead of 30."])
