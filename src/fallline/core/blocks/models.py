"""What block methods ask of a smooth f: partial derivatives, curvature and bounds of a block, kept up to date as blocks move.

=================  ========================================  =========================================================
``LinearModel``    f = Σ w_i ℓ(a_iᵀx) + ridge/2 ‖x‖²          keeps z = A x; a block costs the nonzeros of A_b
``Quadratic``      f = ½ xᵀH x − bᵀx                          keeps ∇f; a block costs the nonzeros of H_b
any other problem  by its gradient and Hessian products      keeps f and ∇f; a block costs a gradient
=================  ========================================  =========================================================

A model changes ``x`` (n,) and what it keeps in place. Work that no oracle counts is given as shares of a gradient.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.errors import MissingOracle
from fallline.core.linear_model import LinearParts
from fallline.core.operators.columns import DenseColumns, Rows, SparseColumns, diagonal_block
from fallline.core.problem import Problem
from fallline.core.quadratic import QuadraticParts

Kept = dict[str, Tensor]
UNBOUNDED = ("fixed bounds on curvature need a Quadratic, or a LinearModel whose loss has bounded curvature (squared, logistic); "
             "update='newton' takes the Hessian itself, update='gradient' finds its steps by doubling")


class BlockModel(abc.ABC):
    """A smooth f, seen block by block.

    Attributes
    ----------
    follows : bool
        Whether ∇f is kept up to date at no further cost.
    counted : bool
        Whether the problem's oracles count the work.
    bounded : bool
        Whether bounds on the curvature are known.
    """

    follows = False
    counted = False
    bounded = False

    @abc.abstractmethod
    def start(self, x: Tensor) -> Kept:
        """Return what is kept beside x, afresh."""

    @abc.abstractmethod
    def value(self, x: Tensor, kept: Kept) -> Tensor:
        """Return f(x)."""

    @abc.abstractmethod
    def gradient(self, x: Tensor, kept: Kept) -> Tensor:
        """Return ∇f(x)."""

    @abc.abstractmethod
    def partial(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return ∇_b f(x)."""

    @abc.abstractmethod
    def hessian(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return ∇²_bb f(x)."""

    @abc.abstractmethod
    def along(self, x: Tensor, kept: Kept, block: Tensor) -> Callable[[Tensor | None], Tensor]:
        """Return d ↦ f(x + d) up to a constant, for moves d of the block, None for none."""

    @abc.abstractmethod
    def move(self, x: Tensor, kept: Kept, block: Tensor, d: Tensor) -> None:
        """Add d to x_b, in place, and bring what is kept up to date."""

    def coordinate_bounds(self) -> Tensor:
        """Return upper bounds on the second derivative along each coordinate, shape (n,)."""
        raise MissingOracle(UNBOUNDED)

    def bound(self, block: Tensor) -> Tensor:
        """Return H_b ⪰ ∇²_bb f everywhere."""
        raise MissingOracle(UNBOUNDED)

    def bound_columns(self) -> DenseColumns | SparseColumns:
        """Return the columns of a matrix H ⪰ ∇² f everywhere, sparse where f is."""
        raise MissingOracle(UNBOUNDED)


class LinearBlocks(BlockModel):
    """f of a linear model, by z = A x."""

    def __init__(self, parts: LinearParts) -> None:
        self.parts = parts
        self.columns = parts.columns
        self.bounded = math.isfinite(parts.loss.largest_curvature)

    def start(self, x: Tensor) -> Kept:
        """Return z = A x."""
        return {"z": self.parts.operator.matvec(x)}

    def value(self, x: Tensor, kept: Kept) -> Tensor:
        """Return f(x), from z."""
        parts = self.parts
        return (parts.weights * parts.loss.value(kept["z"], parts.targets)).sum() + parts.ridge / 2 * (x @ x)

    def _slope(self, kept: Kept) -> Callable[[Rows], Tensor]:
        parts, z = self.parts, kept["z"]
        return lambda rows: parts.weights[rows] * parts.loss.slope(z[rows], parts.targets[rows])

    def gradient(self, x: Tensor, kept: Kept) -> Tensor:
        """Return ∇f(x), from z."""
        gradient = self.parts.operator.adjoint(self._slope(kept)(slice(None)))
        return gradient + self.parts.ridge * x if self.parts.ridge else gradient

    def partial(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return ∇_b f(x), from z at the rows that the block touches."""
        partial = self.columns.adjoint(block, self._slope(kept))
        return partial + self.parts.ridge * x[block] if self.parts.ridge else partial

    def hessian(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return A_bᵀ diag(w ℓ'') A_b + ridge I."""
        rows, part = self.columns.part(block)
        return self._gram(part, self.parts.weights[rows] * self.parts.loss.curvature(kept["z"][rows], self.parts.targets[rows]))

    def coordinate_bounds(self) -> Tensor:
        """Return sup ℓ'' Σ_i w_i a_ij² + ridge."""
        return self.parts.column_curvatures() if self.bounded else super().coordinate_bounds()

    def bound(self, block: Tensor) -> Tensor:
        """Return sup ℓ'' A_bᵀ diag(w) A_b + ridge I."""
        if not self.bounded:
            return super().bound(block)
        rows, part = self.columns.part(block)
        return self._gram(part, self.parts.loss.largest_curvature * self.parts.weights[rows])

    def _gram(self, part: Tensor, weights: Tensor) -> Tensor:
        gram = part.mT @ (weights[:, None] * part)
        if self.parts.ridge:
            gram.diagonal().add_(self.parts.ridge)
        return gram

    def along(self, x: Tensor, kept: Kept, block: Tensor) -> Callable[[Tensor | None], Tensor]:
        """Return the part of f that the block touches."""
        parts, (rows, part) = self.parts, self.columns.part(block)
        z, y, w, here = kept["z"][rows], parts.targets[rows], parts.weights[rows], x[block]

        def value(d: Tensor | None) -> Tensor:
            moved, there = (z, here) if d is None else (z + part @ d, here + d)
            return (w * parts.loss.value(moved, y)).sum() + parts.ridge / 2 * (there @ there)

        return value

    def move(self, x: Tensor, kept: Kept, block: Tensor, d: Tensor) -> None:
        """Add d to x_b and A_b d to z."""
        x.index_add_(0, block, d)
        self.columns.add(kept["z"], block, d)

    def bound_columns(self) -> DenseColumns | SparseColumns:
        """Return the columns of sup ℓ'' Aᵀ diag(w) A + ridge I."""
        if not self.bounded:
            return super().bound_columns()
        return self.parts.bound_columns


class QuadraticBlocks(BlockModel):
    """f of a quadratic, by its gradient."""

    follows = True
    bounded = True

    def __init__(self, parts: QuadraticParts) -> None:
        self.parts = parts
        self.columns = parts.columns

    def start(self, x: Tensor) -> Kept:
        """Return ∇f(x) = H x − b."""
        return {"gradient": self.parts.operator.matvec(x) - self.parts.b}

    def value(self, x: Tensor, kept: Kept) -> Tensor:
        """Return f(x) = ⟨x, ∇f(x) − b⟩ / 2."""
        return x @ (kept["gradient"] - self.parts.b) / 2

    def gradient(self, x: Tensor, kept: Kept) -> Tensor:
        """Return the gradient kept; it moves with x."""
        return kept["gradient"]

    def partial(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return ∇_b f(x)."""
        return kept["gradient"][block]

    def hessian(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return H_bb."""
        if isinstance(self.columns, DenseColumns):
            return self.columns.by_column[block[:, None], block]
        row, column, value = diagonal_block(self.columns, block)
        return value.new_zeros(len(block), len(block)).index_put_((row, column), value)

    def coordinate_bounds(self) -> Tensor:
        """Return the diagonal of H."""
        return self.parts.diagonal()

    def bound(self, block: Tensor) -> Tensor:
        """Return H_bb."""
        return self.hessian(block, {}, block)

    def along(self, x: Tensor, kept: Kept, block: Tensor) -> Callable[[Tensor | None], Tensor]:
        """Return d ↦ ⟨∇_b f, d⟩ + ½ dᵀ H_bb d."""
        gradient, H = kept["gradient"][block], self.hessian(x, kept, block)
        return lambda d: gradient.new_zeros(()) if d is None else d @ (gradient + H @ d / 2)

    def move(self, x: Tensor, kept: Kept, block: Tensor, d: Tensor) -> None:
        """Add d to x_b and H_b d to the gradient."""
        x.index_add_(0, block, d)
        self.columns.add(kept["gradient"], block, d)

    def bound_columns(self) -> DenseColumns | SparseColumns:
        """Return the columns of H."""
        return self.columns


class SmoothBlocks(BlockModel):
    """f of any problem, by whole gradients: for problems whose structure is not known."""

    follows = True
    counted = True

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def _tree(self, x: Tensor) -> Any:
        return tree.unflatten(x, self.problem.x0)

    def start(self, x: Tensor) -> Kept:
        """Return f(x) and ∇f(x)."""
        value, gradient = self.problem.value_and_gradient(self._tree(x))
        return {"value": value, "gradient": tree.flatten(gradient)}

    def value(self, x: Tensor, kept: Kept) -> Tensor:
        """Return f(x)."""
        return kept["value"]

    def gradient(self, x: Tensor, kept: Kept) -> Tensor:
        """Return ∇f(x)."""
        return kept["gradient"]

    def partial(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return ∇_b f(x)."""
        return kept["gradient"][block]

    def hessian(self, x: Tensor, kept: Kept, block: Tensor) -> Tensor:
        """Return ∇²_bb f(x), by a Hessian-vector product for every variable of the block."""
        at, unit = self._tree(x), torch.zeros_like(x)
        columns = []
        for i in block:
            unit[i] = 1
            columns.append(tree.flatten(self.problem.hvp(at, self._tree(unit)))[block])
            unit[i] = 0
        found = torch.stack(columns)
        return (found + found.mT) / 2

    def along(self, x: Tensor, kept: Kept, block: Tensor) -> Callable[[Tensor | None], Tensor]:
        """Return d ↦ f(x + d), a value each."""
        return lambda d: kept["value"] if d is None else self.problem.value(self._tree(x.index_add(0, block, d)))

    def move(self, x: Tensor, kept: Kept, block: Tensor, d: Tensor) -> None:
        """Add d to x_b and take a gradient there."""
        x.index_add_(0, block, d)
        kept.update(self.start(x))


def block_model(problem: Problem) -> BlockModel:
    """Return the problem's f by blocks: that of the ``smooth`` part of a composite problem."""
    smooth = problem.smooth if problem.kind == "composite" else problem
    if smooth.has("linear_model"):
        return LinearBlocks(smooth.linear_model)
    if smooth.has("quadratic"):
        return QuadraticBlocks(smooth.quadratic)
    return SmoothBlocks(smooth)
