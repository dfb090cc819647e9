"""Curvature sources: what takes the place of the Hessian in a descent.

    exact        ∇²f(x), as a matrix
    products     ∇²f(x) by its products with vectors: nothing of size n² is formed
    zero         0: gradient descent
    diagonal     diag(∇²f), an average of Hutchinson's estimates
    fisher       (1/n) Σ ∇f_i ∇f_iᵀ, from per-sample gradients
    Gauss-Newton JᵀJ of residuals; Aᵀ diag(w sup ℓ'') A of a linear model; Jᵀ∇²ℓJ of a network
    sketched     the Hessian of a random sample of the data
    averaged     the weighted mean of another source's matrices so far
    lazy         another source's, renewed every few steps
    given        any function x -> matrix

All are symmetric matrices; which of them are positive semi-definite is theirs to say. Vectors are flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.checks import check_count
from fallline.core.keys import Key
from fallline.core.operators import LinearOperator
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.solvers.descent.local import Decomposed, Dense, Diagonal, Krylov, Local, Spectrum

Memory = dict[str, Any]


@dataclass(frozen=True)
class Curvature:
    """A source of symmetric matrices; ``at`` is asked once a step.

    Attributes
    ----------
    needs : tuple of str
        Oracles the problem must have.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def start(self, key: Key) -> Memory:
        """Return what is kept between steps: tensors, numbers and keys."""
        return {}

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        """Return the curvature at x and the new memory."""
        raise NotImplementedError(f"{type(self).__name__} must define at")


@dataclass(frozen=True)
class MatrixSource(Curvature):
    """A source that is a function of x."""

    def matrix(self, problem: Problem, x: Tree) -> Tensor:
        """Return the matrix (n, n)."""
        raise NotImplementedError(f"{type(self).__name__} must define matrix")

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        return Dense(self.matrix(problem, x), problem.counts), memory


