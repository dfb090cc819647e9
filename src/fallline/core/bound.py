"""A problem at given leaf tensors, as a torch optimizer wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.operators.linear import LinearOperator
from fallline.core.tree import Tree

if TYPE_CHECKING:
    from fallline.core.problem import Problem


class Bound:
    """A problem at given leaf tensors: a torch closure that can also be asked for more than a gradient."""

    def __init__(self, problem: Problem, variables: Tree) -> None:
        self.problem = problem
        self._point = variables
        self.variables = {str(i): leaf for i, leaf in enumerate(tree.leaves(variables))}

    def _at(self, x: Mapping[str, Tensor] | None) -> Tree:
        if x is None:
            return self._point
        given = iter([x[name] for name in self.variables])
        return tree.map(lambda _: next(given), self._point)

    def _named(self, point: Tree) -> dict[str, Tensor]:
        return dict(zip(self.variables, tree.leaves(point), strict=True))

    def __call__(self) -> Tensor:
        """Evaluate, put the gradient into ``.grad`` of the variables, return the value."""
        value, gradient = self.problem.value_and_gradient(self._point)
        for variable, g in zip(self.variables.values(), tree.leaves(gradient), strict=True):
            variable.grad = g
        return value

    def value(self, x: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the objective at ``x``, by default at the bound variables."""
        return self.problem.value(self._at(x))

    def gradient(self, x: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the gradient by name."""
        return self._named(self.problem.gradient(self._at(x)))

    def hvp(self, x: Mapping[str, Tensor] | None, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the Hessian-vector product by name."""
        return self._named(self.problem.hvp(self._at(x), self._at(v)))

    def hessian_operator(self, x: Mapping[str, Tensor] | None = None) -> LinearOperator:
        """Return the Hessian as an operator on the flattened ``x``: all variables, or some of them by name with the rest as bound."""
        chosen = self.variables if x is None else dict(x)
        everything = {**self.variables, **chosen}
        whole = self.problem.hessian_operator(self._at(everything))
        if len(chosen) == len(everything):
            return whole

        def product(v: Mapping[str, Tensor]) -> dict[str, Tensor]:
            padded = {name: v.get(name, torch.zeros_like(p)) for name, p in everything.items()}
            found = whole.matvec(padded)
            return {name: found[name] for name in chosen}

        return LinearOperator.from_function(product, chosen, adjoint=product, dtype=whole.dtype)
