"""XGrad: a lower training loss than Adam's, none gained where steps are small, and Nesterov's method with a shorter range of rates."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_most, between, claim, recorded
from fallline.claims._digits import digits
from fallline.claims._networks import Weights, at_rates, trained_networks, training_losses
from fallline.claims._tuning import Factory, spaced
from fallline.core.keys import Key
from fallline.optim import Adam, AdamW, Momentum, XGrad

PAPER = Paper(
    slug="xgrad",
    title="XGrad: Boosting Gradient-Based Optimizers With Weight Prediction",
    arxiv="2305.18240",
    year=2023,
    room="optim",
    methods=("optim.XGrad",),
    headline="higher accuracy than momentum, Adam and AdamW on image, language and translation models in nearly every cell",
)
RATES = spaced(3e-3, 10**0.5, 5)
MU = 0.9


def losses(problems: list[fl.Training], optimizer: Factory, rates: list[float], every: int, seed: int) -> Tensor:
    """Geometric mean of the training losses after 1, 2, 3 and 4 times ``every`` steps: ``(rates, seeds)``."""
    logarithms: list[Tensor] = []

    def watch(step: int, weights: Weights) -> None:
        if step:
            logarithms.append(training_losses(problems, weights).log())

    trained_networks(problems, optimizer, at_rates(rates), 4 * every, seed, every=every, watch=watch)
    return torch.stack(logarithms).mean(0).exp()


@claim("on the digits XGrad's training loss is at most 0.85 times Adam's, and within 3 % of it at learning rates up to 0.001")
def training(scale: Scale, seed: int) -> Evidence:
    quick = scale is Scale.QUICK
    problems, every = digits(seed, 3 if quick else 5), 50 if quick else 500
    bases = {Adam: RATES} if quick else {Adam: RATES, AdamW: RATES, Momentum: spaced(0.1, 10**0.5, 5)}
    figures: list[Figure] = []
    for base, rates in bases.items():
        sides = {f"XGrad over {base.__name__}": losses(problems, functools.partial(XGrad, base=base), rates, every, seed),
                 base.__name__: losses(problems, base, rates, every, seed)}
        ours, plain = sides.values()
        figures.append(at_most(f"training loss, {' / '.join(sides)}", (ours.amin(0) / plain.amin(0)).tolist(), 0.85))
        figures += [between(f"training loss, {' / '.join(sides)}, lr {lr:.2g}", (ours[i] / plain[i]).tolist(), 0.97, 1.03)
                    for i, lr in enumerate(rates) if lr <= 1e-3]
        figures += [recorded(f"training loss, {name}", found.amin(0).tolist()) for name, found in sides.items()]
        figures += [recorded(f"best learning rate, {name}", [rates[i] for i in found.argmin(0)]) for name, found in sides.items()]
    return Evidence(figures, notes=[
        f"Geometric means of the losses on all training data after {', '.join(f'{i * every:,}' for i in (1, 2, 3))} and {4 * every:,} "
        "steps, each side at the best of its five learning rates for this mean. The full scale is this network with five seeds and "
        "all three bases, not a ResNet and a transformer."])


@claim("over heavy ball with s = μ the predicted points are those of Nesterov's method")
def nesterov(scale: Scale, seed: int) -> Evidence:
    curvature = torch.logspace(-2, 0, 20, dtype=torch.float64)
    ours, theirs = (torch.randn(20, dtype=torch.float64, generator=Key(seed).generator()).requires_grad_() for _ in range(2))
    optimizers = {ours: XGrad([ours], Momentum, steps=MU, lr=0.5, momentum=MU),
                  theirs: torch.optim.SGD([theirs], lr=0.5, momentum=MU, nesterov=True)}
    difference = 0.0
    for _ in range(500):
        for x, optimizer in optimizers.items():
            x.grad = curvature * x.detach()
            optimizer.step()
        difference = max(difference, float((ours - theirs).detach().norm()))
    return Evidence([at_most("largest distance to the iterates of torch's own", difference, 1e-10)],
                    notes=["500 steps on a quadratic of 20 variables with curvatures from 0.01 to 1, at learning rate 0.5 and momentum "
                           "0.9. Both scales are the same."])


def largest_stable(s: float) -> float:
    """The rate at which the matrix of (θ, v) reaches spectral radius 1, for curvature 1."""
    low, high = 1e-3, 10.0
    for _ in range(60):
        rate = (low + high) / 2
        step = torch.tensor([[1 - rate, -MU + s * rate], [rate, MU - s * rate]], dtype=torch.float64)
        low, high = (rate, high) if torch.linalg.eigvals(step).abs().max() < 1 else (low, rate)
    return low


def measured_stable(s: float, seed: int) -> float:
    """The largest of 600 rates up to which every run ends below where it began; a rate is a factor of the loss."""
    rates = torch.logspace(-1.5, 1, 600, dtype=torch.float64)
    problem = fl.Smooth(lambda x: (rates * x**2).sum() / 2, torch.ones(600, dtype=torch.float64), gradient=lambda x: rates * x)
    method = fl.Train(XGrad, base=Momentum, steps=s, lr=1.0, momentum=MU, nonfinite="ignore")
    state = method.init(problem, Key(seed))
    for _ in range(1_000):  # not by the driver, which ends a run that is not finite
        state = method.step(problem, state)
    stable = method.report(problem, state).resolve().abs() < 1
    return float(rates[int(stable.int().cumprod(0).sum()) - 1])


@claim("the largest stable learning rate falls with s, as the spectral radius of a 2 × 2 matrix says to 2 %")
def stability(scale: Scale, seed: int) -> Evidence:
    ahead = (0.0, 0.5, MU, 1.0, 2.0)
    expected, found = [largest_stable(s) for s in ahead], [measured_stable(s, seed) for s in ahead]
    return Evidence([
        at_most("largest ratio of the stable rates of neighbouring s", max(b / a for a, b in itertools.pairwise(found)), 0.999),
        at_most("largest relative difference to the matrix's", max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)), 0.02),
        *(recorded(f"largest stable rate times curvature, s = {s:g}", rate) for s, rate in zip(ahead, found, strict=True)),
    ], notes=["Over heavy ball with momentum 0.9 on a quadratic; 600 rates 1 % apart, s of 0, 0.5, 0.9, 1 and 2. Both scales are the "
              "same."])
