"""Constraints: derivatives of equalities c(x) = 0, and Lagrangians of equalities and of inequalities h(x) ≤ 0.

    L(x, λ) = f(x) + ⟨λ, c(x)⟩,    ∇_x L = ∇f + Gᵀλ,    ∇²_x L = ∇²f + Σ λ_i ∇²c_i,    G = ∇c, shape (m, n)
    L(x, λ) = f(x) + ⟨λ, h(x)⟩,    λ ≥ 0,   whose gradient in λ, at a minimiser over x, is h(x)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import autodiff, tree
from fallline.core.constrained_training import ConstrainedTraining
from fallline.core.keys import Key
from fallline.core.problem import Problem
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


def lagrangian(problem: Problem, multipliers: Tensor) -> Problem:
    """Return min_x f(x) + ⟨λ, h(x)⟩ for a problem with ``inequality`` h ≤ 0: unconstrained, on the same bill, with the same draws.

    Parameters
    ----------
    problem : Problem
        A ``ConstrainedTraining``, or ``Constrained(smooth, inequality=h)``.
    multipliers : Tensor (m,)
        λ, a constant.
    """
    if isinstance(problem, ConstrainedTraining):
        return problem.lagrangian(multipliers)
    problem.require("gradient", "inequality")
    value, inequality = problem._oracles["value"], problem._oracles["inequality"]
    weighted = lambda x: (multipliers * inequality(x)).sum()
    oracles: dict[str, Callable[..., Any]] = {"value": lambda x: value(x) + weighted(x)}
    if given := problem._oracles.get("gradient"):
        oracles["gradient"] = lambda x: tree.add(given(x), autodiff.value_and_gradient(weighted, x)[1])

    def sample(whole: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
        drawn = problem.draw(key, size, indices, at)
        return whole if drawn is problem else lagrangian(drawn, multipliers)

    whole = Problem(problem.x0, oracles, kind="smooth", name=problem.name, samples=problem.samples, sampler=sample)
    return whole.counted(problem.counts)


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
