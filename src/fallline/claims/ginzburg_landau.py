"""Momentum for the Ginzburg-Landau energy: steps against the gradient flow over time steps, the energy's fall, labels on a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, recorded
from fallline.solvers import GinzburgLandau, MomentumSplitting, neighbor_laplacian

PAPER = Paper(
    slug="ginzburg-landau",
    title="Momentum-based minimization of the Ginzburg-Landau functional on Euclidean spaces and graphs",
    arxiv="2501.00389",
    year=2025,
    room="solvers",
    methods=("solvers.GinzburgLandau", "solvers.MomentumSplitting", "solvers.graph_ssl"),
    headline="momentum leads to faster convergence if the time step is large but not too large; hyperbolic phenomena such as loss of "
    "regularity are not seen at practical steps; useful for semi-supervised classification on graphs",
)
TAUS = (0.01, 0.1, 1.0, 10.0)
SEEDS = 3


def circle(n: int, dimensions: int = 2, radius: float = 0.35) -> fl.Problem:
    """A ball with the profile of an interface."""
    eps = 4 / n
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    distance = torch.stack(torch.meshgrid(*[x] * dimensions, indexing="ij")).square().sum(0).sqrt()
    return GinzburgLandau((n,) * dimensions, eps=eps, x0=torch.tanh((radius - distance) / (math.sqrt(2) * eps)))


def energies(problem: fl.Problem, method: fl.Method, steps: int, level: float = -math.inf) -> tuple[list[float], Tensor]:
    """The energy at steps 0, 1, 2, … until it is below the level, and the last field."""
    values: list[float] = []

    def below(moment: fl.core.Moment) -> bool:
        values.append(problem.observe(moment.report.resolve())["value"])
        return values[-1] < level

    end = fl.solve(problem, method, fl.Budget(steps=steps), callback=below).x
    return values, end


def both(problem: fl.Problem, tau: float, steps: int, level: float) -> tuple[list[float], list[float]]:
    """The energies of the flow and with momentum."""
    flow, fast = (energies(problem, MomentumSplitting(tau, momentum), steps, level)[0] for momentum in (None, "fista"))
    return flow, fast


def ratio(flow: Sequence[float], fast: Sequence[float], level: float) -> float:
    """Steps of the flow over those with momentum; infinite or 0 where one does not get there."""
    taken = [len(each) - 1 if each[-1] < level else math.inf for each in (flow, fast)]
    return 1.0 if taken[0] == taken[1] else taken[0] / taken[1]


def rise(values: Sequence[float]) -> float:
    """The largest increase from one step to the next."""
    return max(b - a for a, b in pairwise(values))


@claim("momentum takes 1.3 times fewer steps than the flow at every time step, 2 times on a circle, the less so the larger the step; "
       "only the flow's energy always falls")
def steps(scale: Scale, seed: int) -> Evidence:
    n, limit = (64, 1_000) if scale is Scale.QUICK else (512, 20_000)
    start = circle(n)
    fields = [GinzburgLandau((64, 64), eps=4 / 64, key=s) for s in range(seed, seed + SEEDS)]
    round_ones = {tau: both(start, tau, limit, 0.02) for tau in TAUS}
    random_ones = {tau: [both(p, tau, limit, 0.15) for p in fields] for tau in TAUS}
    gains = {tau: ratio(*pair, 0.02) for tau, pair in round_ones.items()}
    random_gains = {tau: [ratio(*pair, 0.15) for pair in pairs] for tau, pairs in random_ones.items()}
    runs = [*round_ones.values(), *(pair for pairs in random_ones.values() for pair in pairs)]
    figures: list[Figure] = []
    for tau in TAUS:
        figures += [at_least(f"steps, flow / momentum, circle, τ = {tau:g}", gains[tau], 2.0),
                    at_least(f"steps, flow / momentum, random, τ = {tau:g}", random_gains[tau], 1.3)]
    figures += [
        at_most("largest rise of the ratio from one τ to the next, circle", rise(list(gains.values())), 0.0),
        at_most("largest rise of the ratio from one τ to the next, random",
                [rise([random_gains[tau][i] for tau in TAUS]) for i in range(SEEDS)], 0.0),
        at_most("largest rise of the energy, flow", max(rise(flow) for flow, _ in runs), 1e-10),
        at_least("largest rise of the energy, momentum", max(rise(fast) for _, fast in runs), 1e-6),
        *(recorded(f"steps of the flow, circle, τ = {tau:g}", len(round_ones[tau][0]) - 1) for tau in TAUS),
    ]
    if scale is Scale.FULL:
        ball = circle(64, dimensions=3)
        figures += [recorded(f"steps, flow / momentum, ball in 3-D, τ = {tau:g}", ratio(*both(ball, tau, limit, 0.02), 0.02))
                    for tau in TAUS]
    drawn = round_ones[TAUS[0]]
    return Evidence(figures, curves={f"{label}, τ = {TAUS[0]:g}": (list(range(len(each))), each)
                                     for label, each in zip(("flow", "momentum"), drawn, strict=True)}, axes=("step", "energy"),
                    notes=[f"Circle of radius 0.35 on {n}² points with ε = 4/{n} until E < 0.02, and {SEEDS} random fields of ±0.1 "
                           "on 64² until E < 0.15. Full: 512² and a ball on 64³."])


def three_or_eight(seed: int) -> tuple[fl.Problem, Tensor, Tensor]:
    """The graph of 10 neighbours of the digits 3 and 8 with 5 % of the labels, all labels ±1, and which were not given."""
    digits = load_digits()
    chosen = np.isin(digits.target, (3, 8))
    signs = torch.where(torch.as_tensor(digits.target[chosen]) == 8, 1.0, -1.0).double()
    hidden = torch.rand(len(signs), generator=fl.Key(seed).fold("labels").generator()).argsort() >= round(0.05 * len(signs))
    given = torch.where(hidden, 0.0, signs)
    return GinzburgLandau(laplacian=neighbor_laplacian(digits.data[chosen], 10), eps=1.0, labels=given), signs, hidden


@claim("on digits 3 against 8 with 5 % of the labels momentum is as accurate as the flow within a point, and 1.5 times faster")
def graph(scale: Scale, seed: int) -> Evidence:
    seeds, limit = 5, 500 if scale is Scale.QUICK else 10_000
    figures: list[Figure] = []
    for tau in TAUS:
        ratios, differences, accuracies = [], [], []
        for s in range(seed, seed + seeds):
            problem, signs, hidden = three_or_eight(s)
            runs = [energies(problem, MomentumSplitting(tau, momentum), limit) for momentum in (None, "fista")]
            ends = [100 * float((u.sign() == signs)[hidden].double().mean()) for _, u in runs]
            level = 1.001 * min(values[-1] for values, _ in runs)
            taken = [next((k for k, value in enumerate(values) if value <= level), limit) for values, _ in runs]
            ratios.append(taken[0] / taken[1])
            differences.append(abs(ends[0] - ends[1]))
            accuracies.append(ends[1])
        figures += [at_least(f"steps, flow / momentum, τ = {tau:g}", ratios, 1.5),
                    at_most(f"points of accuracy apart, τ = {tau:g}", differences, 1.0),
                    recorded(f"accuracy with momentum, τ = {tau:g}", accuracies)]
    return Evidence(figures, notes=[f"357 digits, ε = ω = 1, {seeds} draws of the labels; steps until the energy is within 0.1 % of "
                                    f"the lower of both after {limit:,} steps, and that many where a run does not get there: at "
                                    "τ = 0.01 the flow is still falling after 500. Accuracy is that on the other 95 %, after all "
                                    "steps."])
