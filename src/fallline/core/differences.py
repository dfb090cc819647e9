"""Curvature from differences of gradients, where only gradients can be had.

    ∇²f(x) v ≈ (∇f(x + hv) − ∇f(x − hv)) / 2h,    h = ε^{1/3} max(1, |⟨x, v⟩| / ‖v‖) / ‖v‖

ε is the rounding error of x's dtype, and the relative error about ε^{2/3}.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.tree import Tree


def hvp(gradient: Callable[[Tree], Tree], x: Tree, v: Tree) -> Tree:
    """Return ``∇²f(x) v`` from two gradients."""
    v = tree.aligned(v, x, "v")
    length = float(tree.norm(v))
    if length == 0:
        return tree.zeros_like(x)
    epsilon = max(torch.finfo(leaf.dtype).eps for leaf in tree.leaves(x))
    h = epsilon ** (1 / 3) * max(1.0, abs(float(tree.dot(v, x).real)) / length) / length
    ahead, behind = gradient(tree.axpy(h, v, x)), gradient(tree.axpy(-h, v, x))
    return tree.scale(1 / (2 * h), tree.sub(ahead, behind))


def hessian(product: Callable[[Tree], Tree], x: Tree) -> Tensor:
    """Return ``∇²f(x)``, shape ``(n, n)``, from its products with the n unit vectors, made symmetric."""
    basis = torch.eye(tree.size(x), dtype=tree.flatten(x).dtype, device=tree.leaves(x)[0].device)
    columns = torch.stack([tree.flatten(product(tree.unflatten(e, x))) for e in basis])
    return (columns + columns.mT) / 2
