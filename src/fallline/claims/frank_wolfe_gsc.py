"""Frank-Wolfe with simple steps on self-concordant objectives: the rate, the domain, the cost of line searches, away steps."""

from __future__ import annotations

import numpy as np
import torch

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.core.keys import Key
from fallline.core.linear_model import LinearModel
from fallline.core.sets import Birkhoff, Simplex
from fallline.solvers import AwayFrankWolfe, FrankWolfe

PAPER = Paper(
    slug="frank-wolfe-gsc",
    title="Simple steps are all you need: Frank-Wolfe and generalized self-concordant functions",
    arxiv="2105.13913",
    year=2021,
    room="solvers",
    methods=("solvers.FrankWolfe", "solvers.AwayFrankWolfe"),
    headline="O(1/t) in primal and Frank-Wolfe gap for generalised self-concordant functions with γ = 2/(t + 2) and no second-order "
    "information; linear for away steps with backtracking on polytopes; rivals second-order step rules in a fraction of the time",
)
SEEDS = 3


def portfolio(seed: int, periods: int = 400, assets: int = 150) -> fl.Problem:
    """−Σ_t log(r_tᵀ x) on the simplex; returns are the authors': log-normal of deviation 1/2."""
    returns = torch.exp(torch.randn(periods, assets, dtype=torch.float64, generator=Key(seed).fold("returns").generator()) / 2)
    uniform = torch.full((assets,), 1 / assets, dtype=torch.float64)
    return fl.Constrained(LinearModel(returns, loss="log", weights=torch.ones_like(returns[:, 0]), x0=uniform), Simplex())


def recovery(seed: int, rows: int = 200, size: int = 100) -> fl.Problem:
    """Σ_i (Wx)_i − b_i log (Wx)_i on the simplex, W ≥ 0 with four entries in five zero: infinite at the vertices."""
    generator = Key(seed).fold("recovery").generator()
    W = torch.rand(rows, size, dtype=torch.float64, generator=generator)
    W = W * (torch.rand(rows, size, generator=generator) < 0.2)
    b = W @ torch.softmax(torch.randn(size, dtype=torch.float64, generator=generator), 0)
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    return fl.Constrained(LinearModel(W, b, loss="kl", weights=torch.ones_like(b), x0=uniform), Simplex())


def best_gaps(result: fl.Result) -> np.ndarray:
    """The least gap so far, at steps 0, 1, 2, …"""
    return np.minimum.accumulate([row["gap"] for row in result.trace])


def run(problem: fl.Problem, method: fl.Method, steps: int, tol: float | None = None) -> fl.Result:
    """A run with every step in its trace."""
    return fl.solve(problem, method, fl.Budget(steps=steps), trace=steps + 1, tol=tol)


@claim("with γ = 2/(t + 2) and no constant of f, the best Frank-Wolfe gap of a log-utility portfolio falls like t^−0.9 or faster")
def rate(scale: Scale, seed: int) -> Evidence:
    steps = 2_000
    gaps = [best_gaps(run(portfolio(s), FrankWolfe(), steps)) for s in range(seed, seed + SEEDS)]
    t = np.arange(20, steps + 1)
    figures: list[Figure] = [at_most("slope of log best gap in log t", [slope(t, each[20:]) for each in gaps], -0.9)]
    if scale is Scale.FULL:
        permutations = best_gaps(run(matching(seed), FrankWolfe(), steps))
        figures.append(recorded("slope on the Birkhoff polytope, n = 200", slope(t, permutations[20:])))
    return Evidence(figures, curves={"best gap": (t[::20].tolist(), gaps[0][20::20].tolist())}, axes=("t", "gap"),
                    notes=[f"d = 150, 400 periods, t from 20 to {steps}. Full: also −Σ log⟨A_i, X⟩ over doubly stochastic 200 × 200 "
                           "matrices."])


def slope(t: np.ndarray, gaps: np.ndarray) -> float:
    """The slope of log gap in log t."""
    return float(np.polyfit(np.log(t), np.log(gaps), 1)[0])


