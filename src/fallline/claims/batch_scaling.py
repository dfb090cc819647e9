"""Batch sizes and learning rates: the batch Hessian's largest eigenvalue, SGD's largest rate, and the best rates on the digits."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.claims._digits import digits
from fallline.claims._networks import at_rates, trained_networks, training_losses
from fallline.claims._tuning import Factory, spaced
from fallline.core.keys import Key
from fallline.landscape.batch_scaling import BatchHessianReport, batch_hessian_report

PAPER = Paper(
    slug="batch-scaling",
    title="Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training",
    arxiv="2006.09092",
    year=2022,
    room="landscape",
    methods=("landscape.batch_hessian_report", "landscape.scale_lr", "landscape.LanczosLR"),
    headline="the largest learning rate grows linearly with the batch size for SGD and as its square root for adaptive methods, as "
    "batch Hessians' extreme eigenvalues are larger than the Hessian's; VGG and WideResNet on CIFAR-100 and ImageNet",
)
SAMPLES, TOP, BULK = 20_000, 10.0, 0.3
SMALL, LARGE = (8, 16, 32, 64), (128, 256, 512, 1024, 2048, 4096)
RATES = torch.logspace(-2, 0, 33, dtype=torch.float64)
SGD_SIZES = (1, 2, 4, 8, 32, 128)


@functools.cache
def regression(seed: int, parameters: int) -> tuple[fl.Problem, Tensor]:
    """½ mean ⟨a, w⟩² and its 20,000 Gaussian rows a of covariance diag(10, 0.3, …, 0.3)."""
    rows = torch.randn(SAMPLES, parameters, dtype=torch.float64, generator=Key(seed).fold("rows").generator())
    rows *= torch.tensor([TOP] + [BULK] * (parameters - 1), dtype=torch.float64).sqrt()
    start = torch.ones(parameters, dtype=torch.float64)
    return fl.FiniteSum(lambda w, a: (a @ w).square().mean() / 2, rows, start), rows


@functools.cache
def reports(seed: int, parameters: int) -> tuple[BatchHessianReport, BatchHessianReport]:
    """120 batches of each small size, whose λ₁ varies, and 5 of each large one."""
    problem, _ = regression(seed, parameters)
    return (batch_hessian_report(problem, None, SMALL, draws=120, key=seed),
            batch_hessian_report(problem, None, LARGE, draws=5, key=seed))


@claim("λ₁ of batch Hessians is within 12 % of the V formula for batches of 8 to 4,096; the homogeneous formula is too low")
def eigenvalues(scale: Scale, seed: int) -> Evidence:
    parameters = 300 if scale is Scale.QUICK else 1_000
    found = [reports(s, parameters) for s in range(seed, seed + 3)]
    ratios = {size: [r.means[i] / r.predicted(size) for r in column] for column in zip(*found, strict=True)
              for i, size in enumerate(column[0].sizes)}
    furthest = [max(abs(row[s] - 1) for row in ratios.values()) for s in range(3)]
    small = [r for r, _ in found]
    curves = {"measured": [mean for r in found[0] for mean in r.means], "V": [r.predicted(b) for r in found[0] for b in r.sizes],
              "homogeneous": [r.homogeneous(b) for r in found[0] for b in r.sizes]}
    return Evidence([
        at_most("relative distance of mean λ₁(B) from the V formula, largest over B", furthest, 0.12),
        at_least("mean λ₁(B) / homogeneous formula, B = 16", [r.means[1] / r.homogeneous(16) for r in small], 1.2),
        recorded("mean λ₁, B = 16", [r.means[1] for r in small]),
        recorded("V formula, B = 16", [r.predicted(16) for r in small]),
        recorded("homogeneous formula, B = 16", [r.homogeneous(16) for r in small]),
        recorded("B*", [r.critical_size for r in small]),
        *(recorded(f"mean λ₁ / V formula, B = {size}", row) for size, row in ratios.items()),
    ], curves={name: (SMALL + LARGE, curve) for name, curve in curves.items()}, axes=("batch size", "largest eigenvalue"),
        notes=[f"Least squares, {SAMPLES:,} rows in {parameters} dimensions, eigenvalues {TOP:g} and {parameters - 1} times {BULK:g}; "
               "means over 120 batches of up to 64 and 5 larger ones, with replacement. A first run had ten of each, whose mean at "
               "B = 8 and 16 has an error of up to 8 %; its distances were 0.14 to 0.19."])


def largest_stable(size: int, rows: Sequence[Tensor], steps: int = 300) -> Tensor:
    """The largest of the 33 learning rates at which the loss has not grown after so many SGD steps, for each set of rows."""
    scales = torch.tensor([TOP] + [BULK] * (rows[0].shape[1] - 1), dtype=torch.float64)
    w = torch.ones(len(RATES), len(rows), rows[0].shape[1], dtype=torch.float64)
    start = (scales * w[0, 0] ** 2).sum()
    generators = [Key(s).fold("batches", size).generator() for s in range(len(rows))]
    for _ in range(steps):
        batch = torch.stack([a[torch.randint(len(a), (size,), generator=g)] for a, g in zip(rows, generators, strict=True)])
        residuals = torch.einsum("sbp,rsp->rsb", batch, w)
        w = w - RATES[:, None, None] / size * torch.einsum("rsb,sbp->rsp", residuals, batch)
    stable = (scales * w**2).sum(-1) <= start  # a NaN is not
    return torch.stack([RATES[column].max() for column in stable.T])


@claim("SGD's largest stable rate grows with the batch at a slope of 0.8 to 1.05 up to 8, and no more from 32")
def largest_rates(scale: Scale, seed: int) -> Evidence:
    parameters = 300 if scale is Scale.QUICK else 1_000
    rows = [regression(s, parameters)[1] for s in range(seed, seed + 3)]
    found = torch.stack([largest_stable(size, rows) for size in SGD_SIZES])
    slopes = np.polyfit(np.log(SGD_SIZES[:4]), found[:4].log().numpy(), 1)[0]
    step = math.log(float(RATES[1] / RATES[0]))
    apart = (found[5] / found[4]).log().abs() / step
    predicted = [reports(seed, parameters)[0].sgd_rate(b) for b in SGD_SIZES]
    return Evidence([
        between("slope of log rate in log B, B ≤ 8", slopes.tolist(), 0.8, 1.05),
        at_most("grid points between the rates at B = 32 and 128", apart.round().tolist(), 1.0),
        *(recorded(f"largest stable rate, B = {size}", row.tolist()) for size, row in zip(SGD_SIZES, found, strict=True)),
    ], curves={"measured": (SGD_SIZES, found.median(1).values.tolist()), "2 / λ₁(B) by V": (SGD_SIZES, predicted)},
        axes=("batch size", "learning rate"),
        notes=["33 rates from 0.01 to 1; stable is an excess loss after 300 steps that is at most the first."])


def best_rates(optimizer: Factory, sizes: Sequence[int], centre: float, seed: int, epochs: int) -> Tensor:
    """The learning rate of least training loss, of seven a factor 2 apart around ``centre`` and between them: ``(sizes, seeds)``."""
    rates = spaced(centre, 2.0, 7)
    found = []
    for size in sizes:
        problems = digits(seed, batch_size=size)
        steps = round(epochs * len(problems[0].data[0]) / size)
        weights = trained_networks(problems, optimizer, at_rates(rates), steps, seed)
        found.append([vertex(np.log(rates), column) for column in training_losses(problems, weights).T.numpy()])
    return torch.tensor(found, dtype=torch.float64).exp()


def vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Where the parabola through the least value and its two neighbours is least; the least value's own place at an end."""
    i = int(np.argmin(y))
    if not 0 < i < len(y) - 1 or not np.isfinite(y[i - 1:i + 2]).all():
        return float(x[i])
    second, first, _ = np.polyfit(x[i - 1:i + 2], y[i - 1:i + 2], 2)
    return float(-first / (2 * second))


