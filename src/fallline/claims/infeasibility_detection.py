"""Infeasibility detected at the optimal rate: errors of the displacement vector, and verdicts on linear programs."""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.core.driver import Moment
from fallline.core.method import Method
from fallline.equations import Halpern, Picard
from fallline.solvers import Farkas, Feasibility, LinearProgram

PAPER = Paper(
    slug="infeasibility-detection",
    title="Accelerated Infeasibility Detection of Constrained Optimization and Fixed-Point Iterations",
    arxiv="2303.15876",
    year=2023,
    room="solvers",
    methods=("equations.Halpern", "equations.Picard", "solvers.LinearProgram", "solvers.Feasibility"),
    headline="the residuals of the accelerated iteration find the infimal displacement vector to a squared error of O(1/k²), those of "
    "the plain one to O(1/k); a matching lower bound Ω(1/k²)",
)
GAP = 0.3
STARTS = 16


def subspaces(seed: int) -> tuple[fl.Problem, Tensor]:
    """Two subspaces of R²⁰⁰ with 60 principal angles from 0.001 to 1, one shifted by 0.3 off both, and the v of Douglas-Rachford."""
    generator = fl.Key(seed).fold("subspaces").generator()
    basis = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64, generator=generator)).Q
    angles = torch.logspace(-3, 0, 60, dtype=torch.float64)
    U = basis[:, :60].contiguous()
    W = (basis[:, :60] * angles.cos() + basis[:, 60:120] * angles.sin()).contiguous()
    v = -GAP * basis[:, 120:121]
    start = 10 * torch.randn(200, STARTS, dtype=torch.float64, generator=generator)
    return Feasibility(lambda z: U @ (U.T @ z), lambda z: W @ (W.T @ z) - v, start, name="parallel subspaces"), v


def errors(problem: fl.Problem, v: Tensor, method: Method, steps: int) -> list[float]:
    """‖x_k − T x_k − v‖² for k = 0 … steps, the mean over the starts, which are the columns of x."""
    found: list[float] = []

    def look(moment: Moment) -> None:
        found.append(float((moment.report.certificate.residual - v).square().sum(0).mean()))

    fl.solve(problem, method, fl.Budget(steps=steps), callback=look)
    return found


def slope(squared: list[float], first: int, last: int) -> float:
    """The exponent of k in the squared error: least squares in the logarithms over all k from first to last."""
    return float(np.polyfit(np.log(np.arange(first, last + 1)), np.log(squared[first:last + 1]), 1)[0])


@claim("the squared error of the accelerated residuals falls as k^−1.85 or faster, that of the plain ones as k^−1.1 or slower")
def rates(scale: Scale, seed: int) -> Evidence:
    last = 5_000 if scale is Scale.QUICK else 50_000
    found: dict[str, list[list[float]]] = {"Halpern": [], "Picard": []}
    for s in range(seed, seed + 3):
        problem, v = subspaces(s)
        for name, method in (("Halpern", Halpern()), ("Picard", Picard())):
            found[name].append(errors(problem, v, method, last))
    slopes = {name: [slope(run, 50, 5_000) for run in runs] for name, runs in found.items()}
    ratios = [plain[1_000] / fast[1_000] for plain, fast in zip(found["Picard"], found["Halpern"], strict=True)]
    shown = sorted({int(k) for k in np.geomspace(1, last, 120)})
    return Evidence(
        [
            at_most("slope of the squared error, Halpern", slopes["Halpern"], -1.85),
            at_least("slope of the squared error, Picard", slopes["Picard"], -1.1),
            at_least("squared error at k = 1000, Picard / Halpern", ratios, 20.0),
            *([recorded("slope over k from 5000 to 50000, Halpern", [slope(run, 5_000, last) for run in found["Halpern"]])]
              if scale is Scale.FULL else []),
        ],
        curves={name: (shown, [runs[0][k] for k in shown]) for name, runs in found.items()},
        axes=("k", "‖x_k − T x_k − v‖²"),
        notes=["Douglas-Rachford of two subspaces of R²⁰⁰, 0.3 apart, 60 principal angles evenly in their logarithm from 0.001 to 1; "
               "the mean over 16 starts of ten times Gaussian entries. Slopes are fitted over all k from 50 to 5000. From one start "
               "the slope of the plain residuals, which is −1 in expectation, varies between −1.2 and −0.95. Full: 50,000 steps."],
    )


