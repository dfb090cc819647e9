"""OASIS: badly scaled columns do no harm, nor does the first step size, nor a well scaled problem, nor batches."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import side_by_side, spaced, trained
from fallline.core.keys import Key
from fallline.optim import OASIS, SGD, Adam

PAPER = Paper(
    slug="oasis",
    title="Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information",
    arxiv="2109.05198",
    year=2022,
    room="optim",
    methods=("optim.OASIS",),
    headline="without a tuned learning rate on a par with or better than tuned SGD, Adam and AdaHessian on logistic regression and "
    "nonlinear least squares over LibSVM data, and for ResNets on CIFAR",
)
N, D, STEPS, PENALTY = 400, 30, 300, 1 / 400
SETTINGS: dict[str, Any] = {"beta2": 0.95, "alpha": 1e-5}
# With α above every curvature D̂ is α: the same step sizes without scaling, from a first one of 1e-3.
UNSCALED: dict[str, Any] = {"beta2": 0.95, "alpha": 1e6, "lr0": 1e-3 * 1e6}


def data(seed: int, k: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian columns times e^{U(−k, k)}, labels ±1 drawn from a logistic model, and the factors."""
    generator = Key(seed).fold("logistic").generator()
    plain = torch.randn(N, D, dtype=torch.float64, generator=generator)
    weights = torch.randn(D, dtype=torch.float64, generator=generator)
    labels = torch.where(torch.rand(N, dtype=torch.float64, generator=generator) < torch.sigmoid(plain @ weights), 1.0, -1.0)
    factors = torch.exp(k * (2 * torch.rand(D, dtype=torch.float64, generator=generator) - 1))
    return plain * factors, labels.double(), factors


