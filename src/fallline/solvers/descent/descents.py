"""Descents: where a step of a given size goes.

    t is the size of a step; g the gradient, H the curvature
    GradientStep         −t g
    NewtonStep           −t H⁻¹g
    RegularizedNewton    −(H + B/t)⁻¹ g
    CubicNewton          argmin_s ⟨g, s⟩ + ½⟨Hs, s⟩ + ‖s‖³ / 6t
    TrustRegion          argmin_s ⟨g, s⟩ + ½⟨Hs, s⟩  with ‖s‖ ≤ t
    TruncatedCG          conjugate gradients on the same model, up to the first that leaves the region (Steihaug, Toint)

A descent makes the path t ↦ step; a search decides how far to go on it.

Sources: T. Steihaug, SIAM J. Numer. Anal. 20 (1983) 626; Y. Nesterov, B. Polyak, Math. Program. 108 (2006) 177.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.solvers.descent.local import Local
from fallline.solvers.descent.secular import secular_step


@dataclass(frozen=True)
class Step:
    """Where a path leads.

    Attributes
    ----------
    displacement : Tensor (n,)
    predicted : float
        By how much the model that the step minimises falls.
    shift : float
        λ with (H + λB) displacement = −g: how strongly the step is regularised.
    bounded : bool
        Whether the step ends at the boundary of its region.
    """

    displacement: Tensor
    predicted: float
    shift: float = 0.0
    bounded: bool = False


class Path:
    """t ↦ step at one point; None where the model has no such step, for it is not convex enough.

    Attributes
    ----------
    remedy : str
        What to do about a None, for messages.
    """

    remedy = "a descent for non-convex objectives, such as CubicNewton or TrustRegion, needs no convexity"

    def __init__(self, local: Local, gradient: Tensor) -> None:
        self.local, self.gradient = local, gradient

    def __call__(self, t: float) -> Step | None:
        """Return the step of size t > 0."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def dual_norm(self, v: Tensor) -> float:
        """Return ‖v‖_*, dual to the norm in which the steps are regularised."""
        return float(torch.linalg.vector_norm(v))


class Ray(Path):
    """t ↦ −t P g for a positive definite P: ``preconditioned`` is P g, ``decrement`` √⟨g, P g⟩; ``newton`` says whether P = H⁻¹.

    The model is ⟨g, s⟩ + ⟨s, P⁻¹s⟩/2t, which bounds f where the curvature is at most P⁻¹/t: it falls by (t/2)⟨g, Pg⟩.
    """

    def __init__(self, local: Local, gradient: Tensor, preconditioned: Tensor | None, newton: bool = False) -> None:
        super().__init__(local, gradient)
        self.preconditioned, self.newton = preconditioned, newton
        square = math.nan if preconditioned is None else float(gradient @ preconditioned)
        self.indefinite = preconditioned is None or square < 0
        self.decrement = math.nan if self.indefinite else math.sqrt(square)

    def __call__(self, t: float) -> Step | None:
        if self.preconditioned is None or self.indefinite:
            return None
        return Step(-t * self.preconditioned, t / 2 * self.decrement**2)


@dataclass(frozen=True)
class Descent:
    """Makes paths.

    Attributes
    ----------
    leaves_saddles : bool
        Whether there is a step where the gradient is 0 and the curvature has a negative eigenvalue.
    """

    leaves_saddles: ClassVar[bool] = False

    def path(self, local: Local, gradient: Tensor) -> Path:
        """Return the path at a point with that curvature and gradient (n,)."""
        raise NotImplementedError(f"{type(self).__name__} must define path")


@dataclass(frozen=True)
class GradientStep(Descent):
    """−t g: gradient descent, whatever the curvature."""

    def path(self, local: Local, gradient: Tensor) -> Path:
        return Ray(local, gradient, gradient)


@dataclass(frozen=True)
class NewtonStep(Descent):
    """−t H⁻¹ g for a positive semi-definite H."""

    def path(self, local: Local, gradient: Tensor) -> Path:
        return Ray(local, gradient, local.solve(gradient), newton=True)


@dataclass(frozen=True)
class RegularizedNewton(Descent):
    """−(H + B/t)⁻¹ g.

    Parameters
    ----------
    metric : Tensor, optional
        B, positive definite: a diagonal (n,) or a matrix (n, n); I by default.
    """

    metric: Tensor | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            _check_metric(self.metric)

    def path(self, local: Local, gradient: Tensor) -> Path:
        if self.metric is not None and len(self.metric) != len(gradient):
            raise ValueError(f"metric must have one entry or row for each of {len(gradient)} variables, got shape "
                             f"{tuple(self.metric.shape)}")
        return _Regularized(local, gradient, self.metric)


def _check_metric(metric: Tensor) -> None:
    if metric.ndim not in (1, 2) or metric.shape[0] != metric.shape[-1]:
        raise ValueError(f"metric must be a diagonal (n,) or a matrix (n, n), got shape {tuple(metric.shape)}")
    positive = (metric > 0).all() if metric.ndim == 1 else torch.linalg.cholesky_ex(metric).info == 0
    if not bool(positive):
        raise ValueError("metric must be positive definite, and is not")


