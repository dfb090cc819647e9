"""Derivatives of a scalar function of nested tensors, by plain autograd.

Plain reverse mode is the base: it is right whatever the function does inside (custom backward passes, hooks, wrapped modules).
``hvp`` differentiates twice; ``hessian`` and ``jvp`` go through ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.errors import MissingOracle
from fallline.core.tree import Tree

Scalar = Callable[[Tree], Tensor]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point() or x.is_complex())


def _gradients(output: Tensor | Sequence[Tensor], point: Tree, **options: Any) -> Tree:
    """The gradient of ``output`` at every leaf of ``point``: zero where it does not depend on one, or one has none."""
    wanted = [leaf for leaf in tree.leaves(point) if leaf.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, allow_unused=True, **options))
    return tree.map(lambda x: g if x.requires_grad and (g := next(found)) is not None else torch.zeros_like(x), point)


def checked_scalar(value: Any, name: str) -> Tensor:
    """Return ``value`` if it is a 0-d (or one-element) tensor, and say what it is otherwise."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must return a tensor with one element (the objective), got {found}")
    return value.reshape(())


def differentiable(value: Any, name: str) -> Tensor:
    """Return ``value`` if it is a scalar that autograd has followed from the variables, and raise ``MissingOracle`` otherwise."""
    value = checked_scalar(value, name)
    if not value.requires_grad:
        raise _cut_off(name)
    return value


def _cut_off(name: str) -> MissingOracle:
    return MissingOracle(
        f"{name} cannot be differentiated: its value does not depend on the variables through torch operations (it, or a branch of "
        "it, may be constant). Compute it from them by torch operations alone (no .item(), .detach(), .numpy() or torch.tensor(...)), "
        "or give its gradient: gradient= in Smooth, jac= in minimize"
    )


def value_and_gradient(fun: Scalar, x: Tree, wrt: int | str | None = None, name: str = "fun") -> tuple[Tensor, Tree]:
    """Return ``f(x)`` and ``∇f(x)``, or only the part of the gradient at child ``wrt`` of ``x``."""
    point = tree.map(_leaf, x)
    with torch.enable_grad():
        value = differentiable(fun(point), name)
    return value.detach(), _gradients(value, point if wrt is None else point[wrt])


def linearized_gradient(fun: Scalar, x: Tree, name: str = "fun") -> Callable[[Tree], Tree]:
    """Return ``v ↦ ∇²f(x) v``, which differentiates the gradient's graph: it is kept, and nothing is evaluated again."""
    point = tree.map(_leaf, x)
    with torch.enable_grad():
        first = _gradients(differentiable(fun(point), name), point, create_graph=True)

    def product(v: Tree) -> Tree:
        vectors = tree.leaves(tree.map(lambda g, u: u.to(g.dtype), first, v))
        curved = [(g, u) for g, u in zip(tree.leaves(first), vectors, strict=True) if g.requires_grad]
        if not curved:
            return tree.zeros_like(x)  # f may be linear in x
        outputs, along = zip(*curved, strict=True)
        return _gradients(outputs, point, grad_outputs=along, retain_graph=True)

    return product


def hvp(fun: Scalar, x: Tree, v: Tree, name: str = "fun") -> Tree:
    """Return the Hessian-vector product ``∇²f(x) v`` by differentiating the gradient along ``v``."""
    return linearized_gradient(fun, x, name)(v)


def jvp(fun: Scalar, x: Tree, v: Tree, name: str = "fun") -> tuple[Tensor, Tensor]:
    """Return ``f(x)`` and the directional derivative along ``v`` by forward mode."""
    try:
        value, derivative, *_ = torch.func.jvp(lambda z: checked_scalar(fun(z), name), (x,), (v,), strict=True)
    except RuntimeError as error:
        if "independent of the inputs" in str(error):
            raise _cut_off(name) from None
        raise
    return value, derivative


def hessian(fun: Scalar, x: Tree, name: str = "fun") -> Tensor:
    """Return the dense Hessian of the flattened variables, shape ``(n, n)``."""
    flat = tree.flatten(x).detach()
    # Inside the transform, a tensor requires a gradient where it depends on the flattened variables. torch.func.hessian would refuse
    # random masks; here all columns see the same.
    gradient = torch.func.jacrev(lambda z: differentiable(fun(tree.unflatten(z, x)), name))
    return torch.func.jacfwd(gradient, randomness="same")(flat)
