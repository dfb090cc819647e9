"""DoG: the initial movement hardly matters, the loss's scale not at all, and no learning rate is tuned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn.functional import softplus

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import observed, side_by_side, spaced, trained
from fallline.core.keys import Key
from fallline.optim import DoG, LDoG
from fallline.optim.averaging import PolynomialDecay
from fallline.optim.engine.optimizer import Optimizer
from fallline.optim.engine.parts import Gradient
from fallline.problems import digits_mlp

PAPER = Paper(
    slug="dog",
    title="DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule",
    arxiv="2302.12022",
    year=2023,
    room="optim",
    methods=("optim.DoG", "optim.LDoG"),
    headline="over dozens of vision and language fine-tuning tasks close to SGD with tuned learning rate and schedule; LDoG generally "
    "beats tuned SGD and approaches tuned Adam; the initial movement hardly matters once it is small",
)
RATES = spaced(0.1, 10**0.5, 9)


def averaged_sgd(params: object, lr: float = 1.0) -> torch.optim.Optimizer:
    """Gradient descent whose solution is the same average of the iterates as DoG's."""
    return Optimizer(params, Gradient(), {"lr": lr}, average=PolynomialDecay())


def shuffled(seed: int) -> tuple[Tensor, Tensor]:
    """Breast cancer's 569 standardised rows with a constant, in an order of the seed's own, and labels ±1."""
    data = load_breast_cancer()
    order = torch.randperm(len(data.target), generator=Key(seed).fold("order").generator())
    features = torch.tensor(data.data, dtype=torch.float64)[order]
    features = (features - features.mean(0)) / features.std(0, unbiased=False)
    return torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1), 2.0 * torch.tensor(data.target)[order] - 1


def logistic(seed: int, factor: float = 1.0) -> fl.Problem:
    """``factor`` times the logistic loss, in batches of 8."""
    return fl.FiniteSum(lambda w, a, y: factor * softplus(-y * (a @ w)).mean(), shuffled(seed), torch.zeros(31, dtype=torch.float64),
                        batch_size=8)


def dog_loss(seed: int, steps: int, factor: float = 1.0, **hyper: float) -> float:
    """Training loss of DoG's average, without the factor."""
    problem = logistic(seed, factor)
    return float(problem.value(trained(problem, fl.Train(DoG, **hyper), steps, key=0))) / factor


def sgd_losses(seeds: Sequence[int], steps: int) -> Tensor:
    """Training losses of gradient descent's average, ``(rates, seeds)``: on each seed's rows the batches that DoG draws there."""
    features, labels = (torch.stack(parts, 1) for parts in zip(*map(shuffled, seeds), strict=True))

    def losses(w: Tensor, a: Tensor, y: Tensor) -> Tensor:
        return softplus(-y * (a * w).sum(-1)).mean(0)

    start = [torch.zeros(len(seeds), 31, dtype=torch.float64) for _ in RATES]
    problem = fl.FiniteSum(lambda w, a, y: torch.stack([losses(v, a, y) for v in w]).sum(), (features, labels), start, batch_size=8)
    ends = trained(problem, fl.Train(side_by_side(averaged_sgd, RATES)), steps, key=0)
    return torch.stack([losses(w, features, labels) for w in ends or []])


@claim("over eight decades of initial movement the loss stays within 30 %, and within 25 % of gradient descent at the best of 9 rates")
def insensitivity(scale: Scale, seed: int) -> Evidence:
    steps = 2_000 if scale is Scale.QUICK else 50_000
    movements = (1e-8, 1e-6, 1e-4, 1e-2, 1.0) if scale is Scale.QUICK else tuple(10.0**i for i in range(-8, 1))
    seeds = range(seed, seed + 3)
    dog = torch.tensor([[dog_loss(s, steps, reps_rel=r) for s in seeds] for r in movements])
    sgd = sgd_losses(seeds, steps)
    best = sgd.min(0).values
    return Evidence([
        at_most("DoG's largest loss / its least over the initial movements", (dog.amax(0) / dog.amin(0)).tolist(), 1.3),
        at_most("DoG's largest loss / gradient descent's at its best rate", (dog.amax(0) / best).tolist(), 1.25),
        at_least("gradient descent's largest loss / its least over four decades of rates", (sgd.amax(0) / best).tolist(), 3.0),
        recorded("DoG's largest loss", dog.amax(0).tolist()),
        recorded("gradient descent's least loss", best.tolist()),
    ], curves={"DoG against initial movement": (movements, dog.median(1).values.tolist()),
               "gradient descent against rate": (RATES, sgd.median(1).values.tolist())},
        axes=("initial movement, or learning rate", "loss"),
        notes=[f"Initial movements {movements[0]:g} to 1, {len(movements)} of them; nine rates half a decade apart. "
               "Both sides are judged by the same average of the iterates. The full scale is this problem for 50,000 steps and nine "
               "movements, not eight fine-tuning tasks."])


@claim("a loss multiplied by a thousand leaves the result the same to 3 %")
def scale_free(scale: Scale, seed: int) -> Evidence:
    steps = 2_000 if scale is Scale.QUICK else 50_000
    changes = [abs(dog_loss(s, steps, factor=1e3) / dog_loss(s, steps) - 1) for s in range(seed, seed + 3)]
    return Evidence([at_most("relative change of the final loss", changes, 0.03)])


@claim("LDoG's accuracy on digits is at most a point below that of gradient descent at its best rate, for a linear model and a network")
def digits(scale: Scale, seed: int) -> Evidence:
    steps, rates = (400, spaced(0.1, 10**0.5, 5)) if scale is Scale.QUICK else (5_000, RATES)
    figures = []
    for name, widths in (("softmax", ()), ("network", (64, 64))):
        ours, tuned = [], []
        for s in range(seed, seed + 3):
            problem = digits_mlp(s, widths)
            ours.append(100 * observed(problem, fl.Train(LDoG), steps, s, "accuracy"))
            tuned.append(100 * max(observed(problem, fl.Train(averaged_sgd, lr=lr), steps, s, "accuracy") for lr in rates))
        figures += [
            at_least(f"points ahead of gradient descent, {name}", [a - b for a, b in zip(ours, tuned, strict=True)], -1.0),
            recorded(f"accuracy, {name}", ours),
            recorded(f"accuracy of gradient descent, {name}", tuned),
        ]
    return Evidence(figures, notes=[f"{steps:,} steps of 64; gradient descent at the best of {len(rates)} rates for the validation "
                                    "accuracy itself; both sides judged by the same average of the iterates."])
