"""Fractions: min (f(x) + r(x) + constant) / g(x), f smooth and convex, r a separable term, g > 0 a convex or concave function of G x.

    ``AbsoluteSum``     g = ‖G x‖₁                              convex
    ``PositiveSum``     g = Σ max((G x)_j, 0)                   convex
    ``LargestSum``      g = Σ of the k largest |(G x)_j|        convex; k = 1 is ‖G x‖_∞
    ``SquareRootSum``   g = Σ √((G x)_j + offset)               concave

Along a coordinate, G x + η G_i, the convex ones are affine between breakpoints.
"""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.operators.columns import DenseColumns, SparseColumns, columns_of
from fallline.core.operators.linear import LinearOperator
from fallline.core.problem import Problem


@dataclass(frozen=True, eq=False)
class Denominator(abc.ABC):
    """A function of z = G x.

    Attributes
    ----------
    G : Tensor (m, n)
        Dense, or sparse in any layout.
    """

    G: Tensor

    def __post_init__(self) -> None:
        if self.G.ndim != 2:
            raise ValueError(f"G must be a matrix (m, n), got shape {tuple(self.G.shape)}")

    @functools.cached_property
    def columns(self) -> DenseColumns | SparseColumns:
        """G by columns."""
        return columns_of(self.G)

    @functools.cached_property
    def operator(self) -> LinearOperator:
        """G, with fast products."""
        return LinearOperator.from_tensor(self.G)

    @abc.abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """Return g, a 0-d tensor."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.G.shape[0]} x {self.G.shape[1]})"


@dataclass(frozen=True)
class Pieces:
    """A piecewise affine function of one variable: intercept + slope η between neighbouring breaks.

    Attributes
    ----------
    breaks : Tensor (k,)
        Ascending; infinite ones are none.
    slopes, intercepts : Tensor (k + 1,)
    """

    breaks: Tensor
    slopes: Tensor
    intercepts: Tensor


class PiecewiseLinear(Denominator):
    """A denominator that is affine between breakpoints along every line."""

    @abc.abstractmethod
    def pieces(self, z: Tensor, rows: Tensor | slice, a: Tensor) -> Pieces:
        """Return η ↦ g(z + η a), for a column with the entries ``a`` at ``rows`` and zeros elsewhere."""


def _flips(z: Tensor, a: Tensor, jump: float, rest: Tensor, first: Tensor) -> Pieces:
    """A sum over rows that bend once each, at −z_j/a_j: slope and intercept grow by ``jump`` |a_j| and ``jump`` sign(a_j) z_j."""
    moves = a != 0
    breaks, order = torch.where(moves, -z / torch.where(moves, a, 1.0), math.inf).sort()
    slopes = torch.cat([first, first + (jump * a.abs()[order]).cumsum(0)])
    intercepts = torch.cat([rest, rest + (jump * (a.sign() * z)[order]).cumsum(0)])
    return Pieces(breaks, slopes, intercepts)


class AbsoluteSum(PiecewiseLinear):
    """g = ‖G x‖₁, with one breakpoint for every nonzero of a column."""

    def value(self, z: Tensor) -> Tensor:
        """Return Σ |z_j|."""
        return z.abs().sum()

    def pieces(self, z: Tensor, rows: Tensor | slice, a: Tensor) -> Pieces:
        """Return η ↦ Σ |z_j + η a_j|: all moving rows have the sign of −a_j at −∞."""
        here = z[rows]
        rest = z.abs().sum() - torch.where(a != 0, here.abs() + a.sign() * here, 0.0).sum()
        return _flips(here, a, 2.0, rest[None], -a.abs().sum()[None])


class PositiveSum(PiecewiseLinear):
    """g = Σ max((G x)_j, 0), with one breakpoint for every nonzero of a column."""

    def value(self, z: Tensor) -> Tensor:
        """Return Σ max(z_j, 0)."""
        return z.clamp(min=0).sum()

    def pieces(self, z: Tensor, rows: Tensor | slice, a: Tensor) -> Pieces:
        """Return η ↦ Σ max(z_j + η a_j, 0): rows with a_j < 0 are positive at −∞."""
        here = z[rows]
        rest = z.clamp(min=0).sum() + torch.where(a != 0, torch.where(a < 0, here, 0.0) - here.clamp(min=0), 0.0).sum()
        return _flips(here, a, 1.0, rest[None], a.clamp(max=0).sum()[None])


@dataclass(frozen=True, eq=False, repr=False)
class LargestSum(PiecewiseLinear):
    """g = Σ of the k largest |(G x)_j|, with a breakpoint for every pair of rows of which a column moves one: O(m² · nonzeros) a line.

    Parameters
    ----------
    G : Tensor (m, n)
        Moderate m, or few nonzeros in a column: the identity for a norm of x itself.
    k : int, default 1
    """

    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("k", self.k, "how many of the rows of G x count")
        if self.k > len(self.G):
            raise ValueError(f"k must be at most the {len(self.G)} rows of G, got {self.k}; AbsoluteSum takes all of them")

    def value(self, z: Tensor) -> Tensor:
        """Return the sum of the k largest |z_j|."""
        return z.abs().topk(self.k).values.sum()

    def pieces(self, z: Tensor, rows: Tensor | slice, a: Tensor) -> Pieces:
        """Return η ↦ Σ of the k largest |z_j + η a_j|, which changes rows or signs where two rows are equal or one is 0."""
        whole = torch.zeros_like(z)
        whole[rows] = a
        moving = whole.nonzero()[:, 0]
        zi, ai = z[moving, None], whole[moving, None]
        breaks = torch.cat([((z - zi) / (ai - whole)).reshape(-1), (-(z + zi) / (ai + whole)).reshape(-1), (-zi / ai)[:, 0]])
        breaks = breaks[breaks.isfinite()].unique()
        if not len(breaks):
            return Pieces(breaks, z.new_zeros(1), self.value(z)[None])
        inside = torch.cat([breaks[:1] - 1, (breaks[1:] + breaks[:-1]) / 2, breaks[-1:] + 1])
        at = z + inside[:, None] * whole
        largest = at.abs().topk(self.k, dim=1).indices
        signs = at.gather(1, largest).sign()
        return Pieces(breaks, (signs * whole[largest]).sum(1), (signs * z[largest]).sum(1))


@dataclass(frozen=True, eq=False, repr=False)
class SquareRootSum(Denominator):
    """g = Σ √((G x)_j + offset), concave: −∞ where a root has no value.

    Parameters
    ----------
    G : Tensor (m, n)
    offset : float, default 1
    """

    offset: float = 1.0

    def value(self, z: Tensor) -> Tensor:
        """Return Σ √(z_j + offset)."""
        return torch.where(z + self.offset >= 0, (z + self.offset).clamp(min=0).sqrt(), -math.inf).sum()

    def along(self, z: Tensor, rows: Tensor | slice, a: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and its derivative at steps η (k,) along a column; +∞ is the derivative at the end of the domain."""
        here = z[rows] + self.offset
        root = (here + eta[:, None] * a).clamp(min=0).sqrt()
        moving = torch.where(a != 0, a / (2 * root), 0.0)
        return (z + self.offset).clamp(min=0).sqrt().sum() - here.clamp(min=0).sqrt().sum() + root.sum(1), moving.sum(1)

    def domain(self, z: Tensor, rows: Tensor | slice, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest η with g(z + η a) finite."""
        if not len(a):
            return torch.full_like(z[0], -math.inf), torch.full_like(z[0], math.inf)
        here = z[rows] + self.offset
        ends = torch.where(a != 0, -here / torch.where(a != 0, a, 1.0), math.inf)
        return torch.where(a > 0, ends, -math.inf).amax(), torch.where(a < 0, ends, math.inf).amin()


def Fractional(numerator: Problem, denominator: Denominator, *, constant: float = 0.0, **options: Any) -> Problem:
    """min (f(x) + r(x) + constant) / g(x).

    Parameters
    ----------
    numerator : Problem
        f, convex and smooth, or ``Composite(f, r)`` with a term; its ``x0`` is the start, where g must be positive.
    denominator : Denominator
        ``AbsoluteSum(G)``, ``PositiveSum(G)``, ``LargestSum(G, k)``, ``SquareRootSum(G)``.
    constant : float, default 0
        Added to the numerator.
    **options
        ``name``, ``facts``, ``budget``, ``observer`` of ``Problem``.

    Raises
    ------
    TypeError, ValueError
        What is no problem or denominator, shapes that do not fit, a start at which g ≤ 0 or the numerator is negative.
    """
    if not isinstance(numerator, Problem):
        raise TypeError(f"numerator must be a Problem, got {type(numerator).__name__}; LinearModel and Quadratic make fast ones")
    if not isinstance(denominator, Denominator):
        raise TypeError(f"denominator must be a Denominator such as AbsoluteSum(G), got {type(denominator).__name__}")
    numerator.require("value", by="Fractional")
    x0, value = numerator.x0, numerator._oracles["value"]
    if not isinstance(x0, Tensor) or x0.shape != denominator.G.shape[1:]:
        raise ValueError(f"the numerator's x0 must be a tensor of the {denominator.G.shape[1]} columns of G, got "
                         + (f"shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else f"a {type(x0).__name__}"))
    if not math.isfinite(constant):
        raise ValueError(f"constant must be a finite number, got {constant}")

    def ratio(x: Tensor) -> Tensor:
        below = denominator.value(denominator.operator.matvec(x))
        return torch.where(below > 0, (value(x) + constant) / below, math.inf)

    below, above = float(denominator.value(denominator.operator.matvec(x0))), float(value(x0)) + constant
    if not below > 0:
        raise ValueError(f"the denominator must be positive at x0, and is {below:.3g}; start elsewhere: x = 0 is a pole of norms")
    if not above >= 0:
        raise ValueError(f"the numerator must not be negative, and is {above:.3g} at x0: a smaller fraction would have a smaller g; "
                         "add a constant")
    given = {"numerator": numerator, "denominator": denominator, "constant": float(constant)}
    return Problem(x0, {"value": ratio}, **{"kind": "fractional", "name": f"fraction of {numerator.name}", **options}, given=given)
