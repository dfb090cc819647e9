"""Curvature that follows from how an objective is made: of samples' gradients, of residuals, of a linear model, of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fallline.core import curvature, tree
from fallline.core.errors import MissingOracle
from fallline.core.objective import ModelProblem, Training
from fallline.core.operators import LinearOperator
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.solvers.descent.curvature import MatrixSource, Products


@dataclass(frozen=True)
class Fisher(MatrixSource):
    """(1/n) Σ ∇f_i ∇f_iᵀ of the gradients of the samples' losses: positive semi-definite.

    A linear model's ridge adds its own Hessian, and is left out of the gradients.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("per_sample_gradients",)

    def matrix(self, problem: Problem, x: Tree) -> Tensor:
        rows = problem.per_sample_gradients(x)
        samples = len(tree.leaves(rows)[0])
        flat = torch.cat([leaf.reshape(samples, -1) for leaf in tree.leaves(rows)], 1)
        ridge = problem.linear_model.ridge if problem.has("linear_model") else 0.0
        if ridge:
            flat = flat - ridge * x
        return flat.mT @ flat / samples + ridge * torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)


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
        return _curvature_bound(problem) if problem.has("linear_model") else _linearized(problem, x).to_dense()


@dataclass(frozen=True)
class GaussNewtonProducts(Products):
    """Jᵀ∇²ℓJ of ``LeastSquares`` or ``Training`` by products, solved as in ``Products``; a product costs two backward passes."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gradient",)

    def operator(self, problem: Problem, x: Tree) -> LinearOperator:
        return _linearized(problem, x).operator


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


def _curvature_bound(problem: Problem) -> Tensor:
    parts = problem.linear_model
    if math.isinf(parts.loss.largest_curvature):
        raise ValueError(f"the {parts.loss.name!r} loss has no bound on its curvature; use Exact()")
    A = parts.A.to_dense()
    return A.mT @ (A * (parts.loss.largest_curvature * parts.weights)[:, None]) + parts.ridge * torch.eye(
        A.shape[1], dtype=A.dtype, device=A.device)
