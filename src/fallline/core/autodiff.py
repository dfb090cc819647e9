"""Derivatives of a scalar function of nested tensors, by plain autograd.

Plain reverse mode is the base: it is right whatever the function does inside (custom backward passes, hooks, wrapped modules).
``hvp`` differentiates twice; ``hessian`` and ``jvp`` go through ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.tree import Tree

Scalar = Callable[[Tree], Tensor]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point() or x.is_complex())


def _fill(gradients: tuple[Tensor | None, ...], like: Tree) -> Tree:
    found = iter(gradients)
    return tree.map(lambda x: g if (g := next(found)) is not None else torch.zeros_like(x), like)


def checked_scalar(value: Any, name: str) -> Tensor:
    """Return ``value`` if it is a 0-d (or one-element) tensor, and say what it is otherwise."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must return a tensor with one element (the objective), got {found}")
    return value.reshape(())


def value_and_gradient(fun: Scalar, x: Tree, wrt: int | str | None = None, name: str = "fun") -> tuple[Tensor, Tree]:
    """Return ``f(x)`` and ``∇f(x)``, or only the part of the gradient at child ``wrt`` of ``x``."""
    if wrt is None:
        point = tree.map(_leaf, x)
        target = point
    else:
        point = tree.map(lambda leaf: leaf.detach(), x)
        target = tree.map(_leaf, point[wrt])
        point = {**point, wrt: target} if isinstance(point, dict) else tuple(
            target if i == wrt else child for i, child in enumerate(point)
        )
    with torch.enable_grad():
        value = checked_scalar(fun(point), name)
    if not value.requires_grad:
        return value.detach(), tree.zeros_like(target)
    gradients = torch.autograd.grad(value, tree.leaves(target), allow_unused=True)
    return value.detach(), _fill(gradients, target)


def hvp(fun: Scalar, x: Tree, v: Tree) -> Tree:
    """Return the Hessian-vector product ``∇²f(x) v`` by differentiating ``⟨∇f(x), v⟩``."""
    point = tree.map(_leaf, x)
    variables = tree.leaves(point)
    with torch.enable_grad():
        value = checked_scalar(fun(point), "fun")
        first = torch.autograd.grad(value, variables, create_graph=True, allow_unused=True)
        pairs = [(g, u) for g, u in zip(first, tree.leaves(v), strict=True) if g is not None and g.requires_grad]
        if not pairs:  # f is linear in x
            return tree.zeros_like(x)
        product = torch.stack([(g * u).sum() for g, u in pairs]).sum()
    return _fill(torch.autograd.grad(product, variables, allow_unused=True), point)


def jvp(fun: Callable[[Tree], Any], x: Tree, v: Tree) -> tuple[Any, Any]:
    """Return ``fun(x)`` and the directional derivative along ``v`` by forward mode."""
    value, derivative, *_ = torch.func.jvp(fun, (x,), (v,))
    return value, derivative


def hessian(fun: Scalar, x: Tree) -> Tensor:
    """Return the dense Hessian of the flattened variables, shape ``(n, n)``."""
    flat = tree.flatten(x).detach()
    return torch.func.hessian(lambda z: fun(tree.unflatten(z, x)).reshape(()))(flat)
