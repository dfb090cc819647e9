"""A vector space over nested tensors.

A *tree* is one tensor, or a dict, list or tuple of trees. The functions here treat it as one vector:
``dot(a, b) = Σ_leaf Σ_i conj(a_i) b_i``, ``norm(a) = √dot(a, a)``, ``axpy(α, x, y) = αx + y``. Trees are combined by the names and
positions of their children; the order in which a dict was filled is that of the first tree.
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
        return _sequence([map(function, child, *(other[i] for other in others)) for i, child in enumerate(tree)], tree)
    raise TypeError(f"a tree holds tensors, dicts, lists and tuples; got {type(tree).__name__}")


def aligned(a: Tree, like: Tree, name: str) -> Tree:
    """Return ``a`` with the containers and the order of ``like``, or raise where its structure or a shape differs.

    ``name`` is what the error calls ``a``.
    """
    if isinstance(like, Tensor):
        if not isinstance(a, Tensor) or a.shape != like.shape:
            found = f"shape {tuple(a.shape)}" if isinstance(a, Tensor) else f"a {type(a).__name__}"
            raise ValueError(f"{name} must be a tensor of shape {tuple(like.shape)}, got {found}")
        return a
    names: Any = like.keys() if isinstance(like, dict) else range(len(like))
    held: Any = a.keys() if isinstance(a, dict) else range(len(a)) if isinstance(a, list | tuple) else ()
    if isinstance(a, dict) != isinstance(like, dict) or set(held) != set(names):
        found = f"a {type(a).__name__}" + (f" of {list(held)}" if held else "")
        raise ValueError(f"{name} must be a {type(like).__name__} of {list(names)}, got {found}")
    ordered = [aligned(a[each], like[each], f"{name}[{each!r}]") for each in names]
    return dict(zip(names, ordered, strict=True)) if isinstance(like, dict) else _sequence(ordered, like)


def check_variables(a: Tree, name: str) -> None:
    """Raise unless ``a`` is a tree of floating-point (or complex) tensors; ``name`` is what the error calls it."""
    if isinstance(a, Tensor):
        if not (a.is_floating_point() or a.is_complex()):
            raise TypeError(f"{name} must be floating point, got {a.dtype}; .double() converts it")
    elif isinstance(a, dict | list | tuple):
        for key, child in a.items() if isinstance(a, dict) else enumerate(a):
            check_variables(child, f"{name}[{key!r}]")
    else:
        raise TypeError(f"{name} must be a tensor, or a dict, list or tuple of tensors, got a {type(a).__name__}; "
                        "torch.as_tensor(value, dtype=torch.float64) makes a tensor")


def _sequence(children: list[Any], like: Any) -> Any:
    return type(like)(*children) if hasattr(like, "_fields") else type(like)(children)


def dot(a: Tree, b: Tree) -> Tensor:
    """Return ``⟨a, b⟩``, conjugate in ``a``, as a 0-d tensor."""
    products = leaves(map(lambda x, y: torch.vdot(x.reshape(-1), y.reshape(-1)), a, b))
    if len(products) != len(leaves(b)):
        raise ValueError(f"a and b must have the same leaves, got {len(products)} and {len(leaves(b))} tensors")
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
    stacked = torch.stack([flatten(map(lambda _, leaf: leaf, vectors[0], v)) for v in vectors])
    return stacked.conj() @ stacked.T


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


def precision(a: Tree) -> torch.dtype:
    """Return the dtype in which the vector can be computed with: that of its leaves, but float32 where they have half precision."""
    found = torch.float32
    for x in leaves(a):
        found = torch.promote_types(found, x.dtype)
    return found


def size(a: Tree) -> int:
    """Return the dimension of the vector: the number of entries over all leaves."""
    return sum(x.numel() for x in leaves(a))


def all_finite(a: Tree) -> bool:
    """Return whether no entry is NaN or infinite (synchronises with the device)."""
    # 0·x summed is 0 for finite entries and NaN otherwise; one reduction, and overflow cannot fake a hit.
    return all(bool(torch.isfinite((x.detach() * 0).sum())) for x in leaves(a) if x.is_floating_point() or x.is_complex())
