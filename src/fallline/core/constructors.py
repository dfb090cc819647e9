"""Constructors: what you have, as a ``Problem``.

==================  =================================================================================
``Smooth``          min f(x), differentiable
``Composite``       min f(x) + r(x), f smooth, r with a proximal map
``Constrained``     min f(x) over a set, or subject to c(x) = 0 and h(x) ≤ 0
``FiniteSum``       min (1/n) Σ f(x; data_i), drawn in mini-batches
``LinearSystem``    A x = b
``Bilevel``         min_x F(x, y*(x)) with y*(x) = argmin_y G(x, y)
``Saddle``          min_x max_y f(x, y)
``BlackBox``        min f(x), values only
==================  =================================================================================

``Training`` (a network and data) is in ``objective``, ``FixedPoint`` (x = T(x)) in ``fixed_point``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fallline.core import autodiff, tree
from fallline.core.black_box import checked_bounds, number, row_values
from fallline.core.constraints import equality_oracles
from fallline.core.keys import Key
from fallline.core.operators.linear import LinearOperator
from fallline.core.problem import Problem
from fallline.core.samples import batch_indices, data_tuple
from fallline.core.tree import Tree


def _callable(value: Any, argument: str) -> None:
    if not callable(value):
        raise TypeError(f"{argument} must be a function of the variables, got {type(value).__name__}")


def _given(**oracles: Callable[..., Any] | None) -> dict[str, Callable[..., Any]]:
    given = {name: oracle for name, oracle in oracles.items() if oracle is not None}
    for name, oracle in given.items():
        _callable(oracle, name)
    return given


def _problem(value: Any, argument: str) -> None:
    if not isinstance(value, Problem):
        raise TypeError(f"{argument} must be a Problem, got {type(value).__name__}; Smooth(fun, x0) makes one of a function")


def Smooth(
    fun: Callable[[Tree], Tensor],
    x0: Tree,
    *,
    gradient: Callable[[Tree], Tree] | None = None,
    hvp: Callable[[Tree, Tree], Tree] | None = None,
    hessian: Callable[[Tree], Tensor] | None = None,
    **options: Any,
) -> Problem:
    """min f(x) for a differentiable f; derivatives that are not given come from autograd of ``fun``.

    With a ``gradient``, functions may compute as they like (NumPy, another library) and return numbers, lists or arrays: a curvature
    that is not given then comes from differences of gradients.

    Parameters
    ----------
    fun : callable ``x -> 0-d tensor``
    x0 : tensor or nested tensors
    gradient, hvp, hessian : callables, optional
        Closed forms: ``∇f(x)`` as a tree, ``∇²f(x) v`` as a tree, ``∇²f(x)`` as ``(n, n)``.
    **options
        ``name``, ``facts``, ``budget``, ``observer`` of ``Problem``.
    """
    _callable(fun, "fun")
    oracles = _given(value=fun, gradient=gradient, hvp=hvp, hessian=hessian)
    if gradient is not None:
        oracles = {name: _returning_tensors(oracle, x0) for name, oracle in oracles.items()}
    return Problem(x0, oracles, **{"kind": "smooth", **options})


def _returning_tensors(oracle: Callable[..., Any], x0: Tree) -> Callable[..., Any]:
    """The oracle with numbers, lists and arrays of its answers made tensors like the variables."""

    def answer(*arguments: Any) -> Any:
        return _as_tensors(oracle(*arguments), x0)

    return answer


def _as_tensors(answer: Any, x0: Tree) -> Any:
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, dict) and isinstance(x0, dict):
        return {name: _as_tensors(part, x0.get(name, x0)) for name, part in answer.items()}
    if isinstance(answer, list | tuple) and isinstance(x0, list | tuple) and len(answer) == len(x0):
        return type(x0)(_as_tensors(part, child) for part, child in zip(answer, x0, strict=True))
    like = tree.leaves(x0)[0]
    try:
        return torch.as_tensor(answer, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        return answer  # for the check that says what it should have been


def Composite(smooth: Problem, term: Any, **options: Any) -> Problem:
    """min f(x) + r(x): ``value`` is the sum, ``smooth`` the problem of f alone, ``prox`` that of r.

    ``term`` has ``value(x)`` and ``prox(x, step)``. On nested variables it acts tensor by tensor, unless its ``dim`` is None, which
    makes all of them one vector. There is no ``gradient`` of the sum: proximal methods take
    ``problem.smooth.gradient`` and ``problem.prox``.
    """
    _problem(smooth, "smooth")
    for needed in ("value", "prox"):
        if not hasattr(term, needed):
            raise TypeError(f"term must have value(x) and prox(x, step); {type(term).__name__} has no {needed!r}")
    smooth.require("value", by="Composite")
    value = smooth._oracles["value"]
    oracles = {"value": lambda x: value(x) + summed(term, x), "prox": leafwise(term, term.prox)}
    inherited = {"kind": "composite", "name": smooth.name, "differentiable": False, "children": {"smooth": smooth},
                 "parts": _samples_of(smooth)}
    return Problem(smooth.x0, oracles, **{**inherited, **options, "sampler": _draw_composite, "given": {"term": term}})


def _samples_of(smooth: Problem) -> int:
    """How many data points ``draw`` chooses from; other parts of a sum have no counterpart here."""
    return smooth._parts if isinstance(smooth._parts, int) else 0


def _is_joint(term: Any) -> bool:
    return getattr(term, "dim", 0) is None


def summed(term: Any, x: Tree) -> Tensor:
    """The value of a term of one tensor on nested variables."""
    if isinstance(x, Tensor) or _is_joint(term):
        return term.value(x if isinstance(x, Tensor) else tree.flatten(x))
    return torch.stack([term.value(leaf) for leaf in tree.leaves(x)]).sum()


def contained(set: Any, x: Tree) -> bool:
    """Whether nested variables lie in a set of one tensor, by its ``contains`` or else its ``project``; True if it has neither."""
    inside = getattr(set, "contains", None)
    if inside is None and hasattr(set, "project"):
        inside = lambda leaf: bool(torch.allclose(set.project(leaf), leaf, atol=torch.finfo(leaf.dtype).eps ** (2 / 3)))
    leaves = [tree.flatten(x)] if _is_joint(set) and not isinstance(x, Tensor) else tree.leaves(x)
    return inside is None or all(inside(leaf) for leaf in leaves)


def leafwise(term: Any, function: Callable[..., Tensor]) -> Callable[..., Tree]:
    """A map of one tensor to one of its shape (``prox``, ``project``, ``linear_minimize`` of ``term``), on nested variables."""

    def apply(x: Tree, *arguments: Any) -> Tree:
        if isinstance(x, Tensor):
            return function(x, *arguments)
        if _is_joint(term):
            return tree.unflatten(function(tree.flatten(x), *arguments), x)
        return tree.map(lambda leaf: function(leaf, *arguments), x)

    return apply


def _draw_composite(problem: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
    drawn = problem.smooth.draw(key, size, indices, at)
    return problem if drawn is problem.smooth else Composite(drawn, problem.term, name=problem.name, facts=problem.facts)


def Constrained(
    smooth: Problem,
    set: Any = None,
    *,
    equality: Callable[[Tree], Tensor] | None = None,
    inequality: Callable[[Tree], Tensor] | None = None,
    equality_jacobian: Callable[[Tree], Tensor] | None = None,
    equality_hessian: Callable[[Tree, Tensor], Tensor] | None = None,
    **options: Any,
) -> Problem:
    """min f(x) over a set, and/or subject to ``equality(x) = 0`` and ``inequality(x) ≤ 0``.

    ``set`` has ``project(x)`` or ``linear_minimize(g)`` (or both), and acts on nested variables as terms do in ``Composite``; the
    constraint functions return 1-D tensors. Derivatives of the equalities over the flattened variables, ``equality_jacobian(x)``
    (m, n) and ``equality_hessian(x, λ)`` = Σ λ_i ∇²c_i (n, n), come from autograd where not given. ``draw`` and ``parts`` are those
    of ``smooth``, constrained; ``problem.set`` is the set, or None.
    """
    _problem(smooth, "smooth")
    if set is None and equality is None and inequality is None:
        raise ValueError("Constrained needs a set, an equality or an inequality; without any use Smooth")
    offered = [name for name in ("project", "linear_minimize") if hasattr(set, name)]
    if set is not None and not offered:
        raise TypeError(f"set must have project(x) or linear_minimize(g), got {set!r}, a {type(set).__name__}")
    given = _given(equality=equality, inequality=inequality, equality_jacobian=equality_jacobian, equality_hessian=equality_hessian)
    if inequality is not None:
        given["inequality"] = lambda x: torch.atleast_1d(inequality(x))
    if equality is not None:
        given |= equality_oracles(equality, equality_jacobian, equality_hessian)
    oracles = {**smooth._oracles, **given, **{name: leafwise(set, getattr(set, name)) for name in offered}}

    def sample(problem: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
        drawn = smooth.draw(key, size, indices, at)
        return problem if drawn is smooth else Constrained(
            drawn, set, equality=equality, inequality=inequality, equality_jacobian=equality_jacobian,
            equality_hessian=equality_hessian, name=problem.name, facts=problem.facts)

    inherited = {"kind": "constrained", "name": smooth.name, "facts": smooth.facts, "differentiable": smooth._derives,
                 "samples": smooth.samples, "parts": _samples_of(smooth)}
    return Problem(smooth.x0, oracles, **{**inherited, **options, "sampler": sample, "given": {"set": set}})


def FiniteSum(
    fun: Callable[..., Tensor],
    data: Tensor | Sequence[Tensor],
    x0: Tree,
    *,
    batch_size: int = 1,
    **options: Any,
) -> Problem:
    """min (1/n) Σ f(x; data_i). ``value`` and ``gradient`` take all data; ``draw`` a mini-batch, with replacement.

    Parameters
    ----------
    fun : callable ``(x, *batch) -> 0-d tensor``
        The **mean** loss over a batch.
    data : tensor or tuple of tensors
        Each with n rows.
    x0 : tensor or nested tensors
    batch_size : int, default 1
        What ``draw`` takes when not told otherwise.

    Notes
    -----
    ``parts`` are the n terms, each of ``weight`` 1/n.
    """
    _callable(fun, "fun")
    tensors = data_tuple(data)
    n = len(tensors[0])
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be between 1 and the {n} data points, got {batch_size}")

    def over(rows: tuple[Tensor, ...]) -> dict[str, Callable[..., Any]]:
        def per_sample(x: Tree) -> Tree:
            one = lambda x, *row: fun(x, *(r.unsqueeze(0) for r in row)).reshape(())
            return torch.func.vmap(torch.func.grad(one), in_dims=(None, *(0 for _ in rows)))(x, *rows)

        return {"value": lambda x: fun(x, *rows), "per_sample_gradients": per_sample}

    def sample(problem: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
        chosen = batch_indices(n, key, size, indices, batch_size)
        rows = tuple(t[chosen.to(t.device)] for t in tensors)
        return Problem(problem.x0, over(rows), kind=problem.kind, name=problem.name, samples=len(chosen))

    return Problem(x0, over(tensors), **{"kind": "finite-sum", **options, "sampler": sample, "samples": n, "parts": n})


def LinearSystem(A: Any, b: Tensor, x0: Tensor | None = None, *, adjoint: Callable[[Tensor], Tensor] | None = None,
                 **options: Any) -> Problem:
    """A x = b for a dense or sparse matrix, or an operator with ``matvec``; in the least-squares sense if A is not square.

    Offers ``matvec(v)``, ``rmatvec(u) = Aᵀ u``, ``residual(x) = b − A x``; ``problem.b`` is the right-hand side, and
    ``problem.matrix`` the matrix where A is one.

    Parameters
    ----------
    A : tensor (m, n), operator, or callable ``v -> A v``
    b : Tensor (m,)
    x0 : Tensor (n,), optional
        Zero by default; needed where n is not known: a function that is not square.
    adjoint : callable ``u -> Aᵀ u``, optional
        For functions and operators without ``rmatvec``; a matrix has its own.
    """
    matrix = isinstance(A, Tensor)
    if not (matrix or hasattr(A, "matvec") or callable(A)):
        raise TypeError(f"A must be a matrix, an operator with matvec, or a function v -> A v, got {type(A).__name__}")
    if matrix and A.layout is not torch.strided:  # by rows, and the transpose too: products with columns are slow
        operator = LinearOperator.from_tensor(A)
        apply, adjoint = operator.matvec, adjoint or operator.adjoint
    else:
        apply = A.matvec if hasattr(A, "matvec") else (lambda v: A @ v) if matrix else A
    transpose = adjoint or getattr(A, "rmatvec", None) or ((lambda u: A.mT @ u) if matrix else None)
    shape = tuple(getattr(A, "shape", (len(b), len(b) if x0 is None else len(x0))))
    start = b.new_zeros(shape[1]) if x0 is None else x0
    if shape != (len(b), len(start)):
        raise ValueError(f"A must be {len(b)} by {len(start)} to fit b and x0, got shape {shape}")
    oracles = {"matvec": apply, "residual": lambda x: b - apply(x), **_given(rmatvec=transpose)}

    def observer(problem: Problem, x: Tree) -> dict[str, float]:
        return {"residual_norm": float(torch.linalg.vector_norm(problem.residual(x)))}

    given = {"b": b, **({"matrix": A} if matrix else {})}
    return Problem(start, oracles, **{"kind": "linear-system", "observer": observer, "given": given, **options})


def _pair(objective: Callable[[Tree, Tree], Tensor] | Problem, x0: Tree, y0: Tree, name: str) -> Problem:
    if isinstance(objective, Problem):
        return objective
    _callable(objective, name)
    return Smooth(lambda z: objective(z[0], z[1]), (x0, y0), name=name)


def Bilevel(upper: Any, lower: Any, x0: Tree, y0: Tree, **options: Any) -> Problem:
    """min_x F(x, y*(x)) with y*(x) = argmin_y G(x, y).

    ``upper`` and ``lower`` are functions ``(x, y) -> 0-d tensor``, or problems over the pair ``(x, y)`` (a ``FiniteSum`` whose
    function takes the pair, when a level has data). Methods ask ``problem.upper.gradient((x, y), wrt=0)`` and so on; ``draw``
    draws both levels, independently; chosen ``indices`` belong to one level's data: ``problem.lower.draw(key, indices=...)``.
    """
    levels = {"upper": _pair(upper, x0, y0, "upper"), "lower": _pair(lower, x0, y0, "lower")}

    def sample(problem: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
        if indices is not None:
            raise ValueError("indices choose data of one level, and a bilevel problem draws two: "
                             "draw problem.upper or problem.lower with them")
        drawn = {name: level.draw(key.fold(name), size, None, at) for name, level in problem._children.items()}
        return Problem(problem.x0, {}, kind="bilevel", name=problem.name, children=drawn)

    def observer(problem: Problem, z: Tree) -> dict[str, float]:
        return {"upper": float(problem.upper.value(z)), "lower": float(problem.lower.value(z))}

    return Problem((x0, y0), {}, **{"kind": "bilevel", "observer": observer, **options, "sampler": sample,
                                    "children": levels})


def Saddle(fun: Callable[[Tree, Tree], Tensor], x0: Tree, y0: Tree, **options: Any) -> Problem:
    """min_x max_y f(x, y); offers ``operator(z) = (∂_x f, −∂_y f)`` at ``z = (x, y)`` beside value and gradients.

    ``observe`` reports the norm of the operator, ``residual_norm``, by which answers are judged, beside the value.
    """
    _callable(fun, "fun")
    value = lambda z: fun(z[0], z[1])

    def operator(z: Tree) -> Tree:
        gx, gy = autodiff.value_and_gradient(value, z)[1]
        return gx, tree.map(torch.neg, gy)

    def observer(problem: Problem, z: Tree) -> dict[str, float]:
        return {"residual_norm": float(tree.norm(problem.operator(z))), "value": float(problem.value(z))}

    return Problem((x0, y0), {"value": value, "operator": operator}, **{"kind": "saddle", "observer": observer, **options})


def BlackBox(
    fun: Callable[[Tensor], Any],
    x0: Tensor,
    *,
    bounds: tuple[Tensor | float, Tensor | float] | None = None,
    vectorized: bool = False,
    **options: Any,
) -> Problem:
    """min f(x) where only values can be had.

    Parameters
    ----------
    fun : callable
        Takes a 1-D tensor and returns a number; with ``vectorized`` takes ``(n, d)`` and returns ``(n,)``.
    x0 : tensor, shape (d,)
    bounds : pair of lower and upper bound (numbers or tensors), optional
        Where populations start; kept as ``problem.facts["bounds"]``.
    """
    _callable(fun, "fun")
    if not isinstance(x0, Tensor) or x0.ndim != 1:
        found = f"shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else f"a {type(x0).__name__}"
        raise ValueError(f"x0 must be a 1-D tensor of d numbers, got {found}; flatten the variables, and unflatten them in fun")

    def values(points: Tensor) -> Tensor:
        return row_values(fun, points) if vectorized else torch.stack([number(fun(point), points) for point in points])

    oracles: Mapping[str, Callable[..., Any]] = {"value": lambda x: values(x.unsqueeze(0))[0], "values": values}
    facts = {**options.pop("facts", {}), **({} if bounds is None else {"bounds": checked_bounds(bounds, x0)})}
    return Problem(x0, oracles, **{"kind": "black-box", "differentiable": False, "facts": facts, **options})
