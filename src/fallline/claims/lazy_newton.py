"""Lazy Hessians: what renewing the Hessian rarely saves, and whether the cubic form leaves saddle points."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.claims._logistic import digits_parity
from fallline.claims._rates import exponent
from fallline.core.driver import Moment
from fallline.solvers import LazyCubicNewton, LazyNewton

PAPER = Paper(
    slug="lazy-newton",
    title="Second-order optimization with lazy Hessians",
    arxiv="2212.00781",
    year=2023,
    room="solvers",
    methods=("solvers.LazyNewton", "solvers.LazyCubicNewton"),
    headline="with a Hessian as dear as d gradients, renewing it every d steps lowers the total arithmetic by √d against "
    "every step; global O(1/ε^{3/2}) to second-order points without convexity, locally superlinear within a phase",
)
REGULARISATIONS = (1e-3, 1e-2, 1e-1, 1.0)


def logistic(features: int | None, seed: int) -> fl.Problem:
    """L2-regularised logistic regression (1e-4) with closed-form derivatives, and its minimum in ``facts``."""
    rows, labels = digits_parity(features, seed)
    signed = labels[:, None] * rows

    def value(w: Tensor) -> Tensor:
        return softplus(-signed @ w).mean() + 5e-5 * w @ w

    def gradient(w: Tensor) -> Tensor:
        return -signed.T @ torch.sigmoid(-signed @ w) / len(rows) + 1e-4 * w

    def hessian(w: Tensor) -> Tensor:
        p = torch.sigmoid(signed @ w)
        return signed.T @ ((p * (1 - p))[:, None] * signed) / len(rows) + 1e-4 * torch.eye(len(w), dtype=w.dtype)

    start = torch.zeros(rows.shape[1], dtype=torch.float64)
    problem = fl.Smooth(value, start, gradient=gradient, hessian=hessian)
    best = fl.solve(problem, LazyNewton(period=1), fl.Budget(steps=200), tol=1e-13)
    problem.facts["best_value"] = best.fun
    return problem


def cost(problem: fl.Problem, period: int, steps: int) -> float:
    """Hessians plus gradients / d until f − f* ≤ 1e-8, at the best M; infinite if no M gets there."""
    best = float("inf")

    def spent(counts: Mapping[str, int]) -> float:
        return counts["hessians"] + counts["gradients"] / problem.x0.numel()

    def ended(moment: Moment) -> bool:
        assert moment.report.value is not None
        # An M that has cost more than another that got there cannot be the best.
        return float(moment.report.value) - problem.facts["best_value"] <= 1e-8 or spent(moment.counts) > best

    for M in REGULARISATIONS:
        result = fl.solve(problem, LazyNewton(period=period, M=M, adaptive=False), fl.Budget(steps=steps), callback=ended)
        if result.status == "stopped":
            best = min(best, spent(result.counts))
    return best


def path(problem: fl.Problem) -> list[float]:
    """f − f* at every step of the adaptive method with m = d."""
    found: list[float] = []

    def see(moment: Moment) -> bool:
        assert moment.report.value is not None
        found.append(float(moment.report.value) - problem.facts["best_value"])
        return found[-1] <= 1e-12

    fl.solve(problem, LazyNewton(), fl.Budget(steps=2_000), callback=see)
    return found


@claim("renewing the Hessian every d steps instead of every step lowers the arithmetic at least fourfold at d = 65")
def arithmetic(scale: Scale, seed: int) -> Evidence:
    steps = 600 if scale is Scale.QUICK else 5_000
    problem = logistic(None, seed)
    periods = (1, 2, 5, 16, 65, 200)
    costs = {m: cost(problem, m, steps) for m in periods}
    cheapest = min(periods, key=costs.__getitem__)
    sizes = (16, 144) if scale is Scale.QUICK else (16, 144, 2_000)
    gains = {d: [cost(p, 1, steps) / cost(p, d, steps) for p in (logistic(d, s) for s in range(seed, seed + 3))] for d in sizes}
    small, large = gains[sizes[0]], gains[sizes[-1]]
    return Evidence(
        [
            at_most("cost(m = d) / cost(m = 1)", costs[65] / costs[1], 0.25),
            exactly("cheapest period is 16 or 65", float(cheapest in (16, 65)), 1.0),
            at_least(f"gain at d = {sizes[-1]} over gain at d = {sizes[0]}", [b / a for a, b in zip(small, large, strict=True)], 1.0),
            at_most("exponent of the gap in the step, adaptive, m = d (theorem: -2)", exponent(path(problem), 1e-8), -2.0),
            recorded("cheapest period", cheapest),
            *(recorded(f"gain at d = {d}", gain) for d, gain in gains.items()),
        ],
        curves={"cost against period": (periods, [costs[m] for m in periods])},
        axes=("period m", "gradients to the target"),
        notes=["Hessians count as d gradients; M is the best of 0.001, 0.01, 0.1 and 1 for every period. Random features "
               "are drawn at three seeds; the digits themselves have none. Full: d = 2,000 random features as well."],
    )


@claim("from a saddle point with zero gradient the cubic form reaches a point whose least Hessian eigenvalue is at least −√ε")
def second_order_points(scale: Scale, seed: int) -> Evidence:
    n, tolerance = (20, 1e-6) if scale is Scale.QUICK else (200, 1e-8)
    lowest: dict[str, list[float]] = {"cubic": [], "gradient descent": []}
    for s in range(seed, seed + 3):
        u = torch.randn(n, dtype=torch.float64, generator=fl.Key(s).generator())
        target = torch.outer(u, u) / n
        problem = fl.Smooth(lambda x, target=target: ((torch.outer(x, x) - target) ** 2).sum() / 4,
                            torch.zeros(n, dtype=torch.float64))
        methods = {"cubic": LazyCubicNewton(M=1.0), "gradient descent": fl.Train(torch.optim.SGD, lr=0.1)}
        for name, method in methods.items():
            end = fl.solve(problem, method, fl.Budget(steps=20 * n)).x
            lowest[name].append(float(torch.linalg.eigvalsh(problem.hessian(end))[0]))
    return Evidence([
        at_least("least eigenvalue, cubic", lowest["cubic"], -(tolerance**0.5)),
        at_most("least eigenvalue, gradient descent", lowest["gradient descent"], -0.1),
    ], notes=["Rank-one factorisation started at the saddle x = 0; gradient descent is the control that must stay there. "
              f"Here n = {n} and ε = {tolerance:g}. Full: n = 200, ε = 1e-8."])
