"""Gravity: bounded steps at any scale of the loss; otherwise momentum that grows, as steady and as good as its rivals or not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.claims._digits import NOTE, accuracy_figures, digits, digits_steps
from fallline.claims._networks import Weights, at_rates, trained_networks, training_losses
from fallline.claims._tuning import Factory, spaced
from fallline.core import tree
from fallline.optim import Adam, Gravity, Momentum, RMSprop

PAPER = Paper(
    slug="gravity",
    title="Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning",
    arxiv="2101.09192",
    year=2021,
    room="optim",
    methods=("optim.Gravity",),
    headline="two VGG networks on five sets of images, batch 128, 100 epochs, nothing tuned: steadier than Adam and RMSprop, and more "
    "accurate in validation where classes are many (CIFAR-100)",
)
LAST = 10


def multiplied(problem: fl.Training, factor: float) -> fl.Training:
    """The same network and data with a loss ``factor`` times as large."""
    return fl.Training(problem.model, lambda outputs, targets: factor * cross_entropy(outputs, targets), problem.data,
                       batch_size=problem.batch_size)


def longest_steps(problems: list[fl.Training], optimizer: Factory, rates: list[float], steps: int, key: int) -> tuple[Tensor, Weights]:
    """The largest move of a weight in one step, ``(rates, seeds)``, and where the networks end."""
    before = torch.stack([tree.flatten(p.x0) for p in problems]).repeat(len(rates), 1)
    longest = torch.zeros(len(before))

    def watch(step: int, weights: Weights) -> None:
        nonlocal before, longest
        after = torch.stack([tree.flatten(x) for row in weights for x in row])
        before, longest = after, torch.maximum(longest, (after - before).abs().amax(1))

    ends = trained_networks(problems, optimizer, at_rates(rates), steps, key, watch=watch)
    return longest.view(len(rates), -1), ends


@claim("with a loss a thousand times as large Gravity's steps stay bounded at all rates up to 1; momentum diverges at 3 of 5 or more")
def stability(scale: Scale, seed: int) -> Evidence:
    rates, steps = spaced(0.1, 10**0.5, 5), digits_steps(scale)
    problems = digits(seed)
    large = [multiplied(p, 1e3) for p in problems]
    # Without a gradient the first step is half of the first velocity.
    thrown, _ = longest_steps([multiplied(p, 0.0) for p in problems], Gravity, rates, 1, seed)
    first = 2 * thrown / torch.tensor(rates)[:, None]
    longest, ends = longest_steps(large, Gravity, rates, steps, seed)
    bound = torch.tensor(rates)[:, None] * first.clamp(min=1.0)
    losses = training_losses(problems, ends)
    start = training_losses(problems, [[p.x0 for p in problems]])
    momentum = training_losses(problems, trained_networks(large, Momentum, at_rates(rates), steps, seed))
    return Evidence([
        at_most("longest step / lr · max(|V₀|, 1), the largest over five rates", (longest / bound).amax(0).tolist(), 1.0),
        at_least("rates of five at which momentum diverges", (momentum > start).sum(0).double().tolist(), 3.0),
        recorded("rates of five at which Gravity ends above its first loss", (losses > start).sum(0).double().tolist()),
        recorded("Gravity's least training loss (of the loss itself)", losses.amin(0).tolist()),
    ], notes=["Five rates from 0.01 to 1 for both. Momentum diverges where its loss is not finite, or ends above the first one."])


def last_losses(problems: list[fl.Training], optimizer: Factory, rates: list[float], steps: int, key: int) -> tuple[Weights, Tensor]:
    """Where the networks end, and the training losses after each of the last ten steps: ``(10, rates, seeds)``."""
    found: list[Tensor] = []

    def watch(step: int, weights: Weights) -> None:
        if step > steps - LAST:
            found.append(training_losses(problems, weights))

    ends = trained_networks(problems, optimizer, at_rates(rates), steps, key, watch=watch)
    return ends, torch.stack(found)


@claim("on the digits Gravity is steadier than Adam, as accurate as RMSprop to half a point, and no other without its first throw")
def classification(scale: Scale, seed: int) -> Evidence:
    problems, steps = digits(seed), digits_steps(scale)
    rates = {Gravity: spaced(1.0, 10**0.5, 5), Adam: spaced(3e-3, 10**0.5, 5), RMSprop: spaced(1e-3, 10**0.5, 5)}
    ends, best, spread = {}, {}, {}
    for optimizer, grid in rates.items():
        ends[optimizer], losses = last_losses(problems, optimizer, grid, steps, seed)
        best[optimizer], chosen = losses[-1].min(0)
        spread[optimizer] = losses.std(0).gather(0, chosen[None])[0]
    still = training_losses(problems, trained_networks(problems, Gravity, at_rates(rates[Gravity]), steps, seed, alpha=0.0)).amin(0)
    return Evidence([
        at_most("deviation of the last ten training losses, Gravity / Adam", (spread[Gravity] / spread[Adam]).tolist(), 1.0),
        *accuracy_figures(problems, {"Gravity": ends[Gravity], "RMSprop": ends[RMSprop]}),
        between("training loss, Gravity / Gravity from rest (α = 0)", (best[Gravity] / still).tolist(), 0.8, 1.25),
        *(recorded(f"training loss, {optimizer.__name__}", found.tolist()) for optimizer, found in best.items()),
        *(recorded(f"deviation of the last ten training losses, {optimizer.__name__}", found.tolist())
          for optimizer, found in spread.items()),
    ], notes=["The last ten losses are those on all training data after each of the last ten steps, at the rate of the least one. "
              "While no gradient is near 1, Gravity from rest is momentum whose memory grows to β.",
              f"{NOTE}, not a VGG network on a hundred classes."])
