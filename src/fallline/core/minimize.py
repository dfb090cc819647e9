"""``minimize(fun, x0)``: SciPy's habits, torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fallline.core import registry
from fallline.core.budget import Budget
from fallline.core.constructors import BlackBox, Smooth
from fallline.core.driver import solve
from fallline.core.method import Method
from fallline.core.result import Result
from fallline.core.tree import Tree


def minimize(
    fun: Callable[[Tree], Tensor],
    x0: Tree,
    method: str | Method = "lazy-cubic-newton",
    *,
    tol: float = 1e-8,
    jac: Callable[[Tree], Tree] | None = None,
    hess: Callable[[Tree], Tensor] | None = None,
    hessp: Callable[[Tree, Tree], Tree] | None = None,
    maxiter: int | None = None,
    budget: Budget | None = None,
    options: dict[str, Any] | None = None,
    **solving: Any,
) -> Result:
    """Minimise a function of tensors.

    Parameters
    ----------
    fun : callable ``x -> 0-d tensor``
    x0 : tensor or nested tensors
        Whole-number and NumPy starting points are taken as float64.
    method : str or Method, default "lazy-cubic-newton"
        A registered name, or a Method with its hyperparameters.
    tol : float, default 1e-8
        On the method's gap, for a smooth method the gradient norm.
    jac, hess, hessp : callables, optional
        The gradient, the dense Hessian, and the Hessian-vector product ``(x, v)``; autograd gives what is left out.
    maxiter : int, optional
        Short for ``budget=Budget(steps=maxiter)``; 1,000 if neither is given.
    options : dict, optional
        Hyperparameters of a method given by name.
    **solving
        Further arguments of ``solve``: ``callback``, ``progress``, ``checkpoint``, ``key`` …

    Returns
    -------
    Result
        With SciPy's names: ``x``, ``fun``, ``success``, ``message``, ``nit``, ``nfev``.
    """
    if maxiter is not None and budget is not None:
        raise ValueError(f"give maxiter or budget, not both; got maxiter={maxiter} and {budget!r}")
    if isinstance(method, Method) and options:
        raise ValueError("options belong to a method given by name; set them on the Method itself")
    chosen = method if isinstance(method, Method) else registry.method(method, **(options or {}))
    start = x0 if not hasattr(x0, "__array__") or isinstance(x0, Tensor) else torch.as_tensor(x0)
    if isinstance(start, Tensor) and not start.is_floating_point():
        start = start.double()
    if "values" in chosen.needs:
        problem = BlackBox(fun, start, name="fun")
    else:
        problem = Smooth(fun, start, gradient=jac, hessian=hess, hvp=hessp, name="fun")
    limit = Budget(steps=maxiter) if maxiter is not None else budget
    return solve(problem, chosen, limit, tol=tol, **solving)
