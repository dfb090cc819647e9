"""The proximal map, which a term offers in place of a gradient.

    prox_{t f}(x) = argmin_z f(z) + ‖z - x‖² / (2 t)

Moreau's identity turns it into that of the convex conjugate f*: prox_{t f*}(x) = x - t prox_{f/t}(x/t).

Source: N. Parikh and S. Boyd, *Proximal Algorithms*, Found. Trends Optim. 1 (2014) 127.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fallline.core.checks import check_count

__all__ = ["Scaled", "SkipFirst", "Term", "Zero"]


class Term(abc.ABC):
    """A function of one tensor with a closed-form proximal map.

    Multiply by a number to scale: ``0.1 * L1()``, ``L1() * 0.1``.

    Attributes
    ----------
    weak_convexity : float
        ρ >= 0 such that f + ρ/2 ‖x‖² is convex: 0 for a convex f. The proximal map is unique for steps below 1/ρ.
    separable : bool
        Whether f(x) = Σ_i f_i(x_i): there are ``entries`` then, and the proximal map takes a step for each entry.
    """

    weak_convexity: float = 0.0
    separable: bool = False

    @abc.abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Return f(x) as a 0-d tensor, summed over the batch where the term acts on slices of x."""

    def entries(self, x: Tensor) -> Tensor:
        """Return f_i(x_i), shaped as x, of a separable term."""
        raise TypeError(f"{self!r} is not a sum over entries; L1, ElasticNet, SquaredL2, MCP, SCAD and Box are")

    def restricted(self, index: Tensor) -> Term:
        """Return the part of a separable term that acts on the entries ``index`` of a vector."""
        return self

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        """Return argmin_z f(z) + ‖z - x‖² / (2 step).

        Parameters
        ----------
        x : Tensor
            Any floating dtype.
        step : float or Tensor
            A number >= 0 below ``1 / weak_convexity``, or a 0-d tensor (trusted, so that nothing waits for a device); of a
            separable term also a tensor shaped as x.
        """
        self._check_step(step)
        return self._prox(x, step)

    def conjugate_prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        """Return the proximal map of step times the convex conjugate f*, by Moreau's identity. Needs step > 0."""
        if self.weak_convexity > 0:
            raise ValueError(f"{self!r} is not convex: Moreau's identity does not hold")
        if not isinstance(step, Tensor) and not step > 0:
            raise ValueError(f"step must be a finite number > 0 for a conjugate, got {step}")
        return x - step * self.prox(x / step, 1 / step)

    def split(self) -> tuple[Term, Callable[[Tensor], Tensor]]:
        """Return f = r + q as a convex term r and the gradient of a concave q, which is ``weak_convexity``-Lipschitz.

        Raises
        ------
        ValueError
            f is not convex, and no such q is known.
        """
        if self.weak_convexity > 0:
            raise ValueError(f"{self!r} is not convex, and has no known split into a convex term and a smooth concave one")
        return self, torch.zeros_like

    @abc.abstractmethod
    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor: ...

    def _check_step(self, step: float | Tensor) -> None:
        if isinstance(step, Tensor):
            return
        if not (math.isfinite(step) and step >= 0):
            raise ValueError(f"step must be a finite number >= 0, got {step}")
        if step * self.weak_convexity >= 1:
            raise ValueError(
                f"step must be below 1 / weak_convexity = {1 / self.weak_convexity:g} for {self!r}, got {step}: "
                "from there on the minimiser that defines the proximal map is not unique"
            )

    def __rmul__(self, factor: float) -> Term:
        return Scaled(factor, self)

    __mul__ = __rmul__


class Zero(Term):
    """f = 0."""

    separable = True

    def value(self, x: Tensor) -> Tensor:
        """Return 0."""
        return x.new_zeros(())

    def entries(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(x)

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return x

    def __repr__(self) -> str:
        return "Zero()"


class Scaled(Term):
    """c f with c > 0: its proximal map with step t is that of f with step c t."""

    def __init__(self, factor: float, term: Term) -> None:
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be a finite number > 0, got {factor}; use Zero() for none")
        self.factor = float(factor)
        self.term = term
        self.weak_convexity = self.factor * term.weak_convexity
        self.separable = term.separable

    def value(self, x: Tensor) -> Tensor:
        """Return c f(x)."""
        return self.factor * self.term.value(x)

    def split(self) -> tuple[Term, Callable[[Tensor], Tensor]]:
        """Return c times the split of f."""
        convex, concave = self.term.split()
        return Scaled(self.factor, convex), lambda x: self.factor * concave(x)

    def entries(self, x: Tensor) -> Tensor:
        """Return c f_i(x_i)."""
        return self.factor * self.term.entries(x)

    def restricted(self, index: Tensor) -> Term:
        """Return c times the restricted f."""
        return Scaled(self.factor, self.term.restricted(index))

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return self.term.prox(x, self.factor * step)

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.term!r}"


class SkipFirst(Term):
    """f of all entries of a vector but the first ones, which are left alone: intercepts.

    Parameters
    ----------
    term : Term
    count : int
        How many entries of the last dimension are left alone.
    """

    def __init__(self, term: Term, count: int = 1) -> None:
        check_count("count", count, "without any, use the term itself")
        self.term, self.count = term, count
        self.weak_convexity = term.weak_convexity

    def value(self, x: Tensor) -> Tensor:
        """Return f of the other entries."""
        return self.term.value(x[..., self.count:])

    def split(self) -> tuple[Term, Callable[[Tensor], Tensor]]:
        """Return the split of f, likewise of the other entries."""
        convex, concave = self.term.split()
        return SkipFirst(convex, self.count), lambda x: self._joined(torch.zeros_like(x), concave(x[..., self.count:]))

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return self._joined(x, self.term.prox(x[..., self.count:], step))

    def _joined(self, x: Tensor, others: Tensor) -> Tensor:
        return torch.cat([x[..., : self.count], others], dim=-1)

    def __repr__(self) -> str:
        return f"SkipFirst({self.term!r}, {self.count})"


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """Return sign(x) max(|x| - threshold, 0), entry by entry."""
    return x.sign() * (x.abs() - threshold).clamp(min=0)


def shrink_norm(x: Tensor, norms: Tensor, threshold: float | Tensor) -> Tensor:
    """Return max(1 - threshold / norms, 0) x, and 0 where the norm is 0."""
    outside = norms > threshold
    # The inner where keeps the unused branch finite, so that its gradient is 0 and not NaN.
    factor = torch.where(outside, 1 - threshold / torch.where(outside, norms, 1.0), 0.0)
    return factor * x


def check_weight(name: str, weight: float) -> float:
    """Return the weight as a float, or say that it must be a finite number >= 0."""
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {weight}")
    return float(weight)
