"""Time of fitting linear models and small networks to a gap of 1e-6, against scikit-learn, skglm and SciPy

    python benchmarks/linear_models.py [--repeats 9] [--threads 1] [--quick]

Eight problems of machine learning. Every contestant stops at its own tolerance, the loosest of 1e-1, 1e-2, … with which the objective
is within 1e-6 of the way from the start (0, or the given weights) to the least value that any of them reached with a tolerance of
1e-13; those that no tolerance brings there are missing. Ratios of time are to the first of each table, the peer.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from figures import Goal, Table
from harness import Contestant, Missing, Operation, Options, peer, race, run
from torch import Tensor

import fallline as fl
from fallline.core.blocks import Variable
from fallline.core.operators.linear import by_rows
from fallline.core.terms import L1
from fallline.problems.convex import breast_cancer
from fallline.solvers import BlockCD, DampedNewton, GradRegNewton, TrustRegionCG, TrustRegionNewton

PRECISION = 1e-6
LADDER = tuple(10.0**-k for k in range(1, 14))
Fit = Callable[[float], np.ndarray]


def ours(problem: fl.Problem, method: fl.Method, steps: int = 20_000) -> Fit:
    """A method of the library; its tolerance is on the gap."""
    return lambda tol: fl.solve(problem, method, fl.Budget(steps=steps), tol=tol).x.numpy()


def sklearn_logistic(A: Any, y: np.ndarray, ridge: float, solver: str) -> Fit:
    """LogisticRegression without an intercept of its own."""
    model = peer("sklearn.linear_model", "LogisticRegression")

    def fit(tol: float) -> np.ndarray:
        found = model(C=1 / (ridge * A.shape[0]), tol=tol, solver=solver, max_iter=20_000, fit_intercept=False).fit(A, y)
        weights: np.ndarray = found.coef_[0]
        return weights

    return fit


def lasso(library: str, A: np.ndarray, y: np.ndarray, penalty: float) -> Fit:
    """The Lasso of scikit-learn or skglm."""
    model = peer("sklearn.linear_model" if library == "scikit-learn" else library, "Lasso")

    def fit(tol: float) -> np.ndarray:
        weights: np.ndarray = model(alpha=penalty, tol=tol, max_iter=100_000, fit_intercept=False).fit(A, y).coef_
        return weights

    return fit


def tolerances(value: Callable[[np.ndarray], float], start: np.ndarray, fits: Mapping[str, Fit]) -> dict[str, float]:
    """The loosest tolerance of each that gets there; infinite where none does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = min(value(fit(LADDER[-1])) for fit in fits.values())
        target = best + PRECISION * (value(start) - best)
        return {name: next((tol for tol in LADDER if value(fit(tol)) <= target), math.inf) for name, fit in fits.items()}


def compared(title: str, value: Callable[[np.ndarray], float], start: np.ndarray, fits: Mapping[str, Fit], options: Options,
             goal: str) -> list[Table]:
    """One problem's table: the first fit is the reference."""
    found = tolerances(value, start, fits)

    def contestant(name: str) -> Contestant:
        def set_up() -> Operation:
            if math.isinf(found[name]):
                raise Missing("no tolerance brings it to the gap")

            def call() -> None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fits[name](found[name])

            return Operation(call)

        return Contestant(name, set_up)

    reference, *others = fits
    goals = [Goal(goal, "ratio", 1.0, f"no slower than {reference}")]
    return race(title, contestant(reference), [contestant(name) for name in others], options, goals=goals)


def smooth_logistic(title: str, A: Any, y: Tensor, ridge: float, fits: Mapping[str, fl.Method], options: Options, goal: str,
                    solvers: tuple[str, ...]) -> list[Table]:
    """L2-regularised logistic regression, with scikit-learn as the reference."""
    problem = fl.LinearModel(A, y, "logistic", ridge=ridge)
    matrix = A.numpy() if A.layout is torch.strided else scipy.sparse.csr_matrix(
        (A.values().numpy(), A.col_indices().numpy(), A.crow_indices().numpy()), shape=tuple(A.shape))
    contestants = {f"scikit-learn {solver}": sklearn_logistic(matrix, y.numpy(), ridge, solver) for solver in solvers}
    contestants |= {name: ours(problem, method) for name, method in fits.items()}
    value = lambda w: float(problem.value(torch.from_numpy(np.asarray(w))))
    return compared(title, value, np.zeros(A.shape[1]), contestants, options, goal)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Pixels and a constant; labels ±1 by parity."""
    from fallline.claims._logistic import digits_parity

    return digits_parity(None, 0)


def sparse_rows(n: int, d: int, each: int) -> tuple[Tensor, Tensor]:
    """n rows of ``each`` nonzeros, and labels of a random model."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(d, (n, each), generator=generator)
    rows = torch.arange(n).repeat_interleave(each)
    values = torch.randn(n * each, dtype=torch.float64, generator=generator) / each**0.5
    A = torch.sparse_coo_tensor(torch.stack([rows, columns.reshape(-1)]), values, (n, d)).coalesce()
    truth = torch.randn(d, dtype=torch.float64, generator=generator)
    labels = torch.where(A @ truth + 0.5 * torch.randn(n, dtype=torch.float64, generator=generator) > 0, 1.0, -1.0).double()
    return by_rows(A), labels


