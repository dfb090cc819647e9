"""Nonlinear least squares: f(x) = ½ ‖r(x)‖², a problem that knows its residuals and their Jacobian.

    ∇f = Jᵀ r,   ∇²f = JᵀJ + Σ_i r_i ∇²r_i;   the first part of it is the Gauss-Newton matrix
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.problem import Problem
from fallline.core.tree import Tree


def LeastSquares(residuals: Callable[[Tree], Tensor], x0: Tree, *, jacobian: Callable[[Tree], Tensor] | None = None,
                 **options: Any) -> Problem:
    """min ½ ‖r(x)‖².

    Beside value, gradient and curvature it offers ``linearization(x)``, the residuals (k,) and their Jacobian (k, number of
    variables), and ``problem.residuals``.

    Parameters
    ----------
    residuals : callable ``x -> tensor``
        r, of any shape.
    x0 : tensor or nested tensors
    jacobian : callable ``x -> tensor (k, n)``, optional
        J of the flattened residuals by the flattened variables; autograd gives it otherwise.
    **options
        ``name``, ``facts``, ``budget``, ``observer`` of ``Problem``.
    """
    for name, function in (("residuals", residuals), ("jacobian", jacobian)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function of the variables, got {type(function).__name__}")

    def flat(v: Tensor, x: Tree) -> tuple[Tensor, Tensor]:
        r = residuals(tree.unflatten(v, x)).reshape(-1)
        return r, r

    def linearization(x: Tree) -> tuple[Tensor, Tensor]:
        if jacobian is not None:
            with torch.no_grad():
                return residuals(x).reshape(-1), jacobian(x)
        J, r = torch.func.jacrev(lambda v: flat(v, x), has_aux=True)(tree.flatten(x).detach())
        return r.detach(), J.detach()

    def value(x: Tree) -> Tensor:
        return residuals(x).square().sum() / 2

    def value_and_gradient(x: Tree) -> tuple[Tensor, Tree]:
        r, J = linearization(x)
        return r.square().sum() / 2, tree.unflatten(J.mT @ r, x)

    oracles: dict[str, Callable[..., Any]] = {"value": value, "linearization": linearization}
    if jacobian is not None:  # the residuals need not be torch's
        oracles["value_and_gradient"] = value_and_gradient
    return Problem(x0, oracles, **{"kind": "least-squares", "given": {"residuals": residuals}, **options})