def linear_program(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian, 30 equations in 50 variables with a dual solution.

    "feasible": b from a nonnegative point. "infeasible": the columns have signs such that Aᵀy ≥ 0 for a y with bᵀy < 0. "near": b is
    Gaussian, for which there is almost never a point, and not far from one.
    """
    generator = fl.Key(seed).fold("programs").generator()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    A, y = normal(30, 50), normal(30)
    b = A @ normal(50).clamp(min=0) if kind == "feasible" else normal(30)
    if kind == "infeasible":
        A, b = A * torch.where(y @ A >= 0, 1.0, -1.0), b * torch.where(b @ y < 0, 1.0, -1.0)
    return A.T @ normal(30) + normal(50).abs(), A, b


def status_of_highs(c: Tensor, A: Tensor, b: Tensor) -> str:
    found = scipy.optimize.linprog(c.numpy(), A_eq=A.numpy(), b_eq=b.numpy(), method="highs")
    return {0: "solved", 2: "primal infeasible"}.get(found.status, "undecided")


def verdict(result: fl.Result) -> str:
    if result.success:
        return "solved"
    return result.certificate.kind if isinstance(result.certificate, Farkas) else "undecided"


def violation(certificate: Farkas, A: Tensor, b: Tensor) -> float:
    """max −(Aᵀy)_j against bᵀy, from the vector alone: infinite if y proves nothing."""
    y = certificate.vector
    return max(0.0, float((-A.T @ y).max())) / -float(b @ y) if float(b @ y) < 0 else math.inf


def large_infeasible(seed: int, n: int = 100_000) -> float:
    """The violation of the proof for a sparse program, ten entries a column; infinite if there is none in 20,000 steps."""
    generator, m = fl.Key(seed).fold("large").generator(), n // 5
    rows = torch.randint(m, (10 * n,), generator=generator)
    values = torch.randn(10 * n, dtype=torch.float64, generator=generator)
    columns = torch.arange(n).repeat_interleave(10)
    y = torch.randn(m, dtype=torch.float64, generator=generator)
    signs = torch.zeros(n, dtype=torch.float64).index_add(0, columns, values * y[rows]).sign()
    A = torch.sparse_coo_tensor(torch.stack([rows, columns]), values * signs[columns], (m, n)).coalesce()
    b, c = -y.abs() * y.sign(), torch.rand(n, dtype=torch.float64, generator=generator)
    result = fl.solve(LinearProgram(c, A, b), Picard(), fl.Budget(steps=20_000), tol=1e-6, every=64)
    return violation(result.certificate, A, b) if verdict(result) == "primal infeasible" else math.inf


def near(seed: int) -> list[Figure]:
    """How many of 20 programs with a Gaussian b are left undecided after 20,000 steps."""
    drawn = [linear_program("near", seed + i) for i in range(20)]
    return [recorded(f"of 20 programs near to feasible ones, undecided by {name}",
                     sum(verdict(fl.solve(LinearProgram(*program), method, fl.Budget(steps=20_000), tol=2e-3, every=32)) == "undecided"
                         for program in drawn)) for name, method in (("Halpern", Halpern()), ("Picard", Picard()))]


@claim("verdicts on 20 feasible and 20 infeasible linear programs agree with those of HiGHS, and every proof holds to 1e-4")
def verdicts(scale: Scale, seed: int) -> Evidence:
    agree, worst, steps = 0, 0.0, {"Halpern": [0.0], "Picard": [0.0]}
    drawn = [linear_program(kind, seed + i) for kind in ("feasible", "infeasible") for i in range(20)]
    for c, A, b in drawn:
        found = []
        for name, method in (("Halpern", Halpern()), ("Picard", Picard())):
            result = fl.solve(LinearProgram(c, A, b), method, fl.Budget(steps=20_000), tol=2e-3, every=32)
            found.append(verdict(result))
            steps[name].append(result.nit)
            if isinstance(result.certificate, Farkas):
                worst = max(worst, violation(result.certificate, A, b))
        agree += found == 2 * [status_of_highs(c, A, b)]
    return Evidence([
        exactly("programs of 40 on which both iterations agree with HiGHS", agree, 40),
        at_most("largest violation of a Farkas vector", worst, 1e-4),
        *(recorded(f"most steps, {name}", max(taken)) for name, taken in steps.items()),
        *(near(seed) if scale is Scale.FULL else []),
        *([at_most("violation, sparse program of 100,000 variables", large_infeasible(seed), 1e-4)] if scale is Scale.FULL else []),
    ], notes=["Gaussian programs with 30 equations and 50 variables; solved means a fixed-point residual of 0.002, infeasible a "
              "checked Farkas vector, within 20,000 steps. The violation is max −(Aᵀy)_j / −bᵀy. Full: programs with a Gaussian b, "
              "whose v is smaller, and a sparse one of 100,000 variables by the plain iteration."])
