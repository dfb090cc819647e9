"""The problem x = T(x)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.problem import Problem
from fallline.core.tree import Tree


def FixedPoint(
    T: Callable[[Tree], Tree],
    x0: Tree,
    *,
    norm: Callable[[Tree], Tensor] | None = None,
    certify: Callable[[Tree, Tree], Any] | None = None,
    radius: float | None = None,
    **options: Any,
) -> Problem:
    """x = T(x); ``map(x)`` is T(x), counted as ``maps``, and ``observe`` reports ``residual_norm``, ‖x − T(x)‖.

    Parameters
    ----------
    T : callable, ``x -> x``
        Of the structure, shapes and dtypes of ``x0``; evaluated without a graph.
    x0 : tensor or nested tensors
    norm : callable, ``x -> 0-d tensor``, optional
        The norm of a Hilbert space in which T is nonexpansive; Euclidean over all tensors by default.
    certify : callable ``(x, v) -> object or None``, optional
        Proves that there is no fixed point, from a point x of an iteration and an estimate v of how T displaces x in the limit: returns
        a certificate that has been checked, with a sentence in its attribute ``verdict``, or None.
    radius : float, optional
        Where it is known: a fixed point, if there is one, lies within this distance of ``x0``.
    **options
        ``name``, ``facts``, ``budget``, ``observer``, ``given`` of ``Problem``.
    """
    for name, function in (("T", T), ("norm", norm), ("certify", certify)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function of the variables, got {type(function).__name__}")
    if radius is not None and not radius > 0:
        raise ValueError(f"radius must be a positive number, the largest distance of a fixed point from x0, got {radius!r}")
    measure = norm or tree.norm

    def apply(x: Tree) -> Tree:
        with torch.no_grad():
            return tree.aligned(T(x), x, "the value of T")

    def observer(problem: Problem, x: Tree) -> dict[str, float]:
        return {"residual_norm": float(measure(tree.sub(x, problem.map(x))))}

    known = {} if radius is None else {"radius": float(radius)}
    given = {"norm": measure, "certify": certify, **options.pop("given", {})}
    return Problem(x0, {"map": apply}, **{"kind": "fixed-point", "observer": observer, "differentiable": False, **options,
                                          "facts": {**known, **options.get("facts", {})}, "given": given})
