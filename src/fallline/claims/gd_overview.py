"""What the survey recommends: momentum for ravines, adaptive rates for sparse data and saddles, and updates without locks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, between, claim, recorded
from fallline.claims._tuning import side_by_side, steps_until
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.core.processes import run_gloo
from fallline.optim import SGD, Adagrad, Adam, Momentum, Nesterov, RMSprop

PAPER = Paper(
    slug="gd-overview",
    title="An overview of gradient descent optimization algorithms",
    arxiv="1609.04747",
    year=2016,
    room="optim",
    methods=("optim.SGD", "optim.Momentum", "optim.Nesterov", "optim.Adagrad", "optim.Adadelta", "optim.RMSprop", "optim.Adam",
             "optim.AdaMax", "optim.Nadam"),
    headline="no numbers; recommends adaptive methods for sparse data and Adam as the best overall choice, momentum as the cure for "
    "ravines",
)
SEEDS = 3


# The largest learning rate at which each converges on a quadratic of curvature 1, for momentum γ.
STABLE = {SGD: lambda momentum: 2.0, Momentum: lambda momentum: 2 * (1 + momentum),
          Nesterov: lambda momentum: 2 * (1 + momentum) / (1 + 2 * momentum)}
FRACTIONS = torch.tensor([0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
# From the largest down, so that the slow ones of an ill-conditioned problem are cut off by a fast one.
MOMENTA = (0.9875, 0.975, 0.95, 0.9, 0.8, 0.65, 0.5, 0.25)


def ravine(condition: float, optimizer: Any, momentum: float, limit: float, seed: int) -> Tensor:
    """Steps to 1e-6 of the first value for every seed, at the best of four learning rates; infinite where not within ``limit``.

    These methods are linear in the gradient, so a learning rate is a factor of the loss: all seeds and rates are rows of one run.
    """
    curvature = torch.logspace(0, -math.log10(condition), 20, dtype=torch.float64)
    rates = STABLE[optimizer](momentum) * FRACTIONS[:, None]
    start = torch.randn(SEEDS, 1, 20, dtype=torch.float64, generator=Key(seed).generator()) / curvature.sqrt()
    rows = start.expand(SEEDS, len(FRACTIONS), 20).clone()
    problem = fl.Smooth(lambda x: (rates * curvature * x**2).sum() / 2, rows, gradient=lambda x: rates * curvature * x)
    found = torch.full((SEEDS,), math.inf, dtype=torch.float64)
    every = max(1, int(condition if optimizer is SGD else condition**0.5) // 200)

    def watch(moment: Moment) -> bool:
        values = (curvature * moment.report.resolve() ** 2).sum(-1)
        arrived = (values <= 1e-6 * (curvature * start**2).sum(-1)).any(-1)
        found[arrived & found.isinf()] = moment.step
        return bool(found.isfinite().all())

    hyper = {} if optimizer is SGD else {"momentum": momentum}
    fl.solve(problem, fl.Train(optimizer, lr=1.0, **hyper), fl.Budget(steps=int(limit)), every=every, callback=watch)
    return found


@claim("iterations grow like the condition number for gradient descent and like its root for momentum and Nesterov's method")
def ravines(scale: Scale, seed: int) -> Evidence:
    conditions = (1e1, 1e2, 1e3, 1e4)
    counts: dict[str, list[Tensor]] = {}
    for optimizer in STABLE:
        counts[optimizer.__name__] = []
        for condition in conditions:
            best = torch.full((SEEDS,), math.inf, dtype=torch.float64)
            for momentum in (0.0,) if optimizer is SGD else MOMENTA:
                limit = min(10 * condition + 100, float(best.max()))
                best = torch.minimum(best, ravine(condition, optimizer, momentum, limit, seed))
            counts[optimizer.__name__].append(best)
    slopes = {name: np.polyfit(np.log(conditions), torch.stack(found).log().numpy(), 1)[0] for name, found in counts.items()}
    return Evidence([
        between("slope, gradient descent", slopes["SGD"], 0.9, 1.1),
        between("slope, momentum", slopes["Momentum"], 0.38, 0.62),
        between("slope, Nesterov", slopes["Nesterov"], 0.38, 0.62),
    ], curves={name: (conditions, [float(c.median()) for c in found]) for name, found in counts.items()},
        axes=("condition number", "steps"),
        notes=["Every learning rate is one of four fractions of the largest stable one; the momentum is the best of "
               f"{', '.join(map(str, MOMENTA))}. Gradient descent's steps are counted in 200ths of the condition number."])


def sparse_logistic(rows: int, seed: int, seeds: int = SEEDS) -> tuple[Tensor, Tensor, Tensor]:
    """Feature j of 200 is there with probability 1/j; labels from a logistic model. Features, labels, truth, a slice a seed."""
    generator = Key(seed).fold("sparse").generator()
    frequencies = 1 / torch.arange(1.0, 201.0)
    truth = torch.randn(seeds, 200, generator=generator)
    features = (torch.rand(rows, seeds, 200, generator=generator) < frequencies).float()
    chances = torch.sigmoid((features * truth).sum(-1))
    return features, 2.0 * (torch.rand(rows, seeds, generator=generator) < chances) - 1, truth


def margin_loss(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Mean logistic loss of every slice, ``(seeds,)``."""
    return softplus(-labels * (features * weights).sum(-1)).mean(0)


RATES = {SGD: (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), Adagrad: (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), Adam: (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3)}


