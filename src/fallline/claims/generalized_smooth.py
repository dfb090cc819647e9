"""Normalised descent under generalised smoothness: any start on a quartic, the exponent found, fewer samples with SPIDER."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, exactly, recorded
from fallline.claims._tuning import spaced
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.optim.step_sizes import OverGradientNorm
from fallline.solvers.generalized_smooth import BetaGD, NormalizedSPIDER, estimate_alpha

PAPER = Paper(
    slug="generalized-smooth",
    title="Generalized-Smooth Nonconvex Optimization is As Efficient As Smooth Nonconvex Optimization",
    arxiv="2303.02854",
    year=2023,
    room="solvers",
    methods=("solvers.BetaGD", "solvers.NormalizedSPIDER", "solvers.estimate_alpha"),
    headline="O(ε⁻²) steps deterministic and O(ε⁻³) samples stochastic, equal to the optimum for L-smooth functions; ahead of gradient "
    "descent and clipped variants on phase retrieval and distributionally robust optimization",
)
RADII, DIMENSION, MEASUREMENTS, CAP, TARGET = (1.0, 4.0, 16.0, 64.0), 20, 60, 20_000, 0.1


def sphere(seed: int, name: str) -> Tensor:
    """A unit vector."""
    u = torch.randn(DIMENSION, dtype=torch.float64, generator=Key(seed).fold(name).generator())
    return u / u.norm()


def measured(seed: int, count: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Gaussian rows a and b = (aᵀx*)² + noise, x* of length 1."""
    generator = Key(seed).fold("rows").generator()
    rows = torch.randn(count, DIMENSION, dtype=torch.float64, generator=generator)
    return rows, (rows @ sphere(seed, "solution")) ** 2 + noise * torch.randn(count, dtype=torch.float64, generator=generator)


def phase_gradient(x: Tensor, rows: Tensor, b: Tensor) -> Tensor:
    """∇ of Σ ((aᵢᵀx)² − bᵢ)² / (4 m) at every row of ``x``, ``(…, points, d)``."""
    inner = x @ rows.mT
    return ((inner**2 - b[..., None, :]) * inner) @ rows / rows.shape[-2]


