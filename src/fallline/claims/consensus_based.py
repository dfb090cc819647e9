"""Consensus-based optimization: is a hop a proximal step, a gradient step, and does the population find the global minimum?"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

import fallline as fl
from fallline.blackbox import CBO, cbo_gradient, consensus_point
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.core.keys import Key

PAPER = Paper(
    slug="consensus-based",
    title="Gradient is All You Need?",
    arxiv="2306.09778",
    year=2023,
    room="blackbox",
    methods=("blackbox.CBO", "blackbox.ConsensusHopping"),
    headline="consensus-based optimization is gradient descent with a controlled stochastic perturbation, and keeps its guarantees "
    "of global convergence for non-smooth and non-convex objectives",
)


@claim("on a quadratic a hop is the proximal step argmin f(y) + |y − x|²/(2αs²), to 5 % of its length")
def hop_is_prox(scale: Scale, seed: int) -> Evidence:
    n = 100_000 if scale is Scale.QUICK else 10_000_000
    width, errors, reaches = 0.1, [], list[float]()
    for s in range(seed, seed + 5):
        generator = Key(s).generator()
        curvature = torch.linspace(0.2, 2.0, 5, dtype=torch.float64)
        x = torch.randn(5, dtype=torch.float64, generator=generator)
        alpha = 0.2 / (width**2 * 2.0)
        # A hop is no longer than about s √(2 ln n): the prox is within reach only where α s |∇f(x)| ≤ 1.
        reaches.append(alpha * width * float((curvature * x).norm()))
        x = x / max(1.0, reaches[-1])
        points = x + width * torch.randn(n, 5, dtype=torch.float64, generator=generator)
        hop = consensus_point(points, (curvature * points**2).sum(1) / 2, alpha)
        prox = x / (1 + alpha * width**2 * curvature)
        errors.append(float((hop - prox).norm() / (hop - x).norm()))
    return Evidence([at_most("|hop − prox| / |hop − x|", errors, 0.05), recorded("α s |∇f(x)| before x was scaled", reaches)],
                    notes=["Points at which α s |∇f(x)| exceeds one are scaled down until it is one. Full: 10⁷ samples."])


def rugged(points: Tensor) -> Tensor:
    """A smooth non-convex function with steep and flat directions."""
    return (points**2).sum(-1) / 2 + torch.sin(2 * points).sum(-1) + points[..., 0] * points[..., 1]


@claim("hops point along the negative gradient of a smooth non-convex function when the samples are narrow, and less so when wide")
def hop_is_gradient(scale: Scale, seed: int) -> Evidence:
    n = 10_000 if scale is Scale.QUICK else 1_000_000
    cosines: dict[float, list[float]] = {0.02: [], 1.0: []}
    for s in range(seed, seed + 5):
        centres = 2 * torch.randn(50, 5, dtype=torch.float64, generator=Key(s).generator())
        problem = fl.Smooth(lambda x: rugged(x).sum(), centres)
        gradients = problem.gradient(centres)
        for width, found in cosines.items():
            alpha = 0.5 / (width * float(gradients.norm(dim=1).median()))
            implied = torch.stack([cbo_gradient(rugged, x, width, alpha, n, Key(s).fold(i)) for i, x in enumerate(centres)])
            found.append(float(torch.cosine_similarity(implied, gradients, dim=1).mean()))
    return Evidence(notes=["50 points a seed. Full: 10⁶ samples."], figures=[
        at_least("mean cosine with −∇f, s = 0.02", cosines[0.02], 0.97),
        at_most("mean cosine, s = 1 less that of s = 0.02", [w - n for w, n in zip(cosines[1.0], cosines[0.02], strict=True)], 0.0),
        recorded("mean cosine, s = 1", cosines[1.0]),
    ])


def rastrigin(points: Tensor) -> Tensor:
    """Minimum 0 at 0; local minima near the integers."""
    return (points**2 - 10 * torch.cos(2 * math.pi * points) + 10).sum(-1)


def descents(step: float, values: int, starts: Tensor) -> Tensor:
    """Gradient descent from each start in turn until the evaluations are spent; the best end. All runs at once: (runs, d)."""
    best, length = starts[:, 0].clone(), 100
    for k in range(values // length):
        x = starts[:, k]
        for _ in range(length):
            x = x - step * (2 * x + 20 * math.pi * torch.sin(2 * math.pi * x))
        best = torch.where((rastrigin(x) < rastrigin(best))[:, None], x, best)
    return best


@claim("from a box away from the optimum the population finds Rastrigin's minimum where restarted gradient descent does not")
def global_minimum(scale: Scale, seed: int) -> Evidence:
    d, runs, values = (2, 50, 20_000) if scale is Scale.QUICK else (20, 50, 2_000_000)
    low, high = 1.5, 4.5
    problem = fl.BlackBox(rastrigin, torch.full((d,), 3.0, dtype=torch.float64), bounds=(low, high), vectorized=True)

    def success(points: Tensor) -> float:
        return float((points.norm(dim=-1) < 0.25).double().mean())

    def population(sigma: float, run: int) -> Tensor:
        method = CBO(sigma=sigma, noise="anisotropic" if d > 2 else "isotropic")
        return fl.solve(problem, method, fl.Budget(values=values), key=Key(seed).fold(run), every=100).x

    with warnings.catch_warnings():
        # The grid goes beyond the theory's contraction on purpose, and the notes say so.
        warnings.filterwarnings("ignore", message="the theory's contraction")
        cbo = {sigma: success(torch.stack([population(sigma, run) for run in range(runs)])) for sigma in (0.8, 1.2, 1.6, 2.0)}
    starts = low + (high - low) * torch.rand(runs, values // 100, d, dtype=torch.float64, generator=Key(seed).generator())
    descent = {step: success(descents(step, values, starts)) for step in (1e-4, 1e-3, 3e-3, 1e-2)}
    return Evidence([
        at_least("success of the population, best sigma", max(cbo.values()), 0.8),
        at_most("success of gradient descent, best step", max(descent.values()), 0.3),
    ], curves={"population against sigma": (list(cbo), list(cbo.values())),
               "gradient descent against step": (list(descent), list(descent.values()))},
        axes=("sigma of the population, or step of gradient descent", "share of runs that succeed"),
        notes=[f"{runs} runs of {values:,} evaluations, started in [{low}, {high}]^{d}; a gradient counts as one value. The theory's "
               "2λ > dσ² (isotropic) or 2λ > σ² (anisotropic) excludes the larger sigmas of the grid. "
               "Full: d = 20 with anisotropic noise; the small network is not trained."])
