"""Scalable Shampoo: roots by Newton's iteration, fewer steps than the method whose step length it takes, and what late roots cost."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_most, claim, recorded
from fallline.claims._tuning import best_loss, fewest_steps, steps_until
from fallline.claims.shampoo import quadratic
from fallline.core.keys import Key
from fallline.core.linalg import inverse_pth_root
from fallline.core.tree import Tree
from fallline.optim import SGD, ScalableShampoo
from fallline.problems import tiny_lm

PAPER = Paper(
    slug="scalable-shampoo",
    title="Scalable Second Order Optimization for Deep Learning",
    arxiv="2002.09018",
    year=2020,
    room="optim",
    methods=("optim.ScalableShampoo", "equations.inverse_pth_root"),
    headline="a Transformer on WMT'14 English-French in up to 40 % less time; BERT-Large in 16 % fewer steps; ResNet-50 at batches of "
    "32,768 reaches the MLPerf target in 1,729 steps against 2,512",
)
RATES, LIMIT = (1.9, 1.5, 1.0, 0.5, 0.25), 5_000


@claim("at condition 1e6 Newton's inverse 4th root is right to 1e-4, and agrees with the eigendecomposition")
def roots(scale: Scale, seed: int) -> Evidence:
    n = 64 if scale is Scale.QUICK else 1024
    residuals, distances = [], []
    for s in range(seed, seed + 3):
        V = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=Key(s).generator()))[0]
        A = V @ torch.diag(torch.logspace(0, -6, n, dtype=torch.float64)) @ V.T
        newton, eigh = (inverse_pth_root(A, 4, method, ridge=1e-6) for method in ("newton", "eigh"))
        eye = torch.eye(n, dtype=torch.float64)
        residuals.append(float(torch.linalg.matrix_norm(torch.linalg.matrix_power(newton, 4) @ (A + 1e-6 * eye) - eye)) / math.sqrt(n))
        distances.append(float(torch.linalg.matrix_norm(newton - eigh) / torch.linalg.matrix_norm(eigh)))
    return Evidence([at_most("‖X⁴ (A + ρ λ_max I) − I‖ / √n", residuals, 1e-4),
                     at_most("relative distance of the two roots", distances, 1e-4)],
                    notes=[f"{n} eigenvalues from 1 to 1e-6 in a random basis, in float64, ρ = 1e-6."])


@claim("at gradient descent's learning rate it takes at most 0.3 of its steps; with roots every 50, late or not, at most twice that")
def steps(scale: Scale, seed: int) -> Evidence:
    n = 16 if scale is Scale.QUICK else 128
    counts: dict[str, list[float]] = {"gradient descent": [], "every step": [], "every 50": [], "every 50, late": []}
    for s in range(seed, seed + 3):
        A, B, start = quadratic(1e3, n, s, rotated=True)
        problem = fl.Smooth(functools.partial(_value, A, B), start, gradient=functools.partial(_gradient, A, B))
        reached = functools.partial(_reached, A, B, 1e-3 * float(_value(A, B, start)))
        by_rate = {lr: steps_until(reached, problem, fl.Train(SGD, lr=lr), LIMIT) for lr in RATES}
        lr = min(by_rate, key=by_rate.__getitem__)
        counts["gradient descent"].append(by_rate[lr])
        for name, options in (("every step", {"root_every": 1}), ("every 50", {"root_every": 50}),
                              ("every 50, late", {"root_every": 50, "late": True})):
            counts[name].append(_steps(reached, problem, lr, **options))
    ratio = {name: [a / b for a, b in zip(counts[name], counts["every step"], strict=True)] for name in counts}
    return Evidence([
        at_most("steps / gradient descent's", [1 / r for r in ratio["gradient descent"]], 0.3),
        at_most("steps with roots every 50 steps / every step", ratio["every 50"], 2.0),
        at_most("steps with late roots every 50 steps / every step", ratio["every 50, late"], 2.0),
        *(recorded(f"steps, {name}", found) for name, found in counts.items()),
        *(language_model(seed) if scale is Scale.FULL else ()),
    ], notes=["½‖A W B‖² of condition 1e3 in a random basis until a thousandth, no momentum, graft SGD; the learning rate is the best "
              f"of {RATES} for gradient descent. The full scale has matrices of 128 for 16, and the language model with roots every "
              "1, 10 and 100 steps."])


def _value(A: Tensor, B: Tensor, W: Tensor) -> Tensor:
    return (A @ W @ B).square().sum() / 2


def _gradient(A: Tensor, B: Tensor, W: Tensor) -> Tensor:
    return A @ A @ W @ B @ B


def _reached(A: Tensor, B: Tensor, goal: float, W: Tree) -> bool:
    return float(_value(A, B, W)) <= goal


def _steps(reached: Any, problem: fl.Problem, lr: float, **options: Any) -> float:
    return fewest_steps(reached, problem, ScalableShampoo, (lr,), LIMIT, betas=(0.0, 0.999), graft="sgd", **options)


def language_model(seed: int) -> list[Figure]:
    """Validation losses with roots ever rarer."""
    problem = tiny_lm(seed)
    limit = int(problem.budget.limits["steps"])
    losses = {every: best_loss(problem, ScalableShampoo, (0.003, 0.01, 0.03), limit, seed, root_every=every) for every in (1, 10, 100)}
    return [recorded(f"loss of the language model, roots every {every} steps", loss) for every, loss in losses.items()]
