"""Adam and RMSProp set by their horizon: they converge, and stay finite, where curvature grows with the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import Factory, side_by_side
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.optim import SGD, AdamGS, GeneralizedSmoothness, RMSPropGS, fit_generalized_smoothness

PAPER = Paper(
    slug="adam-generalized-smooth",
    title="Convergence Guarantees for RMSProp and Adam in Generalized-smooth Non-convex Optimization with Affine Noise Variance",
    arxiv="2404.01436",
    year=2024,
    room="optim",
    methods=("optim.AdamGS", "optim.RMSPropGS", "optim.fit_generalized_smoothness"),
    headline="the first tight bound, gradients of norm ε in O(ε⁻⁴) steps, for RMSProp and Adam under coordinate-wise generalised "
    "smoothness and affine noise variance; it matches the lower bound",
)
SEEDS, REPLICAS, VARIABLES, ROWS, EVERY = 3, 32, 8, 512, 10


def quartic(start: Tensor, seed: int, tensors: int = 1) -> fl.Problem:
    """f = Σ x_i⁴ / 4 with gradients ∇f (1 + ξ) + ξ', over tensors that all start at ``start``, ``(…, seeds, replicas, variables)``.

    A tensor's value that is no longer finite is left out of the sum, so that the others go on.
    """
    noise = torch.randn(ROWS, 2, SEEDS, REPLICAS, VARIABLES, dtype=torch.float64, generator=Key(seed).fold("noise").generator())

    def value(x: list[Tensor], z: Tensor) -> Tensor:
        multiplied, added = z.mean(0)
        values = torch.stack([each**4 / 4 * (1 + multiplied) + added * each for each in x])
        return torch.where(values.isfinite(), values, 0.0).sum()

    return fl.FiniteSum(value, noise, [start.clone() for _ in range(tensors)])


def starts(*values: float) -> Tensor:
    """Every seed and replica at each of the values."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, SEEDS, REPLICAS, VARIABLES)


def mean_gradient(optimizer: Factory, steps: int, seed: int, **hyper: Any) -> Tensor:
    """‖∇f‖ from 4, mean over replicas and every tenth iterate of the run: one number a seed."""
    total, count = torch.zeros(SEEDS, dtype=torch.float64), 0

    def watch(moment: Moment) -> None:
        nonlocal total, count
        total, count = total + (moment.report.resolve()[0][0] ** 3).norm(dim=-1).mean(-1), count + 1

    fl.solve(quartic(starts(4.0), seed), fl.Train(optimizer, **hyper), fl.Budget(steps=steps), key=seed, every=EVERY, callback=watch)
    return total / count


def finite(optimizer: Factory, rates: Sequence[float], start: Tensor, steps: int, seed: int, **hyper: Any) -> Tensor:
    """Whether all replicas are finite after ``steps``: ``(rates, starts, seeds)``."""
    problem = quartic(start, seed, len(rates))
    method = fl.Train(side_by_side(optimizer, rates), nonfinite="ignore", **hyper)
    state = method.init(problem, Key(seed))
    for _ in range(steps):  # not by the driver, which ends a run that is not finite
        state = method.step(problem, state)
    return torch.stack(method.report(problem, state).resolve()).isfinite().all(-1).all(-1)


@claim("on x⁴ from 4 both methods' mean gradient falls at least like T^−0.22; gradient descent at rate 1/√T overflows at T ≤ 2,000")
def convergence(scale: Scale, seed: int) -> Evidence:
    horizons = (500, 2_000, 8_000) if scale is Scale.QUICK else (500, 2_000, 8_000, 32_000, 128_000)
    figures: list[Figure] = []
    curves = {}
    for optimizer in (RMSPropGS, AdamGS):
        means = torch.stack([mean_gradient(optimizer, T, seed, horizon=T) for T in horizons])
        slopes = np.polyfit(np.log(horizons), means.log().numpy(), 1)[0]
        figures.append(at_most(f"slope of log ‖∇f‖ against log T, {optimizer.__name__}", slopes.tolist(), -0.22))
        curves[optimizer.__name__] = (horizons, means.mean(1).tolist())
    for T in horizons[:2]:
        stays = finite(SGD, [1 / math.sqrt(T)], starts(4.0), T, seed)[0, 0].double().tolist()
        figures.append(at_most(f"gradient descent stays finite at T = {T:,}", stays, 0.0))
    return Evidence(figures, curves=curves, axes=("T", "mean ‖∇f‖"),
                    notes=["Eight variables, g = ∇f (1 + ξ) + ξ', 32 replicas a seed, c = 1; finite is 1 where no replica overflows."])


