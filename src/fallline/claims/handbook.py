"""Convergence theorems: measured runs keep to them, they are not vacuous, and a step beyond what they allow breaks them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.core.samples import batch_indices
from fallline.core.terms import L1
from fallline.landscape.descents import Descent, MinibatchDescent, StochasticDescent
from fallline.landscape.rates import STOCHASTIC, RateCheck, check_rate
from fallline.landscape.theorems import THEOREMS, Theorem

PAPER = Paper(
    slug="handbook",
    title="Handbook of Convergence Theorems for (Stochastic) Gradient Methods",
    arxiv="2301.11235",
    year=2023,
    room="landscape",
    methods=("landscape.theorem", "landscape.iterations_for", "landscape.check_rate"),
    headline="global rates with short proofs for gradient methods on Lipschitz, smooth, convex, strongly convex and Polyak-Łojasiewicz "
    "functions, such as max(L_max/μ, σ*²/(μ²ε)) log(1/ε) steps of SGD for strongly convex ones",
)
N, D, RANK, REPLICAS, BATCH, WEIGHT = 200, 20, 15, 7, 8, 0.1
CONDITIONS = (10.0, 1e3)
STEPS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
Scalar = Callable[[Tensor], Tensor]


class Regression(NamedTuple):
    """Rows (n, d), targets (n,) and a solution (d,)."""

    rows: Tensor
    target: Tensor
    solution: Tensor


def regression(condition: float, seed: int, rank: int = D, noise: float = 1.0) -> Regression:
    """AᵀA/n has eigenvalues from 1 to 1/κ evenly in logarithm, and 0 beyond the rank; the solution is that of least squares."""
    generator = Key(seed).fold("regression").generator()
    u, _, v = torch.linalg.svd(torch.randn(N, D, dtype=torch.float64, generator=generator), full_matrices=False)
    u, v, singular = u[:, :rank], v[:rank], math.sqrt(N) * torch.logspace(0, -0.5 * math.log10(condition), rank, dtype=torch.float64)
    rows = u * singular @ v
    target = rows @ torch.randn(D, dtype=torch.float64, generator=generator)
    target = target + noise * torch.randn(N, dtype=torch.float64, generator=generator)
    return Regression(rows, target, v.T @ (u.T @ target / singular))


def summed(regressions: Sequence[Regression], replicas: int, loss: Scalar, slope: Scalar, **facts: float) -> fl.Problem:
    """Σ over copies of mean ℓ(⟨a_i, x⟩ − b_i): variables (copies, d), ``replicas`` copies of each regression in turn.

    Every copy has its samples in an order of its own. Theorems apply to the sum; a run of it is a run of each copy.
    """
    copies = len(regressions) * replicas
    which = torch.arange(len(regressions)).repeat_interleave(replicas)
    orders = torch.stack([torch.randperm(N, generator=Key(0).fold("order", r).generator()) for r in range(copies)], 1)
    rows, target, solution = (torch.stack(parts) for parts in zip(*regressions, strict=True))

    def over(chosen: Tensor) -> dict[str, Callable[..., Any]]:
        at = orders[chosen]
        a, b = rows[which, at], target[which, at]

        def per_sample(x: Tensor) -> Tensor:
            return slope((a * x).sum(-1) - b)[..., None] * a

        return {"value": lambda x: loss((a * x).sum(-1) - b).mean(0).sum(), "gradient": lambda x: per_sample(x).mean(0),
                "per_sample_gradients": per_sample}

    def sample(problem: fl.Problem, key: Key, size: int | None, indices: Tensor | None, at: Any) -> fl.Problem:
        return fl.Problem(problem.x0, over(batch_indices(N, key, size, indices, 1)), kind="finite-sum")

    oracles = over(torch.arange(N))
    known = {"solution": solution[which], "best_value": float(oracles["value"](solution[which])), **facts}
    return fl.Problem(torch.zeros(copies, D, dtype=torch.float64), oracles, kind="finite-sum", sampler=sample, parts=N, facts=known)


def least_squares(regressions: Sequence[Regression], condition: float, replicas: int) -> fl.Problem:
    """½ mean (⟨a, x⟩ − b)²; L = 1, μ = 1/κ, and Δ* is the least value, for every term's is 0."""
    largest = max(float(each.rows.square().sum(1).max()) for each in regressions)
    problem = summed(regressions, replicas, lambda r: r * r / 2, lambda r: r, L=1.0, mu=1 / condition, L_max=largest)
    problem.facts["delta_star"] = problem.facts["best_value"]
    return problem


