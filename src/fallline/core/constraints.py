"""Equality constraints c(x) = 0 with their derivatives, and the point where a Lagrangian is looked at.

    L(x, λ) = f(x) + ⟨λ, c(x)⟩,    ∇_x L = ∇f + Gᵀλ,    ∇²_x L = ∇²f + Σ λ_i ∇²c_i,    G = ∇c, shape (m, n)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.tree import Tree

Constraint = Callable[[Tree], Tensor]


def equality_oracles(equality: Constraint, jacobian: Callable[[Tree], Tensor] | None,
                     hessian: Callable[[Tree, Tensor], Tensor] | None) -> dict[str, Callable[..., Any]]:
    """Return the oracles ``equality``, ``equality_jacobian`` and ``equality_hessian`` over the flattened variables.

    Parameters
    ----------
    equality : callable ``x -> (m,)``
    jacobian : callable ``x -> (m, n)``, optional
    hessian : callable ``(x, λ) -> (n, n)``, optional
        Σ λ_i ∇²c_i(x). What is not given comes from ``torch.func``.
    """

    def vector(x: Tree) -> Tensor:
        return torch.atleast_1d(equality(x))

    def derived_jacobian(x: Tree) -> Tensor:
        return torch.func.jacrev(lambda v: vector(tree.unflatten(v, x)))(tree.flatten(x).detach()).detach()

    def derived_hessian(x: Tree, multipliers: Tensor) -> Tensor:
        weighted = lambda v: multipliers @ vector(tree.unflatten(v, x))
        return torch.func.jacfwd(torch.func.jacrev(weighted))(tree.flatten(x).detach()).detach()

    return {"equality": vector, "equality_jacobian": jacobian or derived_jacobian, "equality_hessian": hessian or derived_hessian}


@dataclass(frozen=True)
class LagrangePoint:
    """First derivatives at one x, flattened.

    Attributes
    ----------
    x : tree
    value : Tensor, 0-d
        f.
    gradient : Tensor (n,)
        ∇f.
    constraints : Tensor (m,)
        c.
    jacobian : Tensor (m, n)
        G.
    """

    x: Tree
    value: Tensor
    gradient: Tensor
    constraints: Tensor
    jacobian: Tensor

    @classmethod
    def at(cls, problem: Any, x: Tree) -> LagrangePoint:
        """Ask a ``Constrained`` problem for all of it."""
        value, gradient = problem.value_and_gradient(x)
        constraints = problem.equality(x).detach()
        return cls(x, value, tree.flatten(gradient).to(constraints.dtype), constraints, problem.equality_jacobian(x))

    def stationarity(self, multipliers: Tensor) -> Tensor:
        """Return ∇_x L."""
        return self.gradient + self.jacobian.mT @ multipliers

    def residual(self, multipliers: Tensor) -> Tensor:
        """Return (∇_x L, c), shape (n + m,): zero at a point that meets the first-order conditions."""
        return torch.cat([self.stationarity(multipliers), self.constraints])


@dataclass(frozen=True)
class KKT:
    """A certificate of first order: ``stationarity`` ‖∇f + Gᵀλ‖ and ``violation`` ‖c‖ with these ``multipliers`` λ (m,)."""

    multipliers: Tensor
    stationarity: float
    violation: float
