"""Optimistic AMSGrad: less regret where gradients can be predicted, none where they cannot, and a smaller gap on the whole data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.claims._logistic import gradients, least, logistic_data, losses
from fallline.claims._tuning import spaced
from fallline.core.keys import Key
from fallline.optim import OptAMSGrad
from fallline.optim.directions.averages import Undebiased
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.scalings import Denominator, average_of_squares
from fallline.optim.engine.optimizer import Optimizer
from fallline.optim.engine.parts import Scalars, Tensors
from fallline.optim.engine.state import State, like

PAPER = Paper(
    slug="optimistic-amsgrad",
    title="An Optimistic Acceleration of AMSGrad for Nonconvex Optimization",
    arxiv="1903.01435",
    year=2021,
    room="optim",
    methods=("optim.OptAMSGrad",),
    headline="loss falls faster and accuracy rises faster than with AMSGrad for ResNet-18 on CIFAR-10, CIFAR-100 and noisy MNIST at "
    "lr = 1e-3, β₂ = 0.99, r = 5; in the regret Σ ‖g − m‖² takes the place of Σ ‖g‖²",
)
DISC_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
RATES = spaced(0.01, 10**0.5, 5)


def regrets(losses: Tensor) -> Tensor:
    """Regrets on the unit disc for linear losses ``(steps, 2)``, of Optimistic AMSGrad and of AMSGrad, ``(2, rates)``.

    Gradients are the same for all rates, and so is the extrapolation: a row of z = x / lr for each of them, with a step of 1. They do
    not depend on the points either, so that AMSGrad's points are the w of Optimistic AMSGrad.
    """
    rates = torch.tensor(DISC_RATES, dtype=torch.float64)[:, None]
    ahead = nn.Parameter(torch.zeros(len(rates), 2, dtype=torch.float64))
    opt = OptAMSGrad([ahead], lr=1.0, nonfinite="ignore")
    paid = torch.zeros(2, len(rates), dtype=torch.float64)
    half = torch.zeros_like(ahead)
    for g in losses:
        paid += torch.stack([(rates * z.detach()) @ g for z in (ahead, half)])
        ahead.grad = g.expand_as(ahead).clone()
        opt.step()
        half = opt.state[ahead]["half"].view_as(ahead)
        for z in (ahead.detach(), half):
            z /= (rates * z).norm(dim=1, keepdim=True).clamp(min=1.0)
    return paid + losses.sum(0).norm()


def directions(kind: str, steps: int, seed: int) -> Tensor:
    """(cos a_t, sin a_t) + 0.3 ξ with a_t = 0.1 t (turning), or a_t drawn anew (independent)."""
    generator = Key(seed).fold(kind).generator()
    turning = 0.1 * torch.arange(1, steps + 1, dtype=torch.float64)
    angle = turning if kind == "turning" else 2 * math.pi * torch.rand(steps, dtype=torch.float64, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(steps, 2, dtype=torch.float64, generator=generator)


@claim("with losses that turn steadily the best regret falls by at least 0.03 a step; with independent ones it stays the same to 0.01")
def regret(scale: Scale, seed: int) -> Evidence:
    steps, seeds = (2_000, 3) if scale is Scale.QUICK else (20_000, 10)
    found = {kind: torch.stack([regrets(directions(kind, steps, s)) for s in range(seed, seed + seeds)])
             for kind in ("turning", "independent")}
    best = {kind: each.amin(2) for kind, each in found.items()}
    gain = {kind: ((each[:, 1] - each[:, 0]) / steps).tolist() for kind, each in best.items()}
    methods = ("Optimistic AMSGrad", "AMSGrad")
    return Evidence([
        at_least("AMSGrad's regret − Optimistic AMSGrad's, a step, turning losses", gain["turning"], 0.03),
        between("the same, independent losses", gain["independent"], -0.01, 0.01),
        *(recorded(f"regret, {method}, {kind} losses", each[:, i].tolist())
          for kind, each in best.items() for i, method in enumerate(methods)),
    ], curves={f"{method}, {kind} losses": (DISC_RATES, each.median(0).values[i].tolist())
               for kind, each in found.items() for i, method in enumerate(methods)},
        axes=("learning rate", "regret"),
        notes=[f"Linear losses (cos a, sin a) + 0.3 ξ, where a grows by 0.1 a step or is drawn anew; {steps:,} steps on the unit "
               "disc, the best of six rates from 0.01 to 3. Both the point and w are projected. The regret is negative where no fixed "
               "point does so well. On turning losses it is least at the largest rate, where the gain is less than at 0.1 to 1."])


@dataclass(frozen=True)
class LargestSquares(Denominator):
    """√max v with v and its largest value started at 1e-8, as in Optimistic AMSGrad."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"keep2": group["betas"][1], "new2": 1 - group["betas"][1]}

    def init(self, p: Tensor) -> dict[str, State]:
        second = like(p, nonnegative=True, initial=1e-8)
        return {"exp_avg_sq": second, "max_exp_avg_sq": second}

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v = average_of_squares(s["exp_avg_sq"], g, c)
        largest = torch.maximum(s["max_exp_avg_sq"], v)
        return largest.sqrt(), {"exp_avg_sq": v, "max_exp_avg_sq": largest}


