"""Newton's method regularised by the gradient norm: one method, whatever stands for the Hessian."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.claims._logistic import digits_parity
from fallline.claims._rates import exponent, order
from fallline.claims._tuning import spaced
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.solvers import GradRegNewton

PAPER = Paper(
    slug="gradient-normalized-smoothness",
    title="Gradient-Normalized Smoothness for Optimization with Approximate Hessians",
    arxiv="2506.13710",
    year=2026,
    room="solvers",
    methods=("solvers.GradRegNewton", "solvers.gns_radius"),
    headline="one method, automatic rates: with the exact Hessian O(1/k²) for Lipschitz Hessians and linear for quasi-self-concordant "
    "objectives; linear for logistic and softmax losses with approximate Hessians; stationary points of non-convex problems with "
    "Fisher and Gauss-Newton matrices",
)
LIMITS = {"exact": 15, "fisher": 150, "gauss_newton": 500, "zero": 2_000}


def logistic(rows: Tensor, labels: Tensor) -> fl.Problem:
    """L2-regularised (1e-4) logistic regression, from 0, and its minimum in ``facts``."""
    problem = fl.LinearModel(rows, labels, "logistic", ridge=1e-4)
    problem.facts["best_value"] = fl.solve(problem, GradRegNewton(), fl.Budget(steps=200), tol=1e-12).fun
    return problem


def gaps(problem: fl.Problem, hess: str, limit: int) -> list[float]:
    """f − f* at every step until it is within 1e-8, or the limit is passed."""
    found: list[float] = []

    def stop(moment: Moment) -> bool:
        assert moment.report.value is not None
        found.append(float(moment.report.value) - problem.facts["best_value"])
        return found[-1] <= 1e-8

    result = fl.solve(problem, GradRegNewton(hess), fl.Budget(steps=limit), callback=stop)
    return found if result.status == "stopped" else [*found, math.inf]


def iterations(found: Sequence[float], limit: int) -> float:
    """Steps taken, or the limit where they were not enough."""
    return len(found) - 1 if math.isfinite(found[-1]) else limit


def linearity(found: Sequence[float]) -> float:
    """R² of a line through the logarithms of the second half."""
    logs = np.log(found[len(found) // 2:])
    k = np.arange(len(logs))
    return float(np.corrcoef(k, logs)[0, 1] ** 2)


def half(rows: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A random half of the data."""
    chosen = torch.randperm(len(rows), generator=Key(seed).fold("split").generator())[: len(rows) // 2]
    return rows[chosen], labels[chosen]


@claim("untuned, the exact Hessian takes at most 15 steps, the Fisher matrix 150, the bound AᵀA/4n 500 and no Hessian more than 2,000")
def curvature_sources(scale: Scale, seed: int) -> Evidence:
    rows, labels = digits_parity(None if scale is Scale.QUICK else 7_850, seed)
    problem = logistic(rows, labels)
    whole = {hess: gaps(problem, hess, limit + 1) for hess, limit in LIMITS.items()}
    taken = {hess: iterations(found, LIMITS[hess] + 1) for hess, found in whole.items()}
    ordered = []
    for s in range(seed, seed + 3):
        part = logistic(*half(rows, labels, s))
        cap = LIMITS["zero"] + 1
        counts = [iterations(gaps(part, hess, cap), cap) for hess in LIMITS]
        ordered.append(float(counts == sorted(counts) and counts[-2] < cap))
    return Evidence([
        *(at_most(f"steps, {hess}", taken[hess], LIMITS[hess]) for hess in ("exact", "fisher", "gauss_newton")),
        at_least("steps, zero", taken["zero"], LIMITS["zero"] + 1),
        exactly("the same order on a random half of the data", ordered, 1.0),
        at_most("exponent of the exact gap in the step (theorem: -2)", exponent(whole["exact"], 1e-8), -2.0),
        recorded("order of local convergence, exact", order(whole["exact"], 1e-14)),
        at_least("R² of the Fisher matrix's log-gap against the step, second half", linearity(whole["fisher"]), 0.97),
    ], curves={hess: (range(len(found)), found) for hess, found in whole.items() if math.isfinite(found[-1])},
        axes=("step", "gap"),
        notes=["Digits, parity, 64 pixels and a constant, from 0 to a gap of 1e-8; nothing is tuned. A side that has passed its limit "
               "is ended there. Full: random features, d = 7,850."])


def chebyshev_rosenbrock(start: Tensor) -> fl.Problem:
    """½‖r‖², r = (x₁ − 1)/2 and x_{i+1} − 2x_i² + 1: chained Chebyshev polynomials."""
    return fl.LeastSquares(lambda x: torch.cat([(x[:1] - 1) / 2, x[1:] - 2 * x[:-1] ** 2 + 1]), start, name="Chebyshev-Rosenbrock")


def against_descent(start: Tensor) -> tuple[float, float, float]:
    """Gradients to ‖g‖ ≤ 1e-6 of Gauss-Newton and of gradient descent at its best of five rates, over ours; the value where we end."""
    problem = chebyshev_rosenbrock(start)
    ours = fl.solve(problem, GradRegNewton("gauss_newton"), fl.Budget(steps=2_000), tol=1e-6)
    if not ours.success:
        return math.inf, 0.0, math.nan
    limit = 10 * ours.counts["gradients"]
    least = limit
    for lr in spaced(1e-2, 10**0.5, 5):
        plain = fl.solve(problem, fl.Train(torch.optim.SGD, lr=lr), fl.Budget(gradients=least), every=5,
                         callback=lambda moment: float(torch.linalg.vector_norm(problem.gradient(moment.report.resolve()))) <= 1e-6)
        least = min(least, plain.counts["gradients"] if plain.status == "stopped" else limit)
    assert ours.fun is not None
    return ours.counts["gradients"], 10 * least / limit, ours.fun


@claim("on a chain of Chebyshev polynomials in 20 variables Gauss-Newton matrices reach ‖g‖ ≤ 1e-6 with at most a tenth of the "
       "gradients of gradient descent")
def least_squares(scale: Scale, seed: int) -> Evidence:
    n = 20 if scale is Scale.QUICK else 50
    drawn = [2 * torch.rand(n, dtype=torch.float64, generator=Key(s).fold("start").generator()) - 1 for s in range(seed, seed + 3)]
    calls, ratios, ends = zip(*map(against_descent, drawn), strict=True)
    customary = torch.ones(n, dtype=torch.float64)
    customary[0] = -1
    usual = against_descent(customary)
    return Evidence([
        at_most("gradients of Gauss-Newton to ‖g‖ ≤ 1e-6", calls, 4_000),
        at_least("gradients of gradient descent at the best of five rates, over ours", ratios, 10.0),
        recorded("value at the end", ends), recorded("the same ratio from (−1, 1, …, 1)", usual[1]),
        recorded("value at the end from (−1, 1, …, 1)", usual[2]),
    ], notes=["Rates from 0.001 to 0.1, each ended at ten times our gradients; starts uniform in [−1, 1]. A first run was from the "
              "customary start (−1, 1, …, 1): there both sides meet ‖g‖ ≤ 1e-6 within some tens of gradients, far from the solution, "
              "where the Jacobian is almost singular; the least value is 0."])
