"""``minimize(fun, x0)``: SciPy's habits, torch tensors."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fallline.core import registry
from fallline.core.budget import Budget
from fallline.core.constructors import BlackBox, Smooth
from fallline.core.driver import solve
from fallline.core.method import Method
from fallline.core.problem import Problem
from fallline.core.result import Result
from fallline.core.tree import Tree

DEFAULT_TOL = 1e-8


def minimize(
    fun: Callable[[Tree], Tensor],
    x0: Tree,
    method: str | Method = "trust-region-newton",
    *,
    args: tuple[Any, ...] = (),
    tol: float | None = None,
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
        Of torch operations, or of any kind where ``jac`` is given; answers may then be numbers, lists or arrays.
    x0 : tensor or nested tensors, number, list of numbers, or NumPy array
        What is not a floating-point tensor is taken as a float64 one.
    method : str or Method, default "trust-region-newton"
        A registered name, or a Method with its hyperparameters.
    args : tuple, optional
        Further arguments of ``fun``, ``jac``, ``hess`` and ``hessp``, after the usual ones.
    tol : float, default 1e-8
        On the method's gap, for a smooth method the gradient norm. Methods without a gap run to the end of their budget.
    jac, hess, hessp : callables, optional
        The gradient, the dense Hessian, and the Hessian-vector product ``(x, v)``. Autograd gives what is left out; with ``jac``,
        differences of gradients do.
    maxiter : int, optional
        Short for ``budget=Budget(steps=maxiter)``; 1,000 if neither is given.
    options : dict, optional
        Hyperparameters of a method given by name.
    **solving
        Further arguments of ``solve``: ``callback``, ``progress``, ``checkpoint``, ``key`` …

    Returns
    -------
    Result
        With SciPy's names: ``x``, ``fun``, ``success``, ``message``, ``nit``, ``nfev``. Where the method does not know ``fun``, it is
        evaluated at the end (and counted as a value).
    """
    if maxiter is not None and budget is not None:
        raise ValueError(f"give maxiter or budget, not both; got maxiter={maxiter} and {budget!r}")
    if isinstance(method, Method) and options:
        raise ValueError("options belong to a method given by name; set them on the Method itself")
    for name, given in (("jac", jac), ("hess", hess), ("hessp", hessp)):
        if given is not None and not callable(given):
            raise TypeError(f"{name} must be a function of x, got {given!r}; leave it out for what autograd or differences give")
    for name in {"bounds", "constraints"} & solving.keys():
        raise TypeError(f"minimize takes no {name}: state them in a problem, such as solve(Constrained(Smooth(fun, x0), set), method)")
    fun, jac, hess, hessp = (_with(function, args) for function in (fun, jac, hess, hessp))
    chosen = method if isinstance(method, Method) else registry.method(method, **(options or {}))
    start = _start(x0)
    if "values" in chosen.needs:
        problem = BlackBox(fun, start, name="fun")
    else:
        problem = Smooth(fun, start, gradient=jac, hessian=hess, hvp=hessp, name="fun")
    limit = Budget(steps=maxiter) if maxiter is not None else budget
    with warnings.catch_warnings():
        if tol is None:
            warnings.filterwarnings("ignore", message="tol=.* has no effect")
        result = solve(problem, chosen, limit, tol=DEFAULT_TOL if tol is None else tol, **solving)
    return _with_value(result, problem)


def _with(function: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {args!r}; ({args!r},) has one in it")
    return function if function is None or not args else lambda *given: function(*given, *args)


def _start(x0: Any) -> Tree:
    """The starting point as floating-point tensors; numbers, arrays and lists of numbers become float64."""
    if isinstance(x0, dict):
        return {name: _start(child) for name, child in x0.items()}
    if isinstance(x0, Tensor):
        return x0 if x0.is_floating_point() or x0.is_complex() else x0.double()
    if isinstance(x0, numbers.Real | np.ndarray) or _of_numbers(x0):
        try:
            return torch.tensor(np.asarray(x0, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise TypeError(f"x0 must hold real numbers in equal rows, got {x0!r}") from error
    if isinstance(x0, list | tuple):
        children = [_start(child) for child in x0]
        return type(x0)(*children) if hasattr(x0, "_fields") else type(x0)(children)
    raise TypeError(f"x0 must be a tensor, nested tensors, a number, a list of numbers or a NumPy array, got a {type(x0).__name__}")


def _of_numbers(x0: Any) -> bool:
    return isinstance(x0, list | tuple) and bool(x0) and all(isinstance(each, numbers.Real) or _of_numbers(each) for each in x0)


def _with_value(result: Result, problem: Problem) -> Result:
    if result.fun is None and result.status != "nonfinite":
        result.fun = float(problem.value(result.x))
        result.counts["values"] = result.counts.get("values", 0) + 1
    return result