@dataclass(frozen=True)
class Exact(MatrixSource):
    """∇²f(x) as a dense matrix: O(n²) memory, O(n³) a factorisation."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("hessian",)

    def matrix(self, problem: Problem, x: Tree) -> Tensor:
        return problem.hessian(x)


@dataclass(frozen=True)
class Products(Curvature):
    """∇²f(x) by products: conjugate gradient solves to min(1/2, ‖g‖^power), Lanczos gives spectra.

    Parameters
    ----------
    power : float, default 0.5
        Of the gradient norm in the relative residual asked for; 1/2 gives superlinear convergence of order 3/2.
    max_iterations : int, default 200
        Products of one solution.
    size : int, default 30
        Vectors of the Krylov basis in which cubic and trust-region models are solved.
    """

    power: float = 0.5
    max_iterations: int = 200
    size: int = 30

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power >= 0):
            raise ValueError(f"power must be a finite number of at least 0, got {self.power}; 0.5 is typical")
        check_count("max_iterations", self.max_iterations, "200 is typical")
        check_count("size", self.size, "30 is typical")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("hvp",)

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        tolerance = lambda norm: max(min(0.5, norm**self.power), 1e-14)
        return Krylov(self.operator(problem, x), tolerance, self.max_iterations, self.size), memory

    def operator(self, problem: Problem, x: Tree) -> LinearOperator:
        """Return the matrix as an operator on flat vectors."""
        return problem.hessian_operator(x)


@dataclass(frozen=True)
class Zero(Curvature):
    """0: a regularised step is then gradient descent."""

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        return Diagonal(torch.zeros_like(tree.flatten(x))), memory


@dataclass(frozen=True)
class HutchinsonDiagonal(Curvature):
    """D ← βD + (1 − β) u ∘ (∇²f u), u of random signs: O(n) memory, one product a step. Entries count by their size.

    Parameters
    ----------
    beta : float, default 0.9
    probes : int, default 1
        Products a step; 10 of them begin.
    """

    beta: float = 0.9
    probes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {self.beta}")
        check_count("probes", self.probes, "1 is typical")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("hvp",)

    def start(self, key: Key) -> Memory:
        return {"diagonal": None, "key": key.fold("hutchinson"), "k": 0}

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        first = memory["diagonal"] is None
        operator = problem.hessian_operator(x)
        generator = memory["key"].fold(memory["k"]).generator(operator.device)
        probes = 10 if first else self.probes
        signs = [2.0 * torch.randint(2, (operator.shape[1],), generator=generator, device=operator.device).to(operator.dtype) - 1
                 for _ in range(probes)]
        estimate = torch.stack([u * operator.matvec(u) for u in signs]).mean(0)
        diagonal = estimate if first else torch.lerp(estimate, memory["diagonal"], self.beta)
        return Diagonal(diagonal.abs()), {**memory, "diagonal": diagonal, "k": memory["k"] + 1}


@dataclass(frozen=True)
class Sketched(MatrixSource):
    """∇²f of a random sample of the data, ``size`` points drawn anew each step."""

    size: int = 100

    def __post_init__(self) -> None:
        check_count("size", self.size, "several times the number of variables is typical")

    def start(self, key: Key) -> Memory:
        return {"key": key.fold("sketch"), "k": 0}

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        drawn = problem.draw(memory["key"].fold(memory["k"]), size=self.size)
        drawn.require("hessian", by="Sketched")
        return Dense(drawn.hessian(x), problem.counts), {**memory, "k": memory["k"] + 1}


@dataclass(frozen=True)
class Averaged(Curvature):
    """H̄ ← H̄ + w (H − H̄), w = (p + 1)/(k + p + 1): the mean of a dense source's matrices, later ones weighing like k^p.

    It takes the noise out of a sketch: with p = 0 all count alike, a larger p forgets the start sooner.
    """

    source: Curvature = Sketched()
    power: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.power) and self.power >= 0):
            raise ValueError(f"power must be a finite number of at least 0, got {self.power}")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.source.needs

    def start(self, key: Key) -> Memory:
        return {"source": self.source.start(key), "mean": None, "k": 0}

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        local, source = self.source.at(problem, x, memory["source"])
        if not isinstance(local, Dense):
            raise ValueError(f"Averaged needs a source of dense matrices, got {self.source!r}")
        k = memory["k"]
        mean = local.matrix if k == 0 else torch.lerp(memory["mean"], local.matrix, (self.power + 1) / (k + self.power + 1))
        return Dense(mean, problem.counts), {"source": source, "mean": mean, "k": k + 1}


@dataclass(frozen=True)
class Given(MatrixSource):
    """Any function ``x -> symmetric matrix (n, n)``."""

    function: Callable[[Tree], Tensor] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be a function x -> matrix, got {self.function!r}")

    def matrix(self, problem: Problem, x: Tree) -> Tensor:
        problem.counts.add("curvatures")
        found, n = self.function(x), tree.size(x)
        if not isinstance(found, Tensor) or found.shape != (n, n):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the curvature function must return a matrix of shape ({n}, {n}), got {shape}")
        return found



@dataclass(frozen=True)
class Lazy(Curvature):
    """Another source's matrix, renewed every ``period`` steps and decomposed once: a step in between costs O(n²).

    Parameters
    ----------
    source : Curvature of dense matrices, default ``Exact()``
    period : int or "d", default "d"
        "d" is the number of variables: the best period where a Hessian costs d gradients.
    """

    source: Curvature = Exact()
    period: int | Literal["d"] = "d"

    def __post_init__(self) -> None:
        check_period(self.period)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.source.needs

    def start(self, key: Key) -> Memory:
        return {"source": self.source.start(key), "values": None, "vectors": None, "k": 0}

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        if memory["values"] is None or memory["k"] >= (tree.size(x) if self.period == "d" else self.period):
            local, source = self.source.at(problem, x, memory["source"])
            if not isinstance(local, Dense):
                raise ValueError(f"Lazy needs a source of dense matrices, got {self.source!r}")
            spectrum = local.spectrum(tree.flatten(x))
            memory = {"source": source, "values": spectrum.values, "vectors": spectrum.vectors, "k": 0}
        return Decomposed(Spectrum(memory["values"], memory["vectors"])), {**memory, "k": memory["k"] + 1}


def check_period(period: Any) -> None:
    """Raise unless the period is "d" or a whole number of at least 1."""
    if period != "d" and (isinstance(period, bool) or not isinstance(period, int) or period < 1):
        raise ValueError(f"period must be 'd' (the dimension) or a whole number of at least 1, got {period!r}")