def fewest(beta: float, rates: Sequence[float], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Steps until ‖∇f‖ < 0.1 at the best rate, ``(seeds, radii)``, infinite beyond the cap; and that rate.

    Every rate, start and seed is a row of one run, moved by the part that ``BetaGD`` is made of.
    """
    rows, b = (torch.stack(each) for each in zip(*(measured(s, MEASUREMENTS) for s in seeds), strict=True))
    starts = torch.stack([sphere(s, "start") for s in seeds])
    scale = torch.tensor(RADII, dtype=torch.float64).repeat(len(rates))
    lr = torch.tensor(rates, dtype=torch.float64).repeat_interleave(len(RADII))
    x, normalised = starts[:, None] * scale[:, None], OverGradientNorm(power=beta)
    found = torch.full((len(seeds), len(rates), len(RADII)), math.inf, dtype=torch.float64)
    for t in range(CAP + 1):
        g = phase_gradient(x, rows, b)
        squared = (g * g).sum(-1)
        done = (squared < TARGET**2).view(found.shape) & found.isinf()
        if bool(done.any()):
            found[done] = t
        if t % 100 == 0 and bool(found.amin(1).isfinite().all()):
            break
        x = x - (lr * normalised({"gradient_norm_squared": squared}, {}, None)[0])[..., None] * g
    steps, best = found.min(1)
    return steps, torch.tensor(rates, dtype=torch.float64)[best]


def steps_of_beta_gd(seed: int, radius: float, rate: float) -> float:
    """The same count for one start, by the optimizer itself."""
    rows, b = measured(seed, MEASUREMENTS)
    p = nn.Parameter(radius * sphere(seed, "start"))
    optimizer = BetaGD([p], lr=rate)
    for t in range(CAP + 1):
        p.grad = phase_gradient(p.detach()[None], rows, b)[0]
        if float(p.grad.norm()) < TARGET:
            return t
        optimizer.step()
    return math.inf


@claim("on phase retrieval β = 2/3 converges from every radius, from 64 in 60 times the steps from 1 or fewer; gradient descent fails "
       "from 16 on")
def any_start(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 10))
    ours, rates = fewest(2 / 3, spaced(0.1, 10**0.5, 13), seeds)
    plain, _ = fewest(0.0, spaced(1e-4, 10**0.5, 13), seeds)
    itself = torch.tensor([steps_of_beta_gd(s, 1.0, float(rate)) for s, rate in zip(seeds, rates[:, 0], strict=True)])
    return Evidence([
        at_most("steps at β = 2/3, the largest over the radii", ours.amax(1).tolist(), CAP),
        at_most("steps at β = 2/3, from 64 / from 1", (ours[:, -1] / ours[:, 0]).tolist(), 60.0),
        *(at_most(f"gradient descent converges from {r:g}", plain[:, i].isfinite().double().tolist(), 0.0)
          for i, r in enumerate(RADII) if r >= 16),
        exactly("steps of BetaGD / steps in the batched run, from 1", (itself / ours[:, 0]).tolist(), 1.0),
        *(recorded(f"steps at β = 2/3 from {r:g}", ours[:, i].tolist()) for i, r in enumerate(RADII)),
        *(recorded(f"steps of gradient descent from {r:g}", plain[:, i].tolist()) for i, r in enumerate(RADII)),
    ], curves={"β = 2/3": (RADII, ours.median(0).values.tolist())}, axes=("radius of the start", "steps to ‖∇f‖ < 0.1"),
        notes=["Gaussian measurements without noise, m = 60, d = 20, ‖x*‖ = 1, one direction of the start for all radii of a seed; the "
               "best of 13 rates half a decade apart, from 1e-4 to 100 and, for gradient descent, 1e-7 to 0.1; up to 20,000 steps. "
               "Converges is 1 where any rate gets there."])


def walk(seed: int, low: float, high: float, count: int = 400) -> list[Tensor]:
    """Points whose direction wanders while their length grows from ``low`` to ``high``."""
    generator, u, points = Key(seed).fold("walk").generator(), sphere(seed, "start"), []
    for radius in np.geomspace(low, high, count):
        u = u + 0.05 * torch.randn(DIMENSION, dtype=torch.float64, generator=generator)
        u = u / u.norm()
        points.append(radius * u)
    return points


@claim("the exponent found is that of theory to 0.1: 2/3 on phase retrieval, 0 on a quadratic, 1 on a sum of exponentials")
def exponents(scale: Scale, seed: int) -> Evidence:
    curvature = torch.logspace(-1, 0, DIMENSION, dtype=torch.float64)
    found: dict[str, list[float]] = {"phase retrieval": [], "quadratic": [], "Σ cosh": []}
    for s in range(seed, seed + (3 if scale is Scale.QUICK else 10)):
        rows, b = measured(s, MEASUREMENTS)
        kinds: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
            "phase retrieval": (partial(phase_gradient, rows=rows, b=b), 100.0),
            "quadratic": (curvature.mul, 100.0), "Σ cosh": (torch.sinh, 30.0)}
        for name, (gradient, high) in kinds.items():
            points = walk(s, 0.1, high)
            found[name].append(estimate_alpha(points, list(gradient(torch.stack(points)))).alpha)
    return Evidence([
        between("α on phase retrieval", found["phase retrieval"], 2 / 3 - 0.1, 2 / 3 + 0.1),
        at_most("α on a quadratic", found["quadratic"], 0.1),
        between("α on Σ cosh", found["Σ cosh"], 0.9, 1.1),
    ], notes=["400 points whose length grows from 0.1 to 100 (30 for Σ cosh) while their direction wanders; d = 20; the quadratic has "
              "condition number 10."])


def norm_at(x: Tensor, rows: Tensor, b: Tensor) -> float:
    """‖∇f(x)‖."""
    return float(phase_gradient(x[None], rows, b).norm())


def samples_to(problem: fl.Problem, norm: Callable[[Tensor], float], epsilon: float, key: int, spider: bool) -> float:
    """Samples until ‖∇f‖ ≤ ε at the best of three step sizes, by SPIDER or, with a large sample in every step, normalised SGD."""
    best, few, many = 1e7, math.ceil(4 / epsilon), math.ceil(16 / epsilon**2)

    def reached(moment: Moment) -> bool:
        return norm(moment.report.resolve()) <= epsilon

    for c in (0.03, 0.1, 0.3):
        method = NormalizedSPIDER(lr=c * epsilon, q=few if spider else 1, b_small=few, b_big=many)
        result = fl.solve(problem, method, fl.Budget(samples=int(best)), key=key, callback=reached)
        best = min(best, result.counts["samples"]) if result.status == "stopped" else best
    return best if best < 1e7 else math.inf


@claim("with 5,000 noisy measurements SPIDER's samples grow slower with 1/ε than those of normalised SGD")
def samples(scale: Scale, seed: int) -> Evidence:
    epsilons = (1.0, 0.5, 0.25, 0.125) if scale is Scale.QUICK else (1.0, 0.5, 0.25, 0.125, 0.0625)
    found: dict[bool, list[list[float]]] = {True: [], False: []}
    for s in range(seed, seed + 3):
        rows, b = measured(s, 5_000, noise=1.0)
        problem = fl.FiniteSum(lambda x, a, y: ((a @ x) ** 2 - y).square().mean() / 4, (rows, b), sphere(s, "start"))
        norm = partial(norm_at, rows=rows, b=b)
        for spider, rows_of in found.items():
            rows_of.append([samples_to(problem, norm, eps, s, spider) for eps in epsilons])
    spent = {spider: torch.tensor(each) for spider, each in found.items()}
    slopes = {spider: np.polyfit(-np.log(epsilons), each.log().T.numpy(), 1)[0] for spider, each in spent.items()}
    return Evidence([
        at_least("slope of log samples in log 1/ε, normalised SGD − SPIDER", (slopes[False] - slopes[True]).tolist(), 0.0),
        recorded("slope, SPIDER (theory: at most 3)", slopes[True].tolist()),
        recorded("slope, normalised SGD (theory: at most 4)", slopes[False].tolist()),
        *(recorded(f"samples, normalised SGD / SPIDER, ε = {eps:g}", (spent[False] / spent[True])[:, i].tolist())
          for i, eps in enumerate(epsilons)),
    ], curves={name: ([1 / eps for eps in epsilons], spent[spider].median(0).values.tolist())
               for name, spider in (("SPIDER", True), ("normalised SGD", False))}, axes=("1/ε", "samples to ‖∇f‖ ≤ ε"),
        notes=["d = 20, noise of deviation 1, start on the unit sphere; q = b_small = 4/ε, large samples of 16/ε², steps of length c ε "
               "at the best of c = 0.03, 0.1, 0.3 for both. Normalised SGD takes a large sample in every step. The full scale has one "
               "more ε; it is not distributionally robust optimization."])
