"""Newton's method regularised by the gradient norm, for any approximation of the Hessian.

    λ = ‖g‖_*/γ,   x⁺ = x − (H + λB)⁻¹ g;   accepted if f(x) − f(x⁺) ≥ ‖∇f(x⁺)‖_*²/(8λ), then γ ← 2γ;   else γ ← γ/2 and again

γ is the radius of a ball about x on which H predicts the change of the gradient to within a share of ‖g‖ (gradient-normalised
smoothness); the search finds it. With the exact Hessian the rates are those of the cubic Newton method, for whichever class of
objectives is at hand; for logistic and softmax losses they are linear with Fisher and Gauss-Newton matrices too; with H = 0 it is
gradient descent of the step size γ/‖g‖.

Semenov, Jaggi, Doikov: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, ICLR 2026, arXiv 2506.13710.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.checks import check_count
from fallline.core.keys import Key, normal_like
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Range
from fallline.core.tree import Tree
from fallline.solvers.descent.curvature import Curvature, Exact, Given, Products, Zero
from fallline.solvers.descent.descents import Descent, RegularizedNewton
from fallline.solvers.descent.minimizer import Composed
from fallline.solvers.descent.model_curvature import Fisher, GaussNewton
from fallline.solvers.descent.searches import GradientNormalized, Search

SOURCES: Mapping[str, Curvature] = {"exact": Exact(), "fisher": Fisher(), "gauss_newton": GaussNewton(), "zero": Zero(),
                                    "products": Products(power=1.0)}


@register("gradient-regularized-newton")
@dataclass(frozen=True)
class GradRegNewton(Composed):
    """x⁺ = x − (H + (‖g‖_*/γ) B)⁻¹ g, the largest γ = 2γ₋, γ₋, γ₋/2, … for which f(x) − f(x⁺) ≥ ‖∇f(x⁺)‖_*² γ/(8‖g‖_*).

    Parameters
    ----------
    hess : {"exact", "fisher", "gauss_newton", "zero", "products"}, Curvature or callable ``x -> (n, n)``, default "exact"
        Any symmetric matrix, best a positive semi-definite one; "products" are exact and form no matrix.
    gamma0 : float, default 1
        γ of the first trial.
    metric : Tensor, optional
        B, positive definite: a diagonal (n,) or a matrix (n, n). The identity by default.

    Notes
    -----
    Nothing to tune. A trial costs a factorisation and a gradient; about two are needed a step. Where H + λB is not positive definite
    the trial counts as refused, so that indefinite matrices do. Reports ‖g‖ as the gap.
    """

    hess: str | Curvature | Callable[[Tree], Tensor] = "exact"
    gamma0: float = 1.0
    metric: Tensor | None = None

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        self.parts()  # the door

    def parts(self) -> tuple[Descent, Search, Curvature]:
        return RegularizedNewton(self.metric), GradientNormalized(self.gamma0), self._source()

    def _source(self) -> Curvature:
        if isinstance(self.hess, Curvature):
            return self.hess
        if callable(self.hess):
            return Given(self.hess)
        if self.hess not in SOURCES:
            raise ValueError(f"hess must be one of {', '.join(map(repr, SOURCES))}, a Curvature or a function x -> matrix, "
                             f"got {self.hess!r}")
        return SOURCES[self.hess]


def gns_radius(problem: Problem, x: Tree, hess: Tensor | Literal["exact", "zero"] = "exact", *, directions: int = 32,
               key: Key | int = 0) -> float:
    """Return the largest γ ≤ 2³⁰ with ‖∇f(x + h) − ∇f(x) − Hh‖ ≤ ‖∇f(x)‖ ‖h‖/γ for sampled h, ‖h‖ ≤ γ.

    The gradient-normalised smoothness of f at x for the matrix H, from above: only sampled directions are seen. γ is found by bisection
    of its logarithm to 1 %, over h of lengths γ, γ/2 and γ/4 in ``directions`` random directions and along ±∇f.

    Parameters
    ----------
    problem : Problem
        With a gradient.
    x : tree
        Where ∇f is not 0.
    hess : {"exact", "zero"} or Tensor (n, n), default "exact"
    directions : int, default 32
    key : Key or int, default 0

    Raises
    ------
    ValueError
        The gradient at x is 0, or H has another shape.
    """
    check_count("directions", directions, "32 is typical")
    if isinstance(hess, str) and hess not in ("exact", "zero"):
        raise ValueError(f"hess must be 'exact', 'zero' or a matrix, got {hess!r}")
    flat = tree.flatten(x)
    gradient = tree.flatten(problem.gradient(x))
    norm = float(torch.linalg.vector_norm(gradient))
    if norm == 0:
        raise ValueError("x must have a gradient other than 0: relative to it the radius is measured")
    H = problem.hessian(x) if isinstance(hess, str) and hess == "exact" else flat.new_zeros(len(flat), len(flat)) if isinstance(
        hess, str) else hess
    if H.shape != (len(flat), len(flat)):
        raise ValueError(f"hess must be 'exact', 'zero' or a matrix ({len(flat)}, {len(flat)}), got shape {tuple(H.shape)}")
    generator = (key if isinstance(key, Key) else Key(key)).fold("gns").generator()
    drawn = [normal_like(flat, generator) for _ in range(directions)]
    units = [v / torch.linalg.vector_norm(v) for v in (*drawn, gradient, -gradient)]

    def holds(gamma: float) -> bool:
        for length in (gamma, gamma / 2, gamma / 4):
            for unit in units:
                h = length * unit
                ahead = tree.flatten(problem.gradient(tree.add(x, tree.unflatten(h, x))))
                error = float(torch.linalg.vector_norm(ahead - gradient - H @ h))
                if not error <= norm * length / gamma:
                    return False
        return True

    low, high = -30.0, 30.0
    if holds(2.0**high):
        return 2.0**high
    while high - low > math.log2(1.01):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(2.0**middle) else (low, middle)
    return 2.0**low
