"""The fixed point of a map, and its derivative by the equation it solves.

    x ← T(x; θ)                       until ‖T(x) − x‖ ≤ tol · max(1, ‖x‖), without a graph
    y ← Jᵀ y + ∂L/∂x,  J = ∂T/∂x       until ‖Δy‖ ≤ tol · ‖y‖, in the backward pass;      ∂L/∂θ = (∂T/∂θ)ᵀ y

Memory is that of one application of T, however many iterations there are. Both converge where T is a contraction, and end exactly
after n rounds where J is nilpotent of order n (a triangular system).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.checks import check_count
from fallline.core.counts import Counts
from fallline.core.errors import NonFiniteError
from fallline.core.tree import Tree
from fallline.core.warning import warn


@dataclass(frozen=True)
class Iterated:
    """Where an iteration ended.

    Attributes
    ----------
    x : tree
    iterations : int
        Applications of the map.
    residual_norm : float
        ‖T(x′) − x′‖ at the point x′ before ``x``.
    converged : bool
        Whether that is within the tolerance.
    """

    x: Tree
    iterations: int
    residual_norm: float
    converged: bool


def iterate(T: Callable[[Tree], Tree], x0: Tree, *, tol: float = 1e-6, max_iterations: int = 1_000, counts: Counts | None = None,
            count: str = "maps", floor: float = 1.0) -> Iterated:
    """Apply x ← T(x) until ‖T(x) − x‖ ≤ tol · max(floor, ‖T(x)‖), without recording a graph.

    Parameters
    ----------
    T : callable, tree -> tree of the same structure and shapes
    x0 : tensor or nested tensors
    tol : float, default 1e-6
        0 asks for a point that T leaves as it is, bit for bit.
    max_iterations : int, default 1,000
    counts, count : Counts and str, optional
        Where applications are counted, and as what.
    floor : float, default 1
        Below this norm of x the tolerance is absolute; 0 makes it relative throughout.

    Returns
    -------
    Iterated
        ``converged`` says whether the tolerance was reached.

    Raises
    ------
    NonFiniteError
        The iteration diverged, or T gave NaN.
    """
    check_tolerance(tol)
    check_count("max_iterations", max_iterations, "1,000 is typical")
    x, change, size = tree.map(Tensor.detach, x0), math.inf, 0.0
    with torch.no_grad():
        for iteration in range(1, max_iterations + 1):
            image = tree.aligned(T(x), x, "the value of T")
            if counts is not None:
                counts.add(count)
            change, size = torch.stack([tree.norm(tree.sub(image, x)), tree.norm(image)]).tolist()
            x = image
            if not math.isfinite(change + size):
                raise NonFiniteError(f"after {iteration} applications of the map a value is NaN or infinite: is the map a contraction?")
            if change <= tol * max(floor, size):
                break
    return Iterated(x, iteration, change, change <= tol * max(floor, size))


def attach(T: Callable[[Tree], Tree], x: Tree, *, tol: float = 1e-6, max_iterations: int = 1_000, counts: Counts | None = None) -> Tree:
    """Return T(x) with the gradient of the fixed point that ``x`` is, in whatever T depends on beside its argument.

    Parameters
    ----------
    T : callable, tree -> tree
        A function of its argument and of what it holds; applied once here with a graph, and once more in the backward pass.
    x : tensor or nested tensors
        A fixed point of T, however it was found.
    tol, max_iterations : float, int
        Of the backward iteration. A warning says where it did not reach the tolerance.
    counts : Counts, optional
        The backward iteration's products with Jᵀ are counted there as ``adjoint_maps``.

    Returns
    -------
    tree
        First derivatives only. Where nothing that T holds requires a gradient, or under ``torch.no_grad``, the plain T(x).
    """
    check_tolerance(tol)
    x = tree.map(Tensor.detach, x)
    image = tree.aligned(T(x), x, "the value of T")
    if not any(leaf.requires_grad for leaf in tree.leaves(image)):
        return image
    attached = iter(_ImplicitGradient.apply(T, x, (tol, max_iterations, counts), *tree.leaves(image)))
    return tree.map(lambda _: next(attached), x)


class _ImplicitGradient(torch.autograd.Function):
    """The identity on T(x), whose backward pass turns ∂L/∂x into the y that T's own backward pass must be given."""

    @staticmethod
    def forward(ctx: Any, T: Callable[[Tree], Tree], x: Tree, settings: tuple[float, int, Counts | None], *image: Tensor) -> Any:
        ctx.T, ctx.settings, ctx.like = T, settings, tree.map(lambda _: torch.empty(0), x)
        ctx.save_for_backward(*tree.leaves(x))
        return tuple(leaf.clone() for leaf in image)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        tol, max_iterations, counts = ctx.settings
        saved = iter(ctx.saved_tensors)
        with torch.enable_grad():
            start = tree.map(lambda _: next(saved).detach().requires_grad_(), ctx.like)
            image = tree.leaves(ctx.T(start))
        linked = [number for number, leaf in enumerate(image) if leaf.requires_grad]
        if not linked:  # T does not depend on its argument
            return None, None, None, *gradients

        def adjoint(y: list[Tensor]) -> list[Tensor]:
            products = torch.autograd.grad([image[number] for number in linked], tree.leaves(start), [y[number] for number in linked],
                                           retain_graph=True, materialize_grads=True)
            return [product + g for product, g in zip(products, gradients, strict=True)]

        found = iterate(adjoint, list(gradients), tol=tol, max_iterations=max_iterations, counts=counts, count="adjoint_maps",
                        floor=0.0)
        if not found.converged:
            warn(f"the implicit gradient changed by {found.residual_norm:.3g} in the last of {found.iterations} iterations, more than "
                 f"tol={tol:g} of its norm; raise max_iterations, or make the map more of a contraction")
        return None, None, None, *found.x


def implicit_fixed_point(T: Callable[[Tree], Tree], x0: Tree, *, tol: float = 1e-6, max_iterations: int = 1_000,
                         counts: Counts | None = None) -> Tree:
    """Return the fixed point of T reached from ``x0``, with implicit gradients in what T holds.

    ``iterate``, then ``attach``. The starting point has no gradient: the fixed point of a contraction does not depend on it.

    Parameters
    ----------
    T : callable, tree -> tree of the same structure and shapes
        A contraction, without randomness or side effects.
    x0 : tensor or nested tensors
    tol : float, default 1e-6
        Of both iterations.
    max_iterations : int, default 1,000
        Of each; a warning says where they were too few.
    counts : Counts, optional
        Told of ``maps`` and ``adjoint_maps``.

    Examples
    --------
    >>> a = torch.tensor(2.0, requires_grad=True)
    >>> root = implicit_fixed_point(lambda x: (x + a / x) / 2, torch.tensor(1.0))
    >>> root.backward()
    >>> a.grad  # 1 / (2 √2)
    tensor(0.3536)
    """
    found = iterate(T, x0, tol=tol, max_iterations=max_iterations, counts=counts)
    if not found.converged:
        warn(f"the residual of the fixed point is {found.residual_norm:.3g} after {found.iterations} iterations, above tol={tol:g}; "
             "raise max_iterations, or make the map more of a contraction")
    return attach(T, found.x, tol=tol, max_iterations=max_iterations, counts=counts)


def check_tolerance(tol: float) -> None:
    """Raise unless ``tol`` is a number of at least 0."""
    if not (isinstance(tol, int | float) and tol >= 0):
        raise ValueError(f"tol must be a number of at least 0, got {tol!r}")