def loss(w: Tensor, rows: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    """mean log(1 + e^{−y ⟨a, w⟩}) + ‖factors ∘ w‖² / (2 n): the same least value for all factors."""
    return softplus(-labels * (rows @ w)).mean() + PENALTY / 2 * ((factors * w) ** 2).sum()


def logistic(seed: int, k: float) -> fl.Problem:
    """All data at every step, from 0."""
    rows, labels, factors = data(seed, k)

    def gradient(w: Tensor) -> Tensor:
        return rows.mT @ (-labels * torch.sigmoid(-labels * (rows @ w))) / N + PENALTY * factors**2 * w

    def hvp(w: Tensor, v: Tensor) -> Tensor:
        p = torch.sigmoid(rows @ w)
        return rows.mT @ (p * (1 - p) * (rows @ v)) / N + PENALTY * factors**2 * v

    return fl.Smooth(lambda w: loss(w, rows, labels, factors), torch.zeros(D, dtype=torch.float64), gradient=gradient, hvp=hvp)


@functools.cache
def least(seed: int) -> float:
    """The least value, by Newton's method on unscaled columns."""
    problem = logistic(seed, 0.0)
    w = problem.x0
    for _ in range(30):
        w = w - torch.linalg.solve(problem.hessian(w), problem.gradient(w))
    return float(problem.value(w))


def gaps(seeds: Iterable[int], k: float, optimizer: Any, steps: int = STEPS, **hyper: Any) -> Tensor:
    """How far above the least value the steps end, seed by seed, down to what rounding leaves."""
    found = []
    for s in seeds:
        problem = logistic(s, k)
        x = trained(problem, fl.Train(optimizer, **hyper), steps, s)
        found.append(torch.inf if x is None else float(problem.value(x)) - least(s))
    return torch.tensor(found, dtype=torch.float64).clamp(min=1e-16)


def smoothness(seed: int, k: float) -> float:
    """The largest curvature that the loss can have."""
    rows, _, factors = data(seed, k)
    return float(torch.linalg.matrix_norm(rows.mT @ rows / (4 * N) + PENALTY * torch.diag(factors**2), 2))


def seeds_of(scale: Scale, seed: int) -> range:
    """Three, or ten at full scale."""
    return range(seed, seed + (3 if scale is Scale.QUICK else 10))


@claim("with columns scaled by up to e² OASIS's gap is at most 1e-6, of its step sizes without scaling at least 0.05; unscaled no harm")
def bad_scaling(scale: Scale, seed: int) -> Evidence:
    seeds = seeds_of(scale, seed)
    found: dict[tuple[str, int], Tensor] = {}
    for k in (0, 2, 4):
        found["OASIS", k] = gaps(seeds, k, OASIS, deterministic=True, **SETTINGS)
        found["AdGD", k] = gaps(seeds, k, OASIS, deterministic=True, **UNSCALED)
        found["gradient descent", k] = torch.cat([gaps([s], k, SGD, lr=1 / smoothness(s, k)) for s in seeds])
    early = {name: gaps(seeds, 0, OASIS, 100, deterministic=True, **settings)
             for name, settings in (("OASIS", SETTINGS), ("AdGD", UNSCALED))}
    return Evidence([
        at_most("gap of OASIS, k = 2", found["OASIS", 2].tolist(), 1e-6),
        *(at_least(f"gap of {name}, k = 2", found[name, 2].tolist(), 0.05) for name in ("AdGD", "gradient descent")),
        at_most("gap after 100 steps, OASIS / AdGD, k = 0", (early["OASIS"] / early["AdGD"]).tolist(), 10.0),
        *(recorded(f"gap of {name} after 100 steps, k = 0", each.tolist()) for name, each in early.items()),
        *(recorded(f"gap of {name}, k = {k}", each.tolist()) for (name, k), each in found.items() if k != 2),
    ], notes=["400 rows of 30 standard normal columns times e^{U(−k, k)}, labels of a logistic model, penalty 1/(2n) in the unscaled "
              "weights, all data at every step; β₂ = 0.95, α = 1e-5, η₀ = 0.001. AdGD is OASIS's step size without scaling, gradient "
              "descent has rate 1/L. Gaps below 1e-16 count as that. The full scale has ten seeds, not a ResNet."])


@claim("over four decades of its first step size OASIS's gap stays below 1e-6, and within a factor of 100")
def first_step(scale: Scale, seed: int) -> Evidence:
    seeds, firsts = seeds_of(scale, seed), (1e-3, 0.1, 10.0)
    found = torch.stack([gaps(seeds, 2, OASIS, deterministic=True, lr0=lr0, **SETTINGS) for lr0 in firsts])
    return Evidence([
        at_most("largest gap / least", (found.amax(0) / found.amin(0)).tolist(), 100.0),
        *(at_most(f"gap, η₀ = {lr0:g}", each.tolist(), 1e-6) for lr0, each in zip(firsts, found, strict=True)),
    ], notes=["k = 2; gaps below 1e-16 count as that."])


def least_loss(seed: int, k: float, method: fl.Method, count: int) -> float:
    """The least loss on all data that the method, of ``count`` settings, has after 300 batches of 64."""
    rows, labels, factors = data(seed, k)
    start = [torch.zeros(D, dtype=torch.float64) for _ in range(count)]
    problem = fl.FiniteSum(lambda w, a, y: torch.stack([loss(each, a, y, factors) for each in w]).sum(), (rows, labels), start,
                           batch_size=64)
    ends = trained(problem, method, STEPS, seed)
    return torch.inf if ends is None else min(float(loss(w, rows, labels, factors)) for w in ends)


@claim("in batches of 64 OASIS's loss is at most 1.05 times that of Adam at the best of six learning rates")
def batches(scale: Scale, seed: int) -> Evidence:
    rates, figures = spaced(0.1, 10**0.5, 6), []
    for k in (0, 2, 4):
        ours = [least_loss(s, k, fl.Train(OASIS, **SETTINGS), 1) for s in seeds_of(scale, seed)]
        tuned = [least_loss(s, k, fl.Train(side_by_side(Adam, rates)), len(rates)) for s in seeds_of(scale, seed)]
        figures += [at_most(f"loss, OASIS / Adam, k = {k}", [a / b for a, b in zip(ours, tuned, strict=True)], 1.05),
                    recorded(f"loss of OASIS, k = {k}", ours), recorded(f"loss of Adam, k = {k}", tuned)]
    return Evidence(figures, notes=["Loss on all data after 300 steps, β₂ = 0.95, α = 1e-5, η₀ = 0.001, two gradients of a batch in a "
                                    "step of OASIS and one in a step of Adam; six learning rates from 0.006 to 1.8."])
