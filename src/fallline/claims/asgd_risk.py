"""Accelerated SGD on linear regression: what it gains where curvature is small, and what that costs where it is large and in noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.core.keys import Key
from fallline.optim import AcceleratedSGD, asgd_parameters, risk_report

PAPER = Paper(
    slug="asgd-risk",
    title="Risk Bounds of Accelerated SGD for Overparameterized Linear Regression",
    arxiv="2311.14222",
    year=2024,
    room="optim",
    methods=("optim.AcceleratedSGD",),
    headline="the bias of accelerated SGD decays faster than SGD's in subspaces of small eigenvalues and slower in large ones, "
    "and its variance is always larger; in the strongly convex case its bias bound improves on the best known",
)
KAPPA, SMALL, TOP = 8, 20, 2
SIDES = ("ASGD", "SGD")


def power_law(dimension: int, exponent: float = 2.0) -> Tensor:
    """λ_i = i^(−exponent)."""
    return torch.arange(1, dimension + 1, dtype=torch.float64) ** -exponent


def beginnings(dimension: int) -> Tensor:
    """First errors ``(3, d)``: in the small directions, in the top ones, none."""
    index = torch.arange(1, dimension + 1)
    return torch.stack([index > SMALL, index <= TOP, index < 1]).double()


def both(spectrum: Tensor, start: Tensor, tail_start: int | None) -> tuple[list[nn.Parameter], AcceleratedSGD]:
    """Both methods from the same start in one optimizer: γ = δ is gradient descent."""
    found = asgd_parameters(spectrum, KAPPA)
    params = [nn.Parameter(start.clone()) for _ in SIDES]
    groups = [{"params": [params[0]], **found}, {"params": [params[1]], **found, "dual_step": found["primal_step"]}]
    return params, AcceleratedSGD(groups, tail_start=tail_start)


def excess_risks(spectrum: Tensor, steps: int, seeds: Sequence[int], replicas: int) -> Tensor:
    """Mean excess risk over replicas, ``(sides, seeds, 3)``, at w* = 0; noise of variance 1 in the third setting only.

    Every replica of every setting is a row, and draws a sample of its own in every step; both sides see the same ones.
    """
    deviation = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    d = len(spectrum)
    start = beginnings(d)[:, None].expand(len(seeds), -1, replicas, -1)
    params, optimizer = both(spectrum, start, tail_start=steps // 2)
    generators = [Key(s).fold("samples").generator() for s in seeds]
    for _ in range(steps):
        drawn = torch.stack([torch.randn(3, replicas, d + 1, dtype=torch.float64, generator=g) for g in generators])
        x, y = drawn[..., :d] * spectrum.sqrt(), drawn[..., d] * deviation
        for p in params:
            p.grad = x * ((x * p.detach()).sum(-1) - y)[..., None]
        optimizer.step()
    with optimizer.solution():
        return torch.stack([(spectrum * p.detach() ** 2).sum(-1).mean(-1) / 2 for p in params])


@claim("excess risk against SGD's: smaller if the error is in small directions, larger if it is in the top two or in the labels")
def three_signs(scale: Scale, seed: int) -> Evidence:
    d, lengths = 64, (250, 500, 1000, 2000)
    replicas, count = (25, 3) if scale is Scale.QUICK else (100, 10)
    seeds, spectrum = range(seed, seed + count), power_law(d)
    risks = [excess_risks(spectrum, n, seeds, replicas) for n in lengths]
    ratios = torch.stack([asgd / sgd for asgd, sgd in risks])
    at = dict(zip(lengths, ratios, strict=True))[2000].T.tolist()
    exact = [risk_report(spectrum, start, sigma, 2000, kappa=KAPPA)
             for start, sigma in zip(beginnings(d), (0.0, 0.0, 1.0), strict=True)]
    names = (f"error in directions beyond {SMALL}", f"error in the top {TOP}", "noise alone")
    return Evidence([
        at_most(f"risk, ASGD / SGD, {names[0]}, N = 2000", at[0], 0.4),
        at_least(f"risk, ASGD / SGD, {names[1]}, N = 2000", at[1], 2.0),
        at_least(f"risk, ASGD / SGD, {names[2]}, N = 2000", at[2], 1.5),
        at_least(f"risk, ASGD / SGD, {names[2]}, least over N", ratios[..., 2].amin(0).tolist(), 1.0),
        *(recorded(f"the same in expectation, {name}, N = 2000", report.asgd.total / report.sgd.total)
          for name, report in zip(names, exact, strict=True)),
    ], curves={name: (lengths, ratios[..., i].median(1).values.tolist()) for i, name in enumerate(names)},
        axes=("steps", "excess risk, ASGD / SGD"),
        notes=[f"Gaussian features, d = {d}, eigenvalues i⁻², κ̃ = {KAPPA}, the last half of N steps averaged, means over {replicas} "
               f"replicas for each of {count} seeds; first errors of 1 in each of the directions named. Both sides take the same δ "
               "and the same samples. The full scale of d = 2,000 is the exact recursion below."])


def mean_rates(spectrum: Tensor, steps: int, every: int = 20) -> Tensor:
    """Fitted decay a step of the expected error in every direction, ``(sides, d)``.

    The rule is linear in the gradient, so exact gradients give its mean.
    """
    params, optimizer = both(spectrum, torch.ones_like(spectrum), tail_start=None)
    seen = []
    for t in range(1, steps + 1):
        for p in params:
            p.grad = spectrum * p.detach()
        optimizer.step()
        if t % every == 0:
            with optimizer.solution():
                seen.append(torch.stack([p.detach().abs().log() for p in params]))
    times = np.arange(1, len(seen) + 1) * every
    return -torch.from_numpy(np.polyfit(times, torch.stack(seen).flatten(1).numpy(), 1)[0]).reshape(len(SIDES), -1)


@claim("the expected error decays faster than SGD's in every direction of small eigenvalue")
def rates_by_direction(scale: Scale, seed: int) -> Evidence:
    d = 64 if scale is Scale.QUICK else 2000
    spectrum = power_law(d)
    asgd, sgd = mean_rates(spectrum, 2000)
    faster = asgd > sgd
    return Evidence([
        exactly(f"share of directions beyond {SMALL} with a larger fitted rate", float(faster[SMALL:].double().mean()), 1.0),
        recorded(f"the same of the top {TOP}", float(faster[:TOP].double().mean())),
        recorded(f"smallest ratio of rates beyond {SMALL}", float((asgd / sgd)[SMALL:].min())),
    ], curves={side: (spectrum.tolist(), rates.tolist()) for side, rates in zip(SIDES, (asgd, sgd), strict=True)},
        axes=("eigenvalue", "decay a step"),
        notes=["Slopes of the logarithm of the expected error over 2,000 steps from an error of 1 in every direction. The rule is "
               "linear in the gradient, so its mean follows from exact gradients."])


@claim("in expectation the side that wins depends on where the error is: SGD for the top two directions, ASGD beyond the twentieth")
def phase_diagram(scale: Scale, seed: int) -> Evidence:
    d, exponents = (64, (1.5, 2.0, 3.0)) if scale is Scale.QUICK else (2000, (1.25, 1.5, 1.75, 2.0, 2.5, 3.0))
    found = []
    for exponent in exponents:
        reports = [risk_report(power_law(d, exponent), start, 0.0, 2000, kappa=KAPPA) for start in beginnings(d)[:2]]
        found.append([report.asgd.total / report.sgd.total for report in reports])
    small, top = zip(*found, strict=True)
    return Evidence([
        at_most(f"expected risk, ASGD / SGD, error beyond {SMALL}, largest over the exponents", max(small), 1.0),
        at_least(f"expected risk, ASGD / SGD, error in the top {TOP}, least over the exponents", min(top), 1.0),
        recorded(f"expected risk, ASGD / SGD, error beyond {SMALL}, exponent 2", dict(zip(exponents, small, strict=True))[2.0]),
        recorded(f"expected risk, ASGD / SGD, error in the top {TOP}, exponent 2", dict(zip(exponents, top, strict=True))[2.0]),
    ], curves={f"error beyond {SMALL}": (exponents, small), f"error in the top {TOP}": (exponents, top)},
        axes=("exponent of the spectrum", "expected risk, ASGD / SGD"),
        notes=[f"Eigenvalues i^(−exponent), d = {d}, κ̃ = {KAPPA}, no noise, N = 2000, from the exact recursion of second moments. In "
               "high dimension most small directions are out of both methods' reach in so many steps, and the gain is less."])
