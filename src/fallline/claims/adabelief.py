"""AdaBelief: long steps where the gradient is as expected, Adam's where it is not."""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.claims._digits import NOTE, accuracy_figures, digits, digits_steps
from fallline.claims._drift import displacement
from fallline.claims._networks import at_rates, trained_networks
from fallline.claims._tuning import spaced, steps_until
from fallline.optim import AdaBelief, Adam

PAPER = Paper(
    slug="adabelief",
    title="AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
    arxiv="2010.07468",
    year=2020,
    room="optim",
    methods=("optim.AdaBelief",),
    headline="70.08 % of ImageNet with a ResNet-18, comparable to gradient descent; the best of the adaptive methods compared on CIFAR "
    "and in the perplexity of LSTMs; a better FID than tuned Adam for a Wasserstein GAN on CIFAR-10",
)
START = torch.tensor([3.0, 3.0], dtype=torch.float64)


def ramp(x: Tensor) -> Tensor:
    """|x| + |y| / 10."""
    return x[0].abs() + x[1].abs() / 10


@claim("down a ramp of constant slope AdaBelief needs at most half of Adam's steps")
def constant_gradient(scale: Scale, seed: int) -> Evidence:
    figures: list[Figure] = []
    for lr in (1e-3, 1e-2):
        steps = {optimizer.__name__: steps_until(lambda x: bool(ramp(x) <= 0.05 * ramp(START)), fl.Smooth(ramp, START),
                                                 fl.Train(optimizer, lr=lr), 5_000) for optimizer in (AdaBelief, Adam)}
        figures += [at_most(f"steps, AdaBelief / Adam, lr {lr:g}", steps["AdaBelief"] / steps["Adam"], 0.5),
                    *(recorded(f"steps, {name}, lr {lr:g}", count) for name, count in steps.items())]
    return Evidence(figures, notes=["To 5 % of the first value of |x| + |y| / 10 from (3, 3). Both scales are the same."])


@claim("under a drift AdaBelief goes at least 5 times as far as Adam when there is little noise, and about as far when there is much")
def belief(scale: Scale, seed: int) -> Evidence:
    deviations = (0.1, 0.3, 1.0, 3.0, 10.0)
    ours, adam = (displacement(optimizer, deviations, 2_000, seed, lr=1e-3) for optimizer in (AdaBelief, Adam))
    ratios = ours / adam
    return Evidence([
        at_least("displacement, AdaBelief / Adam, σ = 0.1", ratios[0].tolist(), 5.0),
        between("displacement, AdaBelief / Adam, σ = 10", ratios[-1].tolist(), 0.9, 1.6),
    ], curves={"AdaBelief": (deviations, ours.mean(1).tolist()), "Adam": (deviations, adam.mean(1).tolist())},
        axes=("σ", "displacement"),
        notes=["g = 1 + σ ξ, 2,000 steps at lr = 0.001; means over 64 replicas a seed. Both scales are the same."])


@claim("on the digits AdaBelief's accuracy is at most half a point below Adam's")
def classification(scale: Scale, seed: int) -> Evidence:
    problems, settings = digits(seed), at_rates(spaced(3e-3, 10**0.5, 5))
    sides = {optimizer.__name__: trained_networks(problems, optimizer, settings, digits_steps(scale), seed)
             for optimizer in (AdaBelief, Adam)}
    return Evidence(accuracy_figures(problems, sides),
                    notes=[f"{NOTE}, not a ResNet on images of CIFAR's size and a Wasserstein GAN."])
