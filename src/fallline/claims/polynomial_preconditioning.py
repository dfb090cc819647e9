"""Polynomial preconditioning: a few large eigenvalues stop to matter without being known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_most, claim, exactly, recorded
from fallline.core.counts import Counts
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.solvers import DampedNewton, KrylovGD, PreconditionedGD, SymmetricPolyPrecond

PAPER = Paper(
    slug="polynomial-preconditioning",
    title="Polynomial Preconditioning for Gradient Methods",
    arxiv="2301.13194",
    year=2023,
    room="solvers",
    methods=("solvers.PreconditionedGD", "solvers.PreconditionedFGM", "solvers.KrylovGD", "solvers.SymmetricPolyPrecond"),
    headline="the condition number of the spectrum without its τ largest eigenvalues takes the place of the whole one, without their "
    "being known; the Krylov method matches the best polynomial of degree τ",
)
EXPECTED = (1e5, 3.0e4, 8.4e3, 1.8e3, 9.8e2)


def spectrum(n: int) -> Tensor:
    """All but three log-spaced in [1, 100], then 1e4, 3e4 and 1e5."""
    return torch.cat([torch.logspace(0, 2, n - 3, dtype=torch.float64), torch.tensor([1e4, 3e4, 1e5], dtype=torch.float64)])


def orthonormal(rows: int, columns: int, key: Key) -> Tensor:
    """A random matrix of orthonormal columns."""
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=key.generator())).Q


def quadratic(n: int, seed: int) -> tuple[fl.Problem, Tensor]:
    """½ xᵀBx − bᵀx with a Gaussian solution, from 0, and B."""
    Q = orthonormal(n, n, Key(seed).fold("rotation"))
    B = (Q * spectrum(n)) @ Q.T
    B = (B + B.T) / 2
    solution = torch.randn(n, dtype=torch.float64, generator=Key(seed).fold("solution").generator())
    b = B @ solution
    return fl.Smooth(lambda x: x @ (B @ x) / 2 - b @ x, torch.zeros_like(b), gradient=lambda x: B @ x - b,
                     facts={"best_value": float(-b @ solution / 2)}), B


def logistic(n: int, seed: int) -> tuple[fl.Problem, Tensor]:
    """A sum of 5n logistic losses whose bound AᵀA/4 has a quarter of that spectrum; predictions of the truth have variance 1."""
    U, Q = orthonormal(5 * n, n, Key(seed).fold("rows")), orthonormal(n, n, Key(seed).fold("rotation"))
    A = U * spectrum(n).sqrt() @ Q.T
    generator = Key(seed).fold("labels").generator()
    predictions = U @ torch.randn(n, dtype=torch.float64, generator=generator) * 5**0.5
    labels = 2 * (torch.rand(5 * n, dtype=torch.float64, generator=generator) < torch.sigmoid(predictions)).double() - 1
    problem = fl.LinearModel(A, labels, "logistic", weights=torch.ones(5 * n, dtype=torch.float64))
    problem.facts["best_value"] = fl.solve(problem, DampedNewton(), fl.Budget(steps=100), tol=1e-10).fun
    return problem, A.T @ A / 4


def solved(problem: fl.Problem, method: fl.Method, limit: float, cost: Callable[[Counts, int], float]) -> float:
    """The cost until (f − f*)/(f₀ − f*) ≤ 1e-6, or at which it has passed the limit."""
    best = problem.facts["best_value"]
    first = float(problem.value(problem.x0)) - best

    def stop(moment: Moment) -> bool:
        assert moment.report.value is not None
        return float(moment.report.value) - best <= 1e-6 * first or cost(moment.counts, moment.step) > limit

    result = fl.solve(problem, method, fl.Budget(steps=10**6), callback=stop)
    return cost(Counts(result.counts), result.nit)


def products(degree: int) -> Callable[[Counts, int], float]:
    """Products with B: one a value, one a gradient, and those of a step."""
    return lambda counts, step: counts["values"] + counts["gradients"] + degree * step


@claim("each degree drops the largest eigenvalue left from the condition number; degree 3 takes at most a fifth of gradient descent's "
       "products with B, and the Krylov method no more than the polynomial")
def isolated_eigenvalues(scale: Scale, seed: int) -> Evidence:
    n, degrees = (100, 5) if scale is Scale.QUICK else (5_000, 11)
    seeds = range(seed, seed + 3)
    conditions = [[high / low for low, high in (SymmetricPolyPrecond(quadratic(n, s)[1], degree).extreme_eigs(n)
                                                for degree in range(degrees))] for s in seeds]
    polynomial, krylov, plain = [], [], []
    for s in seeds:
        problem, B = quadratic(n, s)
        polynomial.append(solved(problem, PreconditionedGD(B, 3), 1e9, products(3)))
        krylov.append(solved(problem, KrylovGD(B, 3), 1e9, products(4)))
        plain.append(solved(problem, PreconditionedGD(B, 0), 5.1 * polynomial[-1], products(0)))
    return Evidence([
        *(exactly(f"condition number of BP at degree {degree}, over the expected",
                  [c[degree] / expected for c in conditions], 1.0, 0.02) for degree, expected in enumerate(EXPECTED) if n == 100),
        at_most("products, degree 3 / gradient descent", [a / b for a, b in zip(polynomial, plain, strict=True)], 0.2),
        at_most("products, Krylov / polynomial", [a / b for a, b in zip(krylov, polynomial, strict=True)], 1.0),
        recorded("products at degree 3", polynomial), recorded("products of the Krylov method", krylov),
        *(recorded(f"condition number at degree {degree}", [c[degree] for c in conditions]) for degree in range(degrees)),
    ], notes=["A quadratic in a random rotation, to a gap of 1e-6 of that at the start; a value and a gradient are a product each. All "
              "sides search their step in the same way and have nothing to tune. Gradient descent was ended at 5.1 times the products "
              f"of degree 3. Here n = {n}; full: n = 5,000 and degrees to 10, without the expected figures, which are of n = 100."])


@claim("on logistic regression whose bound AᵀA/4 has such a spectrum the Krylov method of degree 3 takes at most a quarter of "
       "gradient descent's steps")
def linear_model(scale: Scale, seed: int) -> Evidence:
    n = 100 if scale is Scale.QUICK else 1_000
    ours, plain = [], []
    for s in range(seed, seed + 3):
        problem, B = logistic(n, s)
        ours.append(solved(problem, KrylovGD(B, 3), 1e9, lambda counts, step: step))
        plain.append(solved(problem, PreconditionedGD(B, 0), 4.1 * ours[-1], lambda counts, step: step))
    return Evidence([
        at_most("steps, Krylov / gradient descent", [a / b for a, b in zip(ours, plain, strict=True)], 0.25),
        recorded("steps of the Krylov method", ours),
    ], notes=["To a gap of 1e-6 of that at the start; gradient descent, with the same backtracking, was ended at 4.1 times the Krylov "
              "method's steps. 500 rows of 100 features, labels drawn from a model whose predictions have variance 1."])
