"""SMB: SGD itself while its steps succeed; where they are too long, corrected instead of diverging, so that more rates are good."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import Factory
from fallline.core.keys import Key
from fallline.optim import SGD, SMB, WithStepSize
from fallline.optim.step_sizes import ArmijoSearch

PAPER = Paper(
    slug="smb",
    title="Bolstering Stochastic Gradient Descent with Model Building",
    arxiv="2111.07058",
    year=2021,
    room="optim",
    methods=("optim.SMB",),
    headline="faster and better generalising than SGD and Adam, competitive with line search on MNIST and CIFAR; far less sensitive to "
    "the learning rate",
)
LARGEST = 10.0
RATES, STEPS, ROWS, BATCH = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), 300, 600, 64


def regression(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 16 tanh units, and data of another one, 600 rows of 20 features."""
    generator = Key(seed).fold("regression").generator()

    def network() -> nn.Module:
        model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=generator) / p.shape[-1] ** 0.5 * (p.ndim > 1))
        return model

    features = torch.randn(ROWS, 20, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        targets = network()(features)
    return network(), features, targets


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the mean squared error."""
    return nn.functional.mse_loss(outputs, targets) / 2


def descended(make: Factory, seed: int, steps: int, **settings: Any) -> tuple[float, list[Tensor], Any]:
    """The loss over all rows after the steps, infinite if it is not a number; the weights; the optimizer."""
    model, features, targets = regression(seed)
    objective = fl.Objective(model, half_squares)
    optimizer = make(model.parameters(), nonfinite="ignore", **settings)
    rows = torch.randint(ROWS, (steps, BATCH), generator=Key(seed).fold("batches").generator())
    for chosen in rows:
        optimizer.step(objective(features[chosen], targets[chosen]))
    with torch.no_grad():
        loss = float(half_squares(model(features), targets))
    return loss if math.isfinite(loss) else math.inf, [p.detach() for p in model.parameters()], optimizer


@claim("while no trial fails SMB is SGD; at lr = 1 its loss is 0.75 of SGD's or less, at lr = 3 it is finite where SGD overflows")
def model_steps(scale: Scale, seed: int) -> Evidence:
    seeds, steps = (range(seed, seed + 3), STEPS) if scale is Scale.QUICK else (range(seed, seed + 10), 10 * STEPS)
    gaps, taken = [], []
    for s in seeds:
        (_, ours, optimizer), (_, plain, _) = (descended(make, s, STEPS, lr=0.001) for make in (SMB, SGD))
        gaps.append(max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)))
        taken.append(optimizer.model_steps)
    ends = {(make.__name__, lr): [descended(make, s, steps, lr=lr)[0] for s in seeds] for make in (SMB, SGD) for lr in (1.0, 3.0)}
    return Evidence([
        at_most("largest difference of a weight from SGD's at lr = 0.001", gaps, 1e-12),
        at_most("model steps at lr = 0.001", [float(n) for n in taken], 0.0),
        at_most("loss at lr = 1, SMB / SGD", [a / b for a, b in zip(ends["SMB", 1.0], ends["SGD", 1.0], strict=True)], 0.75),
        at_least("SMB's loss is finite at lr = 3", [float(math.isfinite(x)) for x in ends["SMB", 3.0]], 1.0),
        at_most("SGD's loss is finite at lr = 3", [float(math.isfinite(x)) for x in ends["SGD", 3.0]], 0.0),
        *(recorded(f"loss at lr = {lr:g}, {name}", found) for (name, lr), found in ends.items()),
    ], notes=["Batches of 64, 300 steps. The full scale is ten times as many steps and ten seeds, not networks for images."])


@claim("at least one learning rate of seven more than with SGD is within 1.7 times the best loss")
def sensitivity(scale: Scale, seed: int) -> Evidence:
    seeds, steps = (range(seed, seed + 3), STEPS) if scale is Scale.QUICK else (range(seed, seed + 10), 10 * STEPS)
    armijo = functools.partial(WithStepSize, base=SGD, step_size=ArmijoSearch())
    sides: dict[str, Factory] = {"SMB": SMB, "SGD": SGD, "Armijo": armijo}
    losses = {name: torch.tensor([[descended(make, s, steps, lr=lr)[0] for s in seeds] for lr in RATES])
              for name, make in sides.items()}
    best = torch.stack(list(losses.values())).amin((0, 1))
    good = {name: (found <= 1.7 * best).sum(0).double() for name, found in losses.items()}
    return Evidence([
        at_least("rates within 1.7 of the best loss, SMB − SGD", (good["SMB"] - good["SGD"]).tolist(), 1.0),
        *(recorded(f"rates within 1.7 of the best loss, {name}", found.tolist()) for name, found in good.items()),
        *(recorded(f"least loss, {name}", found.amin(0).tolist()) for name, found in losses.items()),
    ], curves={name: (RATES, found.median(1).values.clamp(max=LARGEST).tolist()) for name, found in losses.items()},
        axes=("learning rate", "loss"),
        notes=["Seven rates from 0.01 to 10. Armijo's backtracking starts from 1.1 times its last step, at first from the rate, and "
               f"its forward passes are not limited to SMB's. The plot has losses above {LARGEST:g} there."])