class _Regularized(Path):
    def __init__(self, local: Local, gradient: Tensor, metric: Tensor | None) -> None:
        super().__init__(local, gradient)
        self.metric = metric

    def __call__(self, t: float) -> Step | None:
        solution = self.local.solve(self.gradient, 1 / t, self.metric)
        return None if solution is None else Step(-solution, float(self.gradient @ solution) / 2, shift=1 / t)

    def dual_norm(self, v: Tensor) -> float:
        if self.metric is None:
            return super().dual_norm(v)
        solved = v / self.metric if self.metric.ndim == 1 else torch.linalg.solve(self.metric, v)
        return math.sqrt(float(v @ solved))


@dataclass(frozen=True)
class CubicNewton(Descent):
    """argmin_s ⟨g, s⟩ + ½⟨(H + δI)s, s⟩ + ‖s‖³ / 6t: any symmetric H; saddle points are left.

    Parameters
    ----------
    slack : float, default 0
        δ: a bound on the error of an inexact H.
    """

    slack: float = 0.0

    leaves_saddles: ClassVar[bool] = True

    def path(self, local: Local, gradient: Tensor) -> Path:
        return _Cubic(local, gradient, self.slack)


class _Cubic(Path):
    def __init__(self, local: Local, gradient: Tensor, slack: float) -> None:
        super().__init__(local, gradient)
        self.spectrum = local.spectrum(gradient)
        self.values = self.spectrum.values + slack
        self.coefficients = self.spectrum.coefficients(gradient)

    def __call__(self, t: float) -> Step | None:
        s, shift = secular_step(self.values, self.coefficients, lambda shift: 2 * t * shift)
        cubic = float(torch.linalg.vector_norm(s)) ** 3 / (6 * t)
        return Step(self.spectrum.vector(s), _decrease(self.values, self.coefficients, s) - cubic, shift)


@dataclass(frozen=True)
class TrustRegion(Descent):
    """argmin_s ⟨g, s⟩ + ½⟨Hs, s⟩ with ‖s‖ ≤ t, solved in an eigenbasis: any symmetric H; saddle points are left."""

    leaves_saddles: ClassVar[bool] = True

    def path(self, local: Local, gradient: Tensor) -> Path:
        return _Region(local, gradient)


class _Region(Path):
    def __init__(self, local: Local, gradient: Tensor) -> None:
        super().__init__(local, gradient)
        self.spectrum = local.spectrum(gradient)
        self.coefficients = self.spectrum.coefficients(gradient)

    def __call__(self, t: float) -> Step | None:
        s, shift = secular_step(self.spectrum.values, self.coefficients, lambda shift: t)
        bounded = float(torch.linalg.vector_norm(s)) >= t * (1 - 1e-8)
        return Step(self.spectrum.vector(s), _decrease(self.spectrum.values, self.coefficients, s), shift, bounded)


def _decrease(values: Tensor, coefficients: Tensor, s: Tensor) -> float:
    return -float(coefficients @ s + (values * s) @ s / 2)


@dataclass(frozen=True)
class TruncatedCG(Descent):
    """Conjugate gradients on ⟨g, s⟩ + ½⟨Hs, s⟩ from s = 0, ended at ‖s‖ = t, at negative curvature, or at ‖r‖ ≤ min(½, √‖g‖)‖g‖.

    Parameters
    ----------
    max_iterations : int, default 50
        Products with H a step.
    """

    max_iterations: int = 50

    def __post_init__(self) -> None:
        check_count("max_iterations", self.max_iterations, "50 is typical")

    def path(self, local: Local, gradient: Tensor) -> Path:
        return _Truncated(local, gradient, self.max_iterations)


class _Truncated(Path):
    def __init__(self, local: Local, gradient: Tensor, max_iterations: int) -> None:
        super().__init__(local, gradient)
        self.max_iterations = max_iterations

    def __call__(self, t: float) -> Step | None:
        norm = float(torch.linalg.vector_norm(self.gradient))
        if norm == 0:
            return Step(torch.zeros_like(self.gradient), 0.0)
        # In units of ‖g‖: squares of small gradients would underflow in single precision.
        g, t = self.gradient / norm, t / norm
        p, r, d = torch.zeros_like(g), g, -g
        tolerance, square = min(0.5, math.sqrt(norm)), 1.0
        for _ in range(self.max_iterations):
            Hd = self.local.matvec(d)
            curvature = float(d @ Hd)
            if curvature > 0:
                alpha = square / curvature
                ahead = p + alpha * d
                if float(torch.linalg.vector_norm(ahead)) < t:
                    p, r = ahead, r + alpha * Hd
                    previous, square = square, float(r @ r)
                    if math.sqrt(square) <= tolerance:
                        break
                    d = -r + (square / previous) * d
                    continue
            if math.isnan(curvature):
                return None
            tau = _to_boundary(p, d, t)
            return _scaled_step(g, p + tau * d, r + tau * Hd, norm, bounded=True)
        return _scaled_step(g, p, r, norm, bounded=False)


def _scaled_step(g: Tensor, p: Tensor, r: Tensor, norm: float, bounded: bool) -> Step:
    """With r = g + Hp the model has fallen by −⟨g + r, p⟩/2, in units of ‖g‖²."""
    return Step(norm * p, -float((g + r) @ p) / 2 * norm**2, bounded=bounded)


def _to_boundary(p: Tensor, d: Tensor, radius: float) -> float:
    """The τ > 0 with ‖p + τd‖ = radius."""
    p, d = p.double(), d.double()
    a, b, c = float(d @ d), float(p @ d), float(p @ p) - radius**2
    root = math.sqrt(max(0.0, b * b - a * c))
    return (root - b) / a if b <= 0 else -c / (b + root)