@claim("Adam is finite at all c from 1 to 30 from all starts; gradient descent's largest safe c falls tenfold as the start quadruples")
def safe_range(scale: Scale, seed: int) -> Evidence:
    T, start = 2_000, starts(2.0, 8.0, 32.0)
    tried = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    adam = finite(AdamGS, [c / math.sqrt(T) for c in (1, 3, 10, 30)], start, T, seed, horizon=T)
    sgd = finite(SGD, [c / math.sqrt(T) for c in tried], start, T, seed)
    safe = torch.tensor([0.0, *tried], dtype=torch.float64)[sgd.long().cumprod(0).sum(0)]
    return Evidence([
        at_least("values of c in {1, 3, 10, 30} at which Adam is finite from all starts", adam.all(1).sum(0).double().tolist(), 4.0),
        at_least("gradient descent's largest safe c, from 2 / from 8", (safe[0] / safe[1]).tolist(), 10.0),
        at_least("gradient descent's largest safe c, from 8 / from 32", (safe[1] / safe[2]).tolist(), 10.0),
        *(recorded(f"gradient descent's largest safe c from {x0}", row.tolist()) for x0, row in zip((2, 8, 32), safe, strict=True)),
    ], notes=[f"T = 2,000 steps, rates c / √T; gradient descent tries {len(tried)} values of c from {tried[0]:g} to {tried[-1]:g}. "
              "Both scales are the same."])


@claim("the fit along a trajectory finds curvature that grows with the gradient on x⁴ and none that does on a quadratic")
def estimator(scale: Scale, seed: int) -> Evidence:
    fits: dict[str, list[GeneralizedSmoothness]] = {"x⁴": [], "quadratic": []}
    steps = 500 if scale is Scale.QUICK else 8_000
    for s in range(seed, seed + 3):
        noise = torch.randn(4_096, 2, VARIABLES, dtype=torch.float64, generator=Key(s).fold("noise").generator())
        for name, power in (("x⁴", 4), ("quadratic", 2)):
            def value(x: Tensor, z: Tensor, power: int = power) -> Tensor:
                return (x**power / power * (1 + z[:, 0]) + z[:, 1] * x).sum(1).mean()

            problem = fl.FiniteSum(value, noise - noise.mean(0), 4 * torch.rand(VARIABLES, dtype=torch.float64,
                                                                               generator=Key(s).fold("start").generator()))
            points: list[Tensor] = []
            fl.solve(problem, fl.Train(AdamGS, horizon=steps), fl.Budget(steps=steps), key=s, every=steps // 20,
                     callback=lambda moment, points=points: points.append(moment.report.resolve().clone()))
            fits[name].append(fit_generalized_smoothness(problem, points, samples=1_024, key=s))
    return Evidence([
        at_least("L₁ on x⁴", [fit.L1 for fit in fits["x⁴"]], 0.1),
        at_most("L₁ on a quadratic", [fit.L1 for fit in fits["quadratic"]], 0.01),
        *(recorded(f"{constant} on {on}", [fit[i] for fit in found]) for on, found in fits.items()
          for i, constant in enumerate(("L₀", "L₁", "D₀", "D₁")) if constant != "L₁"),
    ], notes=[f"21 points of {steps:,} steps of AdamGS, eight variables; the quadratic is Σ x² / 2, whose curvature is 1. The noise "
              "has D₀ = 1 and D₁ = 2. At full scale the run is longer, not a small LSTM's."])