def lasso_tables(options: Options) -> list[Table]:
    """400 rows of 2,000 columns, and 2,000 rows of 200; 20 true coefficients."""
    found = []
    for n, d in ((400, 2_000), (2_000, 200)):
        generator = torch.Generator().manual_seed(0)
        A = torch.randn(n, d, dtype=torch.float64, generator=generator)
        truth = torch.zeros(d, dtype=torch.float64)
        truth[:20] = torch.randn(20, dtype=torch.float64, generator=generator)
        y = A @ truth + torch.randn(n, dtype=torch.float64, generator=generator)
        penalty = 0.1 * float((A.T @ y).abs().max()) / n
        problem = fl.Composite(fl.LinearModel(A, y), L1(penalty))
        value = lambda w, problem=problem: float(problem.value(torch.from_numpy(np.asarray(w))))
        fits = {library: lasso(library, np.asfortranarray(A.numpy()), y.numpy(), penalty) for library in ("skglm", "scikit-learn")}
        fits |= {"block-cd, variable": ours(problem, BlockCD(Variable(20), "gsd", "newton")), "block-cd": ours(problem, BlockCD(5))}
        found += compared(f"Lasso, {n:,} × {d:,}", value, np.zeros(d), fits, options, "block-cd, variable")
    return found


def network_table(options: Options) -> list[Table]:
    """A 2-10-1 tanh network fitted to 200 points of a bump by least squares; 200 steps at most."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(200, 2, dtype=torch.float64, generator=generator) - 1
    y = torch.exp(-4 * (x**2).sum(1))
    start = torch.randn(41, dtype=torch.float64, generator=generator)

    def residuals(w: Tensor) -> Tensor:
        hidden = torch.tanh(x @ w[:20].view(2, 10) + w[20:30])
        return hidden @ w[30:40] + w[40] - y

    problem = fl.LeastSquares(residuals, start)

    def scipys(tol: float) -> np.ndarray:
        jacobian = torch.func.jacrev(residuals)
        found = scipy.optimize.least_squares(
            lambda w: residuals(torch.from_numpy(w)).numpy(), start.numpy(), jac=lambda w: jacobian(torch.from_numpy(w)).numpy(),
            method="trf", ftol=None, xtol=None, gtol=max(tol, 1e-12), max_nfev=200)
        solution: np.ndarray = found.x
        return solution

    value = lambda w: float(problem.value(torch.from_numpy(np.asarray(w))))
    fits = {"SciPy least_squares": scipys,
            "gradient-regularized-newton, Gauss-Newton": ours(problem, GradRegNewton("gauss_newton"), 200),
            "trust-region-newton": ours(problem, TrustRegionNewton(), 200)}
    return compared("Least squares of a 2-10-1 network on 200 points", value, start.numpy(), fits, options,
                    "gradient-regularized-newton, Gauss-Newton")


def tables(options: Options) -> list[Table]:
    """All problems."""
    scale = 10 if options.quick else 1
    features, labels = breast_cancer()
    newtons = {"damped-newton": DampedNewton(), "trust-region-newton": TrustRegionNewton(),
               "gradient-regularized-newton": GradRegNewton()}
    found = []
    for ridge in (1e-3, 1e-6):
        found += smooth_logistic(f"Logistic regression, breast cancer, 569 × 31, ridge {ridge:g}", features, labels, ridge, newtons,
                                 options, "trust-region-newton", ("lbfgs", "newton-cholesky"))
    found += smooth_logistic("Logistic regression, digits' parity, 1,797 × 65, ridge 1e-4", *digits(), 1e-4, newtons, options,
                             "trust-region-newton", ("lbfgs", "newton-cholesky"))
    for n, d, each in ((100_000, 10_000, 20), (20_000, 200_000, 50)):
        A, y = sparse_rows(n // scale, d // scale, each)
        title = f"Logistic regression, sparse {n // scale:,} × {d // scale:,}, {each} nonzeros a row, ridge 1e-4"
        free = {"trust-region-cg": TrustRegionCG(max_cg=200), "gradient-regularized-newton, products": GradRegNewton("products")}
        found += smooth_logistic(title, A, y, 1e-4, free, options, "trust-region-cg", ("lbfgs", "newton-cg"))
    return found + lasso_tables(options) + network_table(options)


if __name__ == "__main__":
    run(__file__, __doc__, tables, ("scipy", "scikit-learn", "skglm"))
