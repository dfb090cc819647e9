"""Curvature that follows from how an objective is made: of samples' gradients, of residuals, of a linear model, of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fallline.core import curvature, tree
from fallline.core.errors import MissingOracle
from fallline.core.keys import Key
from fallline.core.linear_model import LinearParts
from fallline.core.objective import ModelProblem, Training
from fallline.core.operators import LinearOperator
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.solvers.descent.curvature import MatrixSource, Memory, Products
from fallline.solvers.descent.local import Dense, Local


@dataclass(frozen=True)
class Fisher(MatrixSource):
    """(1/n) Σ ∇f_i ∇f_iᵀ of the gradients of the samples' losses: positive semi-definite.

    For a linear model Σ w_i ℓ'_i² a_i a_iᵀ + ridge I: its ridge adds its own Hessian, and is left out of the gradients.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("per_sample_gradients",)

    def matrix(self, problem: Problem, x: Tree) -> Tensor:
        if problem.has("linear_model"):
            parts = problem.linear_model
            problem.counts.add("per_sample_gradients")
            slopes = parts.loss.slope(parts.operator.matvec(x), parts.targets)
            return _weighted(parts, parts.weights * slopes**2)
        rows = problem.per_sample_gradients(x)
        samples = len(tree.leaves(rows)[0])
        flat = torch.cat([leaf.reshape(samples, -1) for leaf in tree.leaves(rows)], 1)
        return flat.mT @ flat / samples


def _weighted(parts: LinearParts, weights: Tensor) -> Tensor:
    """Aᵀ diag(weights) A + ridge I."""
    A = parts.A.to_dense()
    return A.mT @ (A * weights[:, None]) + parts.ridge * torch.eye(A.shape[1], dtype=A.dtype, device=A.device)


@dataclass(frozen=True)
class GaussNewton(MatrixSource):
    """The curvature of the outer, convex part of the objective alone: positive semi-definite.

    JᵀJ for ``LeastSquares``; the bound Aᵀ diag(w sup ℓ'') A + ridge I for a ``LinearModel`` (constant: AᵀA / 4n for a mean of logistic
    losses); Jᵀ ∇²ℓ J for ``Training`` and realisations of it.
    """

    def matrix(self, problem: Problem, x: Tree) -> Tensor:
        if problem.kind == "least-squares":
            _, jacobian = problem.linearization(x)
            return jacobian.mT @ jacobian
        return _linearized(problem, x).to_dense()

    def start(self, key: Key) -> Memory:
        return {"bound": None}

    def at(self, problem: Problem, x: Tree, memory: Memory) -> tuple[Local, Memory]:
        if not problem.has("linear_model"):
            return super().at(problem, x, memory)
        if memory["bound"] is None:  # the same everywhere
            memory = {"bound": _weighted(problem.linear_model, _bounds(problem.linear_model))}
        return Dense(memory["bound"], problem.counts), memory


@dataclass(frozen=True)
class GaussNewtonProducts(Products):
    """The matrices of ``GaussNewton`` by products, solved as in ``Products``; a product costs two backward passes."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gradient",)

    def operator(self, problem: Problem, x: Tree) -> LinearOperator:
        if not problem.has("linear_model"):
            return _linearized(problem, x).operator
        parts = problem.linear_model
        weights = _bounds(parts)

        def product(v: Tensor) -> Tensor:
            problem.counts.add("hvps")
            return parts.operator.adjoint(weights * parts.operator.matvec(v)) + parts.ridge * v

        return LinearOperator((len(x), len(x)), product, product, dtype=x.dtype, device=x.device)


class _Residuals:
    """A least-squares problem as a realisation of a model: its outputs are the residuals."""

    def __init__(self, problem: Problem, x: Tree) -> None:
        self.problem, self.like, self.counts = problem, x, problem.counts

    def outputs(self, point: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.problem.residuals(tree.unflatten(point["x"], self.like))
        return found

    def loss(self, outputs: Tensor) -> Tensor:
        return outputs.square().sum() / 2


def _linearized(problem: Problem, x: Tree) -> curvature.GaussNewton:
    if problem.kind == "least-squares":
        return curvature.GaussNewton(_Residuals(problem, x), {"x": tree.flatten(x)})
    if isinstance(problem, Training):
        problem = ModelProblem(problem.model, problem.loss_fn, *problem.data).counted(problem.counts)
    if not hasattr(problem, "outputs"):
        raise MissingOracle(f"the Gauss-Newton matrix needs residuals, and {problem.name!r} has none; build the problem with "
                            "LeastSquares, LinearModel or Training")
    return curvature.GaussNewton(problem, x)


def _bounds(parts: LinearParts) -> Tensor:
    """w sup ℓ''."""
    if math.isinf(parts.loss.largest_curvature):
        raise ValueError(f"the {parts.loss.name!r} loss has no bound on its curvature; use Exact(), or Products()")
    return parts.loss.largest_curvature * parts.weights