def absolute(regressions: Sequence[Regression], replicas: int) -> fl.Problem:
    """mean |⟨a, x⟩ − b|, its solutions by linear programming; G² = mean ‖a‖²."""
    solved, ones = [], np.eye(N)
    for rows, target, _ in regressions:
        a, b = rows.numpy(), target.numpy()
        found = scipy.optimize.linprog(np.r_[np.zeros(D), np.full(N, 1 / N)], np.block([[a, -ones], [-a, -ones]]), np.r_[b, -b],
                                       bounds=[(None, None)] * D + [(0, None)] * N)
        solved.append(Regression(rows, target, torch.tensor(found.x[:D])))
    squares = replicas * sum(float(each.rows.square().sum(1).mean()) for each in regressions)
    return summed(solved, replicas, torch.abs, torch.sign, G=math.sqrt(squares))


def lasso(regressions: Sequence[Regression], condition: float, replicas: int) -> fl.Problem:
    """½ mean (⟨a, x⟩ − b)² + 0.1 ‖x‖₁, its solutions by coordinate descent and then exactly on the support found."""
    from sklearn.linear_model import Lasso

    solved = []
    for rows, target, _ in regressions:
        found = Lasso(WEIGHT, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(rows.numpy(), target.numpy()).coef_
        support, solution = torch.tensor(np.flatnonzero(found)), torch.zeros(D, dtype=torch.float64)
        among, signs = rows[:, support], torch.tensor(np.sign(found))[support]
        solution[support] = torch.linalg.solve(among.T @ among, among.T @ target - N * WEIGHT * signs)
        solved.append(Regression(rows, target, solution))
    smooth = least_squares(solved, condition, replicas)
    solution = smooth.facts["solution"]
    best = float(smooth.value(solution)) + WEIGHT * float(solution.abs().sum())
    return fl.Composite(smooth, L1(WEIGHT), facts={"solution": solution, "best_value": best})


def checked(row: Theorem, condition: float, seeds: Sequence[int], steps: Sequence[int]) -> RateCheck:
    """A method on a problem that satisfies a theorem's assumptions, against its bound."""
    noise = 0.0 if "interpolation" in row.assumptions else 1.0
    regressions = [regression(condition, s, RANK if "pl" in row.assumptions else D, noise) for s in seeds]
    replicas = REPLICAS if row.method in STOCHASTIC else 1
    if row.method.startswith("proximal"):
        problem = lasso(regressions, condition, replicas)
    elif "lipschitz" in row.assumptions:
        problem = absolute(regressions, replicas)
    else:
        problem = least_squares(regressions, condition, replicas)
    batch = BATCH if row.method == "minibatch-sgd" else None
    return check_rate(problem, row.method, steps, row.assumptions, batch_size=batch, replicas=1, key=seeds[0])


@claim("sixteen theorems bound the measured runs at every step from 10 to 5,000, for condition numbers 10 and 1,000")
def bounds(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + (3 if scale is Scale.QUICK else 30))
    curves, figures = {}, []
    for row in THEOREMS:
        shorter = STEPS[:7] if scale is Scale.QUICK and row.method in STOCHASTIC else STEPS
        found = [checked(row, condition, seeds, steps) for condition, steps in zip(CONDITIONS, (STEPS, shorter), strict=True)]
        name = f"{row.method}, {', '.join(row.assumptions)}"
        figures.append(at_most(f"{name}: measured / bound, largest", max(c.largest_ratio for c in found), 1.0))
        curves[name] = STEPS, found[0].ratios
    return Evidence(figures, curves=curves, axes=("steps", "measured / bound, κ = 10"), notes=[
        f"{len(seeds)} random problems of {N} rows in {D} dimensions: least squares, with {RANK} of the directions for pl; mean "
        "absolute error for Lipschitz; ℓ1-penalised least squares for proximal methods. Each at the largest step its theorem allows, "
        f"from 0; stochastic methods {REPLICAS} times on each problem, for the theorems bound means. Where a bound is below what "
        "rounding resolves it is not tested. No slack is taken for constants that differ between editions. Quick: stochastic methods "
        "at κ = 1,000 up to step 1,000. Full: 30 problems."])


@claim("the bounds are not vacuous: descent contracts at most 2.1 times as fast, SGD's floor is ∝ γ and ∝ 1/b, and 0 in interpolation")
def tightness(scale: Scale, seed: int) -> Evidence:
    seeds = range(seed, seed + 3)
    contraction = [[slowest(condition, s) for s in seeds] for condition in CONDITIONS]
    noisy = least_squares([regression(CONDITIONS[0], s) for s in seeds], CONDITIONS[0], 20)
    step, batches = 1 / (4 * noisy.facts["L_max"]), (1, 2, 8)
    steps = (step, step / 4)
    by_batch = torch.stack([noise_floor(noisy, MinibatchDescent(step, b), seed) for b in batches])
    by_step = torch.stack([by_batch[0], *(noise_floor(noisy, StochasticDescent(value), seed) for value in steps[1:])])
    exact = least_squares([regression(CONDITIONS[0], s, noise=0.0) for s in seeds], CONDITIONS[0], 20)
    left = fl.solve(exact, StochasticDescent(1 / (2 * exact.facts["L_max"])), fl.Budget(steps=8_000), key=seed, every=8_000).x
    return Evidence([
        *(between(f"GD's fitted rate over |log(1 − γμ)|, κ = {k:g}", found, 1.0, 2.1)
          for k, found in zip(CONDITIONS, contraction, strict=True)),
        between("slope of log SGD floor in log γ", np.polyfit(np.log(steps), by_step.log().numpy(), 1)[0].tolist(), 0.85, 1.15),
        between("slope of log SGD floor in log b", np.polyfit(np.log(batches), by_batch.log().numpy(), 1)[0].tolist(), -1.15, -0.85),
        at_most("‖x − x*‖² of SGD after 8,000 steps in interpolation", distances(exact, left).tolist(), 1e-12),
    ], curves={"step size, in 1/(16 L_max)": ((4, 1), by_step.median(1).values.tolist()),
               "batch size, γ = 1/(4 L_max)": (batches, by_batch.median(1).values.tolist())},
        axes=("step size, or batch size", "floor of ‖x − x*‖²"),
        notes=["GD from the slowest eigenvector. Floors at κ = 10 from x*, means over the last half of 5,000 steps and 20 replicas for "
               "each of 3 random problems."])


def slowest(condition: float, seed: int) -> float:
    """The fitted decay of log ‖x − x*‖² a step at γ = 1/L, from x* plus the eigenvector of μ, over that of the bound."""
    problem = least_squares([regression(condition, seed)], condition, 1)
    problem.x0 = problem.facts["solution"] + torch.linalg.eigh(problem.hessian(problem.x0)).eigenvectors[:, 0]
    times, logs = [], []

    def look(moment: Moment) -> None:
        times.append(moment.step)
        logs.append(float(distances(problem, moment.report.resolve()).log()))

    fl.solve(problem, Descent(1.0), fl.Budget(steps=50), callback=look)
    return float(-np.polyfit(times, logs, 1)[0] / abs(math.log1p(-1 / condition)))


def distances(problem: fl.Problem, x: Tensor) -> Tensor:
    """‖x − x*‖² for each seed, a mean over replicas where there are three seeds."""
    squares = (x - problem.facts["solution"]).square().sum(-1)
    return squares.view(3, -1).mean(1) if len(squares) > 1 else squares


def noise_floor(problem: fl.Problem, method: Descent, seed: int) -> Tensor:
    """Mean ‖x − x*‖² over the last half of 5,000 steps from x*, for each of 3 seeds."""
    problem.x0 = problem.facts["solution"].clone()
    seen: list[Tensor] = []

    def look(moment: Moment) -> None:
        if moment.step > 2_500:
            seen.append(distances(problem, moment.report.resolve()))

    fl.solve(problem, method, fl.Budget(steps=5_000), key=seed, every=10, callback=look)
    return torch.stack(seen).mean(0)


@claim("a step size of 2.2 / L breaks the bound of gradient descent")
def too_long(scale: Scale, seed: int) -> Evidence:
    def ratio(condition: float, s: int) -> float:
        problem = least_squares([regression(condition, s)], condition, 1)
        return check_rate(problem, "gd", 100, ["smooth", "convex"], step_size=2.2).largest_ratio

    return Evidence([at_least(f"measured / bound within 100 steps, κ = {k:g}", [ratio(k, s) for s in range(seed, seed + 3)], 2.0)
                     for k in CONDITIONS], notes=["Twice the bound, for constants differ between editions."])