@claim("on the digits the best rate grows with the batch as its square root for Adam, and linearly below saturation for SGD")
def digits_rates(scale: Scale, seed: int) -> Evidence:
    epochs, adam_sizes, sgd_sizes = (2, (8, 64, 512), (4, 8, 16)) if scale is Scale.QUICK else \
        (20, (8, 16, 32, 64, 128, 256, 512), (2, 4, 8, 16))
    critical = [batch_hessian_report(p, None, [64], draws=5).critical_size for p in digits(seed)]
    adam = best_rates(fl.optim.Adam, adam_sizes, 0.01, seed, epochs)
    sgd = best_rates(fl.optim.SGD, sgd_sizes, 0.2, seed, epochs)

    def slopes(sizes: Sequence[int], rates: Tensor) -> list[float]:
        return np.polyfit(np.log(sizes), rates.log().numpy(), 1)[0].tolist()

    return Evidence([
        between("slope of log rate in log B, Adam, B = 8 to 512", slopes(adam_sizes, adam), 0.25, 0.75),
        between(f"slope of log rate in log B, SGD, B = {sgd_sizes[0]} to 16", slopes(sgd_sizes, sgd), 0.65, 1.35),
        recorded("B* at the start", critical),
        *(recorded(f"best rate of Adam, B = {size}", row.tolist()) for size, row in zip(adam_sizes, adam, strict=True)),
        *(recorded(f"best rate of SGD, B = {size}", row.tolist()) for size, row in zip(sgd_sizes, sgd, strict=True)),
    ], curves={"Adam": (adam_sizes, adam.median(1).values.tolist()), "SGD": (sgd_sizes, sgd.median(1).values.tolist())},
        axes=("batch size", "best learning rate"),
        notes=[f"A 64-64-64-10 network, {epochs} epochs whatever the batch, the least training loss of seven rates a factor 2 apart, "
               "refined by a parabola, for each of 3 seeds; SGD at batches below B*, where its rate should be linear. First runs had "
               "60 steps whatever the batch and SGD's best rates at the end of the grid (slopes 0.3 to 0.5), then no parabola, which "
               "leaves slopes of 0.5 or 1. Full: 20 epochs; no convolutional network."])
