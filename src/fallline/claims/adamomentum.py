"""AdaMomentum: the average squared instead of the squares averaged, so that noise does not shorten the step."""

from __future__ import annotations

import torch

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, recorded
from fallline.claims._digits import NOTE, accuracy_figures, digits, digits_steps
from fallline.claims._drift import displacement
from fallline.claims._networks import at_rates, trained_networks, validation
from fallline.claims._tuning import spaced
from fallline.core.keys import Key
from fallline.core.operators import LinearOperator, power_iteration
from fallline.core.tree import Tree
from fallline.optim import Adam, AdaMomentum

PAPER = Paper(
    slug="adamomentum",
    title="Rethinking Adam: A Twofold Exponential Moving Average Approach",
    arxiv="2106.11514",
    year=2021,
    room="optim",
    methods=("optim.AdaMomentum",),
    headline="reported as the best adaptive method, at or above gradient descent, for images of CIFAR and ImageNet, language models "
    "with LSTMs and transformers, and GANs; theory of a faster escape to flat minima than Adam's, and of convergence",
)


@claim("under a drift with much noise AdaMomentum goes at least 3 times as far as Adam, and without noise as far to 5 %")
def noise(scale: Scale, seed: int) -> Evidence:
    deviations = (0.0, 0.1, 1.0, 3.0, 10.0)
    ours, adam = (displacement(optimizer, deviations, 2_000, seed, lr=1e-3) for optimizer in (AdaMomentum, Adam))
    ratios = ours / adam
    return Evidence([
        at_least("displacement, AdaMomentum / Adam, σ = 10", ratios[-1].tolist(), 3.0),
        between("displacement, AdaMomentum / Adam, σ = 0", float(ratios[0, 0]), 0.95, 1.05),
        recorded("displacement, AdaMomentum, σ = 10", ours[-1].tolist()),
        recorded("displacement, Adam, σ = 10", adam[-1].tolist()),
    ], curves={"AdaMomentum": (deviations, ours.mean(1).tolist()), "Adam": (deviations, adam.mean(1).tolist())},
        axes=("σ", "displacement"),
        notes=["g = 1 + σ ξ, 2,000 steps at lr = 0.001; means over 64 replicas a seed. Both scales are the same."])


def sharpness(problem: fl.Training, x: Tree, key: int) -> float:
    """The Hessian's eigenvalue of the largest modulus on all training data, by 20 power iterations."""
    operator = LinearOperator.from_function(lambda v: problem.hvp(x, v), x)
    return power_iteration(operator, max_iterations=20, tol=1e-12, generator=Key(key).generator()).value


@claim("on the digits AdaMomentum's accuracy is at most half a point below Adam's, and its minimum no sharper")
def classification(scale: Scale, seed: int) -> Evidence:
    problems = digits(seed, batch_size=16)
    rates = {AdaMomentum: spaced(1e-3, 10**0.5, 5), Adam: spaced(3e-3, 10**0.5, 5)}
    sides, sharp = {}, {}
    for optimizer, grid in rates.items():
        weights = trained_networks(problems, optimizer, at_rates(grid), digits_steps(scale), seed)
        best = validation(problems, weights, "accuracy").argmax(0).tolist()
        sides[optimizer.__name__] = weights
        sharp[optimizer] = torch.tensor([sharpness(problems[s], weights[i][s], seed) for s, i in enumerate(best)])
    return Evidence([
        *accuracy_figures(problems, sides),
        at_most("top Hessian eigenvalue, AdaMomentum / Adam", (sharp[AdaMomentum] / sharp[Adam]).tolist(), 1.0),
        *(recorded(f"top Hessian eigenvalue, {optimizer.__name__}", found.tolist()) for optimizer, found in sharp.items()),
    ], notes=[f"Batches of 16; AdaMomentum's rates are a third of Adam's. The sharpness is that of the most accurate network. "
              f"{NOTE}, not a ResNet-18 for 100 epochs."])