@claim("with Zipf-distributed features Adagrad and Adam learn the rare features' coefficients better than gradient descent")
def sparse_features(scale: Scale, seed: int) -> Evidence:
    rows, steps = (32_000, 2_000) if scale is Scale.QUICK else (500_000, 30_000)
    features, labels, truth = sparse_logistic(rows, seed)
    rare = slice(100, 200)
    errors, chosen = {}, {}
    for optimizer, rates in RATES.items():
        problem = fl.FiniteSum(lambda w, a, y: torch.stack([margin_loss(row, a, y) for row in w]).sum(), (features, labels),
                               [torch.zeros_like(truth) for _ in rates], batch_size=16)
        ends = fl.solve(problem, fl.Train(side_by_side(optimizer, rates)), fl.Budget(steps=steps), key=seed, every=steps).x
        error = torch.stack([(w - truth)[:, rare].norm(dim=1) / truth[:, rare].norm(dim=1) for w in ends])
        losses = torch.stack([margin_loss(w, features, labels) for w in ends])
        errors[optimizer.__name__] = error.min(0).values
        chosen[optimizer.__name__] = error.gather(0, losses.argmin(0, keepdim=True))[0]
    return Evidence([
        at_most("rare coefficients' error, Adagrad / gradient descent", (errors["Adagrad"] / errors["SGD"]).tolist(), 0.7),
        at_most("rare coefficients' error, Adam / gradient descent", (errors["Adam"] / errors["SGD"]).tolist(), 0.7),
        *(recorded(f"rare coefficients' relative error, {name}", error.tolist()) for name, error in errors.items()),
        *(recorded(f"the same at the rate of least loss, {name}", error.tolist()) for name, error in chosen.items()),
    ], notes=["Rare are the 100 rarest of 200 features. Every method at the best of its six learning rates for this very error; "
              "recorded beside it, at the learning rate of the least training loss. The full scale is 500,000 rows and 30,000 steps of "
              "this generated data, not a topic model of the size of 20 newsgroups."])


@claim("RMSprop and Adam leave the saddle of x² − y² in at most 0.3 of gradient descent's steps at the same learning rate")
def saddle(scale: Scale, seed: int) -> Evidence:
    problem = fl.Smooth(lambda z: z[0] ** 2 - z[1] ** 2, torch.tensor([1.0, 1e-6], dtype=torch.float64))
    steps = {optimizer.__name__: steps_until(lambda z: bool(z[1].abs() > 1), problem, fl.Train(optimizer, lr=0.01), 10_000)
             for optimizer in (SGD, RMSprop, Adam)}
    return Evidence([
        at_most("steps, RMSprop / gradient descent", steps["RMSprop"] / steps["SGD"], 0.3),
        at_most("steps, Adam / gradient descent", steps["Adam"] / steps["SGD"], 0.3),
        *(recorded(f"steps, {name}", count) for name, count in steps.items()),
    ])


def descend(weights: Tensor, features: Tensor, labels: Tensor, batches: Tensor, lr: float) -> None:
    """Stochastic gradient descent in place that touches the coefficients of the batch's features only; the rate falls linearly to 0."""
    for step, batch in enumerate(batches):
        rate = lr * (1 - step / len(batches))
        for w, a, y in zip(weights, features[batch].unbind(1), labels[batch].unbind(1), strict=True):
            active = a.any(0).nonzero()[:, 0]
            seen = a[:, active]
            slopes = -y * torch.sigmoid(-y * (seen @ w[active])) / len(y)
            w.index_add_(0, active, seen.T @ slopes, alpha=-rate)


def hogwild_worker(rank: int, weights: Tensor, rows: int, seed: int, steps: int, lr: float) -> bool:
    """Every second batch, on weights that both processes write without locks; returns whether they are shared."""
    features, labels, _ = sparse_logistic(rows, seed)
    torch.distributed.barrier()
    descend(weights, features, labels, hogwild_batches(rows, seed, steps)[rank::2], lr)
    return weights.is_shared()


def hogwild_batches(rows: int, seed: int, steps: int) -> Tensor:
    """The batches of 16 that the serial run takes in order and the processes deal out."""
    return torch.randint(rows, (steps, 16), generator=Key(seed).fold("batches").generator())


@claim("two processes writing to shared weights without locks end within 2 % of the serial loss")
def hogwild(scale: Scale, seed: int) -> Evidence:
    rows, steps, lr = (8_000, 1_000, 1.0) if scale is Scale.QUICK else (100_000, 50_000, 1.0)
    features, labels, truth = sparse_logistic(rows, seed)
    serial, permuted, shared = torch.zeros_like(truth), torch.zeros_like(truth), torch.zeros_like(truth).share_memory_()
    batches = hogwild_batches(rows, seed, steps)
    descend(serial, features, labels, batches, lr)
    order = torch.randperm(steps, generator=Key(seed).fold("order").generator())
    descend(permuted, features, labels, batches[order], lr)
    if not all(run_gloo(hogwild_worker, 2, shared, rows, seed, steps, lr)):
        raise RuntimeError("the processes did not share the weights")
    ends = {"serial": serial, "serial in another order": permuted, "two processes": shared}
    losses = {name: margin_loss(w, features, labels) for name, w in ends.items()}
    return Evidence([
        between("loss, two processes / serial", (losses["two processes"] / losses["serial"]).tolist(), 0.98, 1.02),
        recorded("loss, serial in another order / serial", (losses["serial in another order"] / losses["serial"]).tolist()),
        *(recorded(f"loss, {name}", loss.tolist()) for name, loss in losses.items()),
    ], notes=[f"{steps:,} batches of 16 at a learning rate that falls from {lr:g} to 0, one after the other or dealt out to the two "
              "processes. Another order of the batches, recorded beside it, is what any difference must be held against."])
