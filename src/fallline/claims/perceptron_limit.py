"""Huge steps of logistic regression: sooner separated, at a higher loss, and n times slower than they need be."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.core.keys import Key
from fallline.solvers import LargeStepGD, NormalizedLargeStepGD, separation_time

PAPER = Paper(
    slug="perceptron-limit",
    title="From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes",
    arxiv="2412.08424",
    year=2025,
    room="solvers",
    methods=("solvers.LargeStepGD", "solvers.NormalizedLargeStepGD", "solvers.LogRegGD", "solvers.separation_time"),
    headline="huge steps raise the loss yet separate faster, so that the loss misleads; gradient descent is suboptimal by a factor n, "
    "and normalising it mends that",
)


def hard_point(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n − 1 rows beside e₁, and a last one at (−0.8, 0.3, 0), all of class 1."""
    rows = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) + 0.05 * torch.randn(
        n, 3, dtype=torch.float64, generator=Key(seed).fold("hard", n).generator())
    rows[-1] = torch.tensor([-0.8, 0.3, 0.0], dtype=torch.float64)
    return rows, torch.ones(n, dtype=torch.float64)


def separable(n: int, d: int, seed: int, unit: bool) -> tuple[Tensor, Tensor]:
    """Gaussian rows, of length 1 if ``unit``, that are at least 0.05 from a random plane through 0."""
    generator = Key(seed).fold("separable").generator()
    normal = torch.randn(d, dtype=torch.float64, generator=generator)
    normal /= normal.norm()
    rows = torch.randn(4 * n, d, dtype=torch.float64, generator=generator)
    rows = rows / rows.norm(dim=1, keepdim=True) if unit else rows
    rows = rows[(rows @ normal).abs() >= 0.05][:n]
    return rows, (rows @ normal).sign()


def steps(rows: Tensor, labels: Tensor, method: fl.Method) -> float:
    """Steps until the data are separated."""
    result = fl.solve(fl.LinearModel(rows, labels, "logistic"), method, fl.Budget(steps=200_000))
    return result.nit if result.success else math.inf


@claim("beside one hard point of n the steps of gradient descent grow like n, as the perceptron's do, and the normalised form's at "
       "most double from n = 50 to 800")
def suboptimal_by_n(scale: Scale, seed: int) -> Evidence:
    sizes = (50, 200, 800) if scale is Scale.QUICK else (50, 800, 12_800, 100_000)
    exponents, apart, growth, table = [], [], [], {}
    for s in range(seed, seed + 3):
        data = [hard_point(n, s) for n in sizes]
        plain = [steps(*d, LargeStepGD(1e6)) for d in data]
        limit = [steps(*d, LargeStepGD(math.inf)) for d in data]
        normalized = [steps(*d, NormalizedLargeStepGD(1e4)) for d in data]
        exponents.append(float(np.polyfit(np.log(sizes), np.log(plain), 1)[0]))
        apart.append(max(abs(a - b) for a, b in zip(plain, limit, strict=True)))
        growth.append(max(normalized) / min(normalized))
        table[s] = plain, normalized
    return Evidence([
        between("exponent of the steps of gradient descent in n", exponents, 0.85, 1.15),
        at_most("steps apart from the batch perceptron", apart, 1.0),
        at_most("most over fewest steps of the normalised form", growth, 2.0),
        *(recorded(f"steps of gradient descent, n = {n}", [table[s][0][i] for s in table]) for i, n in enumerate(sizes)),
        *(recorded(f"steps of the normalised form, n = {n}", [table[s][1][i] for s in table]) for i, n in enumerate(sizes)),
    ], curves={"gradient descent": (sizes, table[seed][0]), "normalised": (sizes, table[seed][1])}, axes=("data points", "steps"),
        notes=["γ = 1e6 and, normalised, 1e4."])


@claim("on separable data a thousand times the step separates at least thirty times sooner, and the loss rises higher on the way")
def loss_misleads(scale: Scale, seed: int) -> Evidence:
    n = 200 if scale is Scale.QUICK else 100_000
    figures = []
    for rows, unit in (("rows of length 1", True), ("Gaussian rows", False)):
        pairs = [separation_time(*separable(n, 20, s, unit), (1.0, 1000.0)) for s in range(seed, seed + 5)]
        figures += [
            at_least(f"steps at γ = 1 over steps at γ = 1000, {rows}", [a.iterations / b.iterations for a, b in pairs], 30.0),
            at_least(f"highest loss at γ = 1000 over that at γ = 1, {rows}", [b.peak_loss / a.peak_loss for a, b in pairs], 1.001),
            recorded(f"steps at γ = 1000, {rows}", [b.iterations for _, b in pairs]),
        ]
    return Evidence(figures, notes=[
        f"{n} rows in 20 dimensions, at least 0.05 from the plane that separates them. Whether rows have length 1 was open: with it a "
        "step of 1000 separates within two or three steps, before the loss rises; without it γ = 1 is large already."])


@claim("at γ = 1e6 every step of the normalised form is the perceptron's to 1e-6")
def limit(scale: Scale, seed: int) -> Evidence:
    errors = []
    for s in range(seed, seed + 5):
        problem = fl.LinearModel(*separable(200, 20, s, unit=True), "logistic")
        finite, infinite = NormalizedLargeStepGD(1e6), NormalizedLargeStepGD(math.inf)
        a, b = finite.init(problem, Key(0)), infinite.init(problem, Key(0))
        worst = 0.0
        for _ in range(50):
            before = a["x"], b["x"]
            a, b = finite.step(problem, a), infinite.step(problem, b)
            moved = (a["x"] - before[0]) / 1e6, b["x"] - before[1]
            worst = max(worst, float((moved[0] - moved[1]).norm()))
        errors.append(worst)
    return Evidence([at_most("largest difference of a step, in units of γ", errors, 1e-6)],
                    notes=["Fifty steps each, fewer where the data are separated before."])