def matching(seed: int, n: int = 200, terms: int = 400) -> fl.Problem:
    """−Σ_i log⟨A_i, X⟩ with A_i of rank one and positive, over the Birkhoff polytope."""
    left, right = torch.exp(torch.randn(2, terms, n, dtype=torch.float64, generator=Key(seed).fold("matching").generator()) / 2)
    products = lambda X: ((left @ X) * right).sum(1)
    gradient = lambda X: -(left / products(X)[:, None]).T @ right
    return fl.Constrained(fl.Smooth(lambda X: -torch.log(products(X)).sum(), torch.full((n, n), 1 / n, dtype=torch.float64),
                                    gradient=gradient), Birkhoff())


@claim("on Poisson recovery, infinite at every vertex, the unguarded rule leaves the domain at t = 0, and the monotone rule never does "
       "and brings the gap to a hundredth")
def domain(scale: Scale, seed: int) -> Evidence:
    steps = 2_000 if scale is Scale.QUICK else 20_000
    problems = [recovery(s) for s in range(seed, seed + SEEDS)]
    unguarded = [run(p, FrankWolfe("open_loop"), steps) for p in problems]
    guarded = [run(p, FrankWolfe(), steps) for p in problems]
    finite = [bool(torch.isfinite(torch.tensor([row["value"] for row in r.trace])).all()) and r.status == "budget" for r in guarded]
    return Evidence([
        exactly("runs of the unguarded rule that end at their first step",
                sum(r.status == "nonfinite" and r.nit == 0 for r in unguarded), float(SEEDS)),
        exactly("runs of the monotone rule that stay in the domain", sum(finite), float(SEEDS)),
        at_most("best gap / first gap", [float(best_gaps(r)[-1] / r.trace[0]["gap"]) for r in guarded], 1e-2),
        recorded("share of steps skipped", [1 - r.counts["gradients"] / r.counts["values"] for r in guarded]),
    ], notes=[f"200 rows, 100 variables, {steps:,} steps from the centre of the simplex."])


@claim("the monotone rule's final gap is at most 3 times that of a golden-section line search, for at most a fifth of its values")
def evaluations(scale: Scale, seed: int) -> Evidence:
    steps = 500 if scale is Scale.QUICK else 5_000
    ratios, calls = [], []
    for s in range(seed, seed + SEEDS):
        simple, searched = (run(portfolio(s), FrankWolfe(rule), steps) for rule in ("monotone", "line_search"))
        ratios.append(float(best_gaps(simple)[-1] / best_gaps(searched)[-1]))
        calls.append(searched.counts["values"] / simple.counts["values"])
    return Evidence([
        at_most("gap, monotone / line search", ratios, 3.0),
        at_least("evaluations of f, line search / monotone", calls, 5.0),
    ], notes=[f"The portfolio of the first claim, {steps:,} steps of both, the best gap of each run; brackets of relative width 1e-6."])


@claim("away steps with backtracking converge linearly on the portfolio: log gap is a straight line in t down to 1e-8 of the first gap")
def linear(scale: Scale, seed: int) -> Evidence:
    steps = 5_000
    fits: dict[str, list[float]] = {"t": [], "log t": []}
    least, curve = [], None
    for s in range(seed, seed + SEEDS):
        problem = portfolio(s)
        first = float(best_gaps(run(problem, AwayFrankWolfe(), 1))[0])
        gaps = best_gaps(run(problem, AwayFrankWolfe(), steps, tol=1e-8 * first))
        least.append(float(gaps[-1] / first))
        t = np.arange(1, len(gaps))
        fits["t"].append(straightness(t, gaps[1:]))
        fits["log t"].append(straightness(np.log(t), gaps[1:]))
        curve = curve or (t.tolist(), gaps[1:].tolist())
    assert curve is not None
    return Evidence([
        at_most("best gap / first gap", least, 1e-8),
        at_least("R² of log gap in t", fits["t"], 0.9),
        at_least("R² in t less R² in log t", [a - b for a, b in zip(fits["t"], fits["log t"], strict=True)], 0.0),
    ], curves={"best gap": curve}, axes=("t", "gap"), notes=[f"At most {steps:,} steps; both scales are the same."])


def straightness(x: np.ndarray, gaps: np.ndarray) -> float:
    """R² of a straight line through log gap."""
    return float(np.corrcoef(x, np.log(gaps))[0, 1] ** 2)
