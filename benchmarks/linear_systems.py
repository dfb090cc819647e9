"""Poisson's equation on square grids: Krylov methods and relaxation against SciPy and PyAMG

    python benchmarks/linear_systems.py [--repeats 15] [--threads 2] [--quick]

Five-point Laplacians with Dirichlet boundary as sparse rows in float64, Gaussian right-hand sides, from 0 to a relative residual of
1e-8 or 500 iterations, whichever comes first; relaxation makes 50 sweeps with ω = 1.5. "matvecs" are the products with A in a solve, a
sweep of PyAMG counting as one, and "residual" the relative residual at the end, computed anew. Ratios of time are to the first
contestant at the same size. fallline's driver reports after every step, "every 10" after every tenth; the function is what other parts
of the library call. SciPy's MINRES stops by an estimate against ‖A‖‖x‖ and not ‖b‖; its tolerance is 1e-11, which takes it to about
the same residual.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg
import torch
from figures import Row, Table
from harness import Contestant, Missing, Operation, Options, measured, paired, run, tell

import fallline as fl
from fallline.core.method import Method
from fallline.core.operators import LinearOperator, conjugate_gradient, minres
from fallline.equations import MINRES, SOR, ConjugateGradient

SIZES, TOL, ITERATIONS, SWEEPS, OMEGA = (64, 128, 256, 512), 1e-8, 500, 50, 1.5
LIBRARIES = ("scipy", "pyamg")


class Counted(scipy.sparse.linalg.LinearOperator):  # type: ignore[misc]
    """A matrix that counts its products."""

    def __init__(self, A: sparse.csr_matrix) -> None:
        super().__init__(A.dtype, A.shape)
        self.A, self.products = A, 0

    def _matvec(self, v: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.A @ v


@dataclass(frozen=True)
class System:
    """A x = b for SciPy and for torch."""

    n: int

    @property
    def A(self) -> sparse.csr_matrix:
        return _laplacian(self.n)

    @property
    def b(self) -> np.ndarray:
        return np.random.default_rng(self.n).standard_normal(self.n**2)

    @property
    def problem(self) -> fl.Problem:
        return fl.LinearSystem(_rows(self.n), torch.from_numpy(self.b))

    def residual(self, x: Any) -> float:
        return float(np.linalg.norm(self.b - self.A @ np.asarray(x)) / np.linalg.norm(self.b))


@cache
def _laplacian(n: int) -> sparse.csr_matrix:
    line = sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(n, n))
    return (sparse.kron(line, sparse.eye(n)) + sparse.kron(sparse.eye(n), line)).tocsr()


@cache
def _rows(n: int) -> torch.Tensor:
    A = _laplacian(n)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        return torch.sparse_csr_tensor(torch.from_numpy(A.indptr.astype(np.int64)), torch.from_numpy(A.indices.astype(np.int64)),
                                       torch.from_numpy(A.data), A.shape, check_invariants=True)


Solver = Callable[[System], tuple[Callable[[], Any], Callable[[], tuple[Any, float]]]]
"""For a system, the call that is timed, and one that gives x and the number of products."""


def ours(method: Method, steps: int, every: int = 1) -> Solver:
    """A method by ``solve``."""

    def of(system: System) -> Any:
        problem = system.problem
        call = lambda: fl.solve(problem, method, fl.Budget(steps=steps), tol=TOL, every=every)
        return call, lambda: ((result := call()).x, result.counts["matvecs"])

    return of


def function(solve: Callable[..., Any]) -> Solver:
    """A function of the core."""

    def of(system: System) -> Any:
        operator, b = LinearOperator.from_tensor(_rows(system.n)), torch.from_numpy(system.b)
        call = lambda: solve(operator, b, tol=TOL, max_iterations=ITERATIONS)
        return call, lambda: ((found := call()).solution, found.iterations + 1)

    return of


def theirs(solve: Callable[..., Any], **options: Any) -> Solver:
    """A function ``(A, b, …) -> x, info`` of SciPy or PyAMG."""

    def of(system: System) -> Any:
        A, b = system.A, system.b

        def count() -> tuple[Any, float]:
            counted = Counted(A)
            return solve(counted, b, **options)[0], counted.products

        return lambda: solve(A, b, **options), count

    return of


def sweeps(system: System) -> Any:
    """PyAMG's SOR."""
    relaxation = imported("pyamg.relaxation.relaxation")

    def call() -> np.ndarray:
        x = np.zeros_like(system.b)
        relaxation.sor(system.A, x, system.b, OMEGA, iterations=SWEEPS)
        return x

    return call, lambda: (call(), SWEEPS)


def imported(module: str) -> Any:
    """A module of another library."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module} cannot be imported: {error}") from error


def pyamg_cg(system: System) -> Any:
    """PyAMG's conjugate gradients."""
    return theirs(imported("pyamg.krylov").cg, tol=TOL, maxiter=ITERATIONS, criteria="rr")(system)


CG: dict[str, Solver] = {
    "scipy": theirs(scipy.sparse.linalg.cg, rtol=TOL, maxiter=ITERATIONS),
    "pyamg": pyamg_cg,
    "fallline": ours(ConjugateGradient(), ITERATIONS),
    "fallline, every 10": ours(ConjugateGradient(), ITERATIONS, every=10),
    "fallline, function": function(conjugate_gradient),
}
OF_MINRES: dict[str, Solver] = {
    "scipy": theirs(scipy.sparse.linalg.minres, rtol=TOL / 1_000, maxiter=ITERATIONS),
    "fallline": ours(MINRES(), ITERATIONS),
    "fallline, every 10": ours(MINRES(), ITERATIONS, every=10),
    "fallline, function": function(minres),
}
RELAXATION: dict[str, Solver] = {
    "pyamg": sweeps,
    "fallline": ours(SOR(OMEGA), SWEEPS),
    "fallline, every 10": ours(SOR(OMEGA), SWEEPS, every=10),
}


def contestant(solver: Solver, system: System) -> Contestant:
    """A solver on a system."""
    return Contestant("", lambda: Operation(solver(system)[0]))


def table(title: str, solvers: dict[str, Solver], options: Options) -> list[Table]:
    """Every solver at every size; the first of them is what the others' times are told in."""
    print(title)
    reference, rows = next(iter(solvers)), []
    for n in SIZES[:1] if options.quick else SIZES:
        system = System(n)
        for name in options.chosen(solvers):
            rows.append(_row(f"{n}²: {name}", partial(contestant, system=system), solvers[reference], solvers[name], system, options))
            tell(rows[-1])
    return [Table(title, f"{reference} of the same size", tuple(rows))] if rows else []


def _row(name: str, enter: Callable[[Solver], Contestant], reference: Solver, solver: Solver, system: System, options: Options) -> Row:
    try:
        pairs = paired(enter(reference), enter(solver), options.repeats)
        x, products = solver(system)[1]()
    except Missing as reason:
        return Row(name, missing=str(reason))
    return measured(name, pairs, figures={"matvecs": products, "residual": system.residual(x)})


def tables(options: Options) -> list[Table]:
    """All of them."""
    return [*table("Conjugate gradients", CG, options), *table("MINRES", OF_MINRES, options),
            *table("SOR, 50 sweeps", RELAXATION, options)]


if __name__ == "__main__":
    run(__file__, __doc__, tables, LIBRARIES)
