"""A vector space over nested tensors.

A *tree* is one tensor, or a dict, list or tuple of trees. The functions here treat it as one vector:
``dot(a, b) = Σ_leaf Σ_i a_i b_i``, ``norm(a) = √dot(a, a)``, ``axpy(α, x, y) = αx + y``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tree: TypeAlias = Any


def leaves(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree, in the order of its containers."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in leaves(child)]
    if isinstance(tree, list | tuple):
        return [leaf for child in tree for leaf in leaves(child)]
    raise TypeError(f"a tree holds tensors, dicts, lists and tuples; got {type(tree).__name__}")


def map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply ``function`` leaf by leaf and return a tree of the same shape."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return {name: map(function, child, *(other[name] for other in others)) for name, child in tree.items()}
    if isinstance(tree, list | tuple):
        children = [map(function, child, *(other[i] for other in others)) for i, child in enumerate(tree)]
        if hasattr(tree, "_fields"):
            return type(tree)(*children)
        return type(tree)(children)
    raise TypeError(f"a tree holds tensors, dicts, lists and tuples; got {type(tree).__name__}")


def dot(a: Tree, b: Tree) -> Tensor:
    """Return ``⟨a, b⟩`` as a 0-d tensor."""
    products = [torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in zip(leaves(a), leaves(b), strict=True)]
    return products[0] if len(products) == 1 else torch.stack(products).sum()


def norm(a: Tree) -> Tensor:
    """Return the Euclidean norm over all leaves as a 0-d tensor."""
    norms = [torch.linalg.vector_norm(x) for x in leaves(a)]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def axpy(alpha: float | Tensor, x: Tree, y: Tree) -> Tree:
    """Return ``αx + y``."""
    if isinstance(alpha, Tensor):
        return map(lambda u, v: alpha * u + v, x, y)
    return map(lambda u, v: torch.add(v, u, alpha=alpha), x, y)


def add(a: Tree, b: Tree) -> Tree:
    """Return ``a + b``."""
    return map(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """Return ``a − b``."""
    return map(torch.sub, a, b)


def scale(alpha: float | Tensor, a: Tree) -> Tree:
    """Return ``αa``."""
    return map(lambda x: alpha * x, a)


def gram(vectors: Sequence[Tree]) -> Tensor:
    """Return the matrix of inner products ``G_ij = ⟨v_i, v_j⟩``."""
    stacked = torch.stack([flatten(v) for v in vectors])
    return stacked @ stacked.T


def zeros_like(a: Tree) -> Tree:
    """Return the zero vector of the same shape."""
    return map(torch.zeros_like, a)


def clone(a: Tree) -> Tree:
    """Return a detached copy that shares no memory with ``a``."""
    return map(lambda x: x.detach().clone(), a)


def flatten(a: Tree) -> Tensor:
    """Return all leaves as one 1-D tensor."""
    if isinstance(a, Tensor):
        return a.reshape(-1)
    return torch.cat([x.reshape(-1) for x in leaves(a)])


def unflatten(flat: Tensor, like: Tree) -> Tree:
    """Return the tree shaped as ``like`` whose ``flatten`` is ``flat``."""
    if flat.numel() != size(like):
        raise ValueError(f"flat has {flat.numel()} entries, the tree it should fill has {size(like)}")
    chunks = iter(flat.split([x.numel() for x in leaves(like)]))
    return map(lambda x: next(chunks).view(x.shape).to(x.dtype), like)


def size(a: Tree) -> int:
    """Return the dimension of the vector: the number of entries over all leaves."""
    return sum(x.numel() for x in leaves(a))


def all_finite(a: Tree) -> bool:
    """Return whether no entry is NaN or infinite (synchronises with the device)."""
    # 0·x summed is 0 for finite entries and NaN otherwise; one reduction, and overflow cannot fake a hit.
    return all(bool(torch.isfinite((x.detach() * 0).sum())) for x in leaves(a) if x.is_floating_point() or x.is_complex())