Points = list[list[nn.Parameter]]


def amsgrad(points: Points) -> list[torch.optim.Optimizer]:
    """AMSGrad without debiasing, each rate a parameter group."""
    groups = [{"params": row, "lr": lr} for row, lr in zip(points, RATES, strict=True)]
    return [Optimizer(groups, Quotient(Undebiased(), LargestSquares()), {"lr": 1e-3, "betas": (0.9, 0.99)}, nonfinite="ignore")]


def optimistic(points: Points) -> list[torch.optim.Optimizer]:
    """An optimizer for every point, for the extrapolation is over all that one optimizer has."""
    return [OptAMSGrad([p], lr=lr, nonfinite="ignore") for row, lr in zip(points, RATES, strict=True) for p in row]


def gaps(make: Callable[[Points], list[torch.optim.Optimizer]], data: tuple[Tensor, Tensor], batch: int | None, steps: int,
         key: Key) -> Tensor:
    """The loss at the end above the least one, ``(rates, seeds)``; batches are rows that all rates share."""
    features, labels = data
    x = torch.zeros(len(RATES), *features.shape[1:], dtype=torch.float64)
    slopes = torch.zeros_like(x)
    points = [[nn.Parameter(point) for point in row] for row in x]
    for i, row in enumerate(points):
        for p, slope in zip(row, slopes[i], strict=True):
            p.grad = slope
    optimizers = make(points)
    for step in range(steps):
        rows = slice(None) if batch is None else torch.randint(len(labels), (batch,), generator=key.fold(step).generator())
        slopes.copy_(gradients(x, features[rows], labels[rows]))
        for opt in optimizers:
            opt.step()
    return losses(x, features, labels) - least(features, labels)


@claim("on the whole data the gap is at most 0.75 of AMSGrad's, in batches of 32 no larger")
def gap(scale: Scale, seed: int) -> Evidence:
    rows, steps, seeds = (500, 400, 3) if scale is Scale.QUICK else (5_000, 4_000, 5)
    data = logistic_data(rows, 40, seeds, seed)
    figures, beside = [], []
    for name, batch, bound in (("the whole data", None, 0.75), ("batches of 32", 32, 1.0)):
        ours, theirs = (gaps(make, data, batch, steps, Key(seed).fold("batches")) for make in (optimistic, amsgrad))
        figures.append(at_most(f"gap on {name}, Optimistic AMSGrad / AMSGrad", (ours.amin(0) / theirs.amin(0)).tolist(), bound))
        beside += [recorded(f"gap on {name}, {side}", found.amin(0).tolist())
                   for side, found in (("Optimistic AMSGrad", ours), ("AMSGrad", theirs))]
        ratios = zip(RATES, (ours / theirs).tolist(), strict=True)
        beside += [recorded(f"the ratio on {name} at lr = {lr:.2g}", each) for lr, each in ratios]
    return Evidence([*figures, *beside], notes=[
        f"Logistic regression, {rows:,} rows of 40 features, {steps:,} steps, the best of five rates from 1e-3 to 0.1; AMSGrad is the "
        "same rule without the second step. On the whole data the gap at the best rate is near the rounding of the loss.",
        "The full scale has ten times the rows and steps, and is not a ResNet-18."])
