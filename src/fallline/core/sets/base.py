"""A closed convex set C: its projection, its linear minimisation oracle, its indicator.

    project(x) = argmin_{z in C} ‖z - x‖,   linear_minimize(g) ∈ argmin_{s in C} ⟨g, s⟩.

A set is a term: the indicator (0 inside, ∞ outside), whose proximal map is the projection for every step. A region is known by
linear minimisation and membership alone: for methods without projections.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from fallline.core.terms.base import Term

__all__ = ["Region", "Set"]


class Region(abc.ABC):
    """A closed convex set of tensors that can be minimised over. With a batch, the set is the product: each of them is in it."""

    def contains(self, x: Tensor, tol: float | None = None) -> bool:
        """Return whether no constraint is violated by more than ``tol``.

        Parameters
        ----------
        x : Tensor
        tol : float, optional
            Violation relative to the larger of 1 and the set's size; ε^(2/3) of x's dtype by default: 2e-5 in float32,
            4e-11 in float64.
        """
        allowed = torch.finfo(x.dtype).eps ** (2 / 3) if tol is None else tol
        if not allowed >= 0:
            raise ValueError(f"tol must be >= 0, got {tol}")
        # Written so that NaN is outside.
        return bool((self._violation(x) <= allowed * max(1.0, self._scale())).all())

    @abc.abstractmethod
    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return a point of the set that minimises ⟨g, s⟩."""

    @abc.abstractmethod
    def _violation(self, x: Tensor) -> Tensor:
        """Return by how much constraints are violated, in any shape."""

    def _scale(self) -> float:
        return 1.0


class Set(Region, Term):
    """A closed convex set of tensors. With a batch of vectors, the set is the product: each of them is in it."""

    def value(self, x: Tensor) -> Tensor:
        """Return the indicator as a 0-d tensor: 0 if ``contains(x)``, else ∞."""
        return x.new_full((), 0.0 if self.contains(x) else math.inf)

    @abc.abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Return the nearest point of the set."""

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return self.project(x)


def check_radius(name: str, radius: float) -> float:
    """Return the radius as a float, or say that it must be a finite number > 0."""
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {radius}")
    return float(radius)
