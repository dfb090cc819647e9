"""SGDR: good weights at the end of every cycle, not only at the end of the run, and several networks to average for one run."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import ConstantLR, MultiStepLR

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, claim, recorded
from fallline.claims._networks import Schedule, Weights, at_rates, trained_networks, training_losses
from fallline.claims._tuning import cosine, spaced
from fallline.optim import Momentum
from fallline.optim.schedules import Snapshots, WarmRestarts
from fallline.problems import digits_mlp

PAPER = Paper(
    slug="sgdr",
    title="SGDR: Stochastic Gradient Descent with Warm Restarts",
    arxiv="1608.03983",
    year=2017,
    room="optim",
    methods=("optim.WarmRestarts", "optim.Snapshots"),
    headline="3.14% error on CIFAR-10 and 16.21% on CIFAR-100 with wide residual networks and snapshots of cycle ends; the accuracy of "
    "the step schedule 2 to 4 times sooner",
)
RATES = spaced(0.05, 10**0.5, 3)
FIRST, CYCLES = 100, 3
ENDS = [FIRST * (2**i - 1) for i in range(1, CYCLES + 1)]


def restarts(optimizer: TorchOptimizer, unit: int) -> WarmRestarts:
    """Three cycles of 1, 2 and 4 units of steps."""
    return WarmRestarts(optimizer, FIRST, T_mult=2, steps_per_epoch=unit)


def constant(optimizer: TorchOptimizer) -> ConstantLR:
    """The base rate throughout."""
    return ConstantLR(optimizer, factor=1.0)


def drops(optimizer: TorchOptimizer, steps: int) -> MultiStepLR:
    """The paper's step schedule: a fifth of the rate from 30, 60 and 80 percent of the run on."""
    return MultiStepLR(optimizer, [round(share * steps) for share in (0.3, 0.6, 0.8)], gamma=0.2)


def run(problems: list[fl.Training], schedule: Schedule, steps: int, every: int,
        key: int) -> tuple[dict[int, Tensor], dict[int, Weights]]:
    """Losses on the training data ``(rates, seeds)``, and weights, every so many steps."""
    losses, seen = {}, {}

    def watch(step: int, weights: Weights) -> None:
        losses[step], seen[step] = training_losses(problems, weights), weights

    trained_networks(problems, Momentum, at_rates(RATES), steps, key, schedule=schedule, every=every, watch=watch)
    return losses, seen


def errors(problem: fl.Training, cycle_ends: list[dict[str, Tensor]]) -> tuple[float, float]:
    """Percent of the validation rows that the average prediction of all cycle ends gets wrong, and that the last one alone does."""
    snapshots, found = Snapshots(problem.model), []
    assert problem.validation is not None
    inputs, labels = problem.validation
    for states in (cycle_ends, cycle_ends[-1:]):
        snapshots.states = states
        chances = snapshots.ensemble(inputs, predict=lambda z: z.softmax(-1))
        found.append(100 * float((chances.argmax(-1) != labels).double().mean()))
    return found[0], found[1]


@claim("at the ends of its cycles the loss is within a factor 2.5 of a cosine made for that length, and at the second one a quarter "
       "below a constant rate, a step schedule and a cosine made for the whole run")
def anytime(scale: Scale, seed: int) -> Evidence:
    unit = 1 if scale is Scale.QUICK else 20
    middle, end = (t * unit for t in ENDS[1:])
    problems = [digits_mlp(s, widths=(32, 32), batch_size=8) for s in range(seed, seed + 5)]
    schedules: dict[str, tuple[int, Schedule]] = {
        "restarts": (end, partial(restarts, unit=unit)), "cosine": (end, cosine(end)), "short cosine": (middle, cosine(middle)),
        "constant": (end, constant), "step schedule": (end, partial(drops, steps=end))}
    runs = {name: run(problems, schedule, steps, FIRST * unit, seed) for name, (steps, schedule) in schedules.items()}
    best = {name: runs[name][0][steps].argmin(0) for name, (steps, _) in schedules.items()}

    def loss(name: str, step: int) -> Tensor:
        return runs[name][0][step].gather(0, best[name][None])[0]

    ends = [t * unit for t in ENDS]
    networks = [[runs["restarts"][1][t][int(best["restarts"][s])][s] for t in ends] for s in range(len(problems))]
    pairs = [errors(problem, states) for problem, states in zip(problems, networks, strict=True)]
    return Evidence([
        at_most(f"loss, restarts / cosine of {middle} steps, step {middle}",
                (loss("restarts", middle) / loss("short cosine", middle)).tolist(), 2.5),
        at_most(f"loss, restarts / cosine of {end} steps, step {end}", (loss("restarts", end) / loss("cosine", end)).tolist(), 2.5),
        *(at_most(f"loss, restarts / {name}, step {middle}", (loss("restarts", middle) / loss(name, middle)).tolist(), 0.75)
          for name in ("constant", "step schedule", "cosine")),
        at_most("points of validation error, average of the cycle ends above the last one", [mean - last for mean, last in pairs], 0.0),
        recorded("validation error of the last cycle end, percent", [last for _, last in pairs]),
        *(recorded(f"loss, {name}, step {middle}", loss(name, middle).tolist()) for name in schedules),
        *(recorded(f"loss, {name}, step {end}", loss(name, end).tolist()) for name in schedules if name != "short cosine"),
        recorded(f"loss, restarts, mid-cycle, step {middle + FIRST * unit}", loss("restarts", middle + FIRST * unit).tolist()),
    ], curves={name: (list(losses), [float(loss(name, t).median()) for t in losses]) for name, (losses, _) in runs.items()},
        axes=("steps", "training loss"),
        notes=[f"A 64-32-32-10 network on the digits, batches of 8, momentum 0.9, {end:,} steps in cycles of 1, 2 and 4 parts; losses "
               "on all training data. Three learning rates for every schedule, each at its best of its last step. The step schedule is "
               "the paper's: a fifth at 30, 60 and 80 percent. The full scale is this network for 20 times as long, not a wide "
               "residual network."])
