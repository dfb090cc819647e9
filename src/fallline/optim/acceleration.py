"""Whether acceleration can pay for stochastic gradients: the growth of their noise against the condition number.

Strong growth:  E‖∇f(w, z)‖² ≤ ρ ‖∇f(w)‖².  Then the error of the loss falls in a step by a factor of at most

    1 − μ / (ρ L)        gradient descent at 1 / (ρ L)
    1 − √(μ / L) / ρ     ``StochasticAGD``, conservative

With gradients g_1, …, g_n of independent samples at w, both sides of the definition are estimated without bias:

    E‖∇f(w, z)‖² ≈ s = Σ ‖g_i‖² / n,    ‖∇f(w)‖² ≈ (n ‖ḡ‖² − s) / (n − 1)

Mishkin, Pilanci, Schmidt: Faster Convergence of Stochastic Accelerated Gradient Descent under Interpolation, arXiv 2404.02378.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fallline.core import tree
from fallline.core.keys import Key, as_key
from fallline.core.operators import top_eigenvalues
from fallline.core.problem import Problem
from fallline.core.tree import Tree

WORTHWHILE = 2.0
"""Below this ratio of predicted iterations the bounds do not tell the methods apart."""


@dataclass(frozen=True)
class Growth:
    """ρ, L and μ as seen at some points."""

    rho: float
    """The largest ratio; infinite where the noise hides the gradient."""
    L: float
    mu: float
    """Negative where the loss is not convex."""
    ratios: tuple[float, ...]
    """E‖∇f(w, z)‖² / ‖∇f(w)‖² at each point. Where no model fits every sample they grow without bound towards the minimum."""

    def __repr__(self) -> str:
        at = ", ".join(f"{ratio:.4g}" for ratio in self.ratios)
        return f"Growth(rho={self.rho:.4g}, L={self.L:.4g}, mu={self.mu:.4g}; ratios at the points: {at})"


def estimate_growth(problem: Problem, points: Sequence[Tree], size: int = 1024, key: Key | int = 0) -> Growth:
    """Estimate ρ from per-sample gradients, and L and μ from Hessian-vector products, at some points.

    Parameters
    ----------
    problem : Problem
        With random data and per-sample gradients: ``FiniteSum``, ``Training``.
    points : sequence of points
        Where to look: ρ is a bound over all points, so this is an estimate from below. Take some far from the solution and some near.
    size : int, default 1024
        Samples drawn at each point.
    key : Key or int, default 0

    Returns
    -------
    Growth
        L and μ are extreme eigenvalues of the problem's Hessian over the points, or its facts ``L`` and ``mu`` where it states both.

    Notes
    -----
    Both sides of the ratio are unbiased for the law that ``problem.draw`` draws from, their quotient in the limit of many samples only.
    For a finite sum that law is the data: with n of them, ρ of the population they were drawn from is larger, by a factor of about
    1 + ρ / n. The plain quotient of a batch of n, s / ‖ḡ‖², would be too small in the same way.
    """
    problem.require("per_sample_gradients", by="estimate_growth")
    if isinstance(points, Tensor) or not points:
        raise ValueError("points must be a sequence of at least one point, such as [problem.x0], got "
                         f"{'a tensor' if isinstance(points, Tensor) else 'none'}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise ValueError(f"size must be a whole number >= 2, got {size!r}; 1024 is typical")
    key = as_key(key)
    ratios = tuple(_ratio(problem.draw(key.fold("samples", i), size), x, size) for i, x in enumerate(points))
    if "L" in problem.facts and "mu" in problem.facts:
        return Growth(max(ratios), float(problem.facts["L"]), float(problem.facts["mu"]), ratios)
    problem.require("hvp", by="estimate_growth")
    ends = [_extremes(problem, x, key.fold("curvature", i)) for i, x in enumerate(points)]
    return Growth(max(ratios), max(high for high, _ in ends), min(low for _, low in ends), ratios)


def _ratio(realisation: Problem, x: Tree, size: int) -> float:
    gradients = [g.reshape(size, -1).double() for g in tree.leaves(realisation.per_sample_gradients(x))]
    squares = sum(float(g.square().sum()) for g in gradients) / size
    mean = sum(float(g.mean(0).square().sum()) for g in gradients)
    signal = (size * mean - squares) / (size - 1)
    return squares / signal if signal > 0 else math.inf


def _extremes(problem: Problem, x: Tree, key: Key) -> tuple[float, float]:
    """The largest and the smallest eigenvalue of the Hessian."""
    operator = problem.hessian_operator(x)

    def end(which: str) -> Tensor:
        generator = key.fold(which).generator()
        return top_eigenvalues(operator, which=which, tol=1e-4, generator=generator).values  # type: ignore[arg-type]

    return float(end("largest")), float(end("smallest"))


@dataclass(frozen=True)
class AccelerationAdvice:
    """What the bounds say of acceleration."""

    method: str
    """The registered name: "stochastic-agd" or "sgd"."""
    speedup: float
    """Iterations that the bounds predict for gradient descent over those of the conservative method; 1 where they say nothing."""
    reason: str

    def __str__(self) -> str:
        return f"{self.method}: {self.reason}"

    __repr__ = __str__


def acceleration_advice(rho: float, L: float, mu: float) -> AccelerationAdvice:
    """Say whether acceleration can pay, from ρ, L and μ.

    Iterations are predicted as ρ L / μ for gradient descent and ρ √(L / μ) for the conservative method: their ratio is √(L / μ) for
    every ρ. The rate of the paper's abstract, √(ρ L / μ), is not used: it fails where L ≈ μ and ρ is the dimension.

    Parameters
    ----------
    rho : float
        ρ ≥ 1; infinite where the noise does not vanish with the gradient.
    L, mu : float
        Smoothness and strong convexity, of the expected loss.

    Raises
    ------
    ValueError
        If ρ < 1, L ≤ 0, or μ > L.
    """
    if not rho >= 1:
        raise ValueError(f"rho must be at least 1, got {rho}: noise does not make gradients shorter; see estimate_growth")
    if not 0 < L < math.inf:
        raise ValueError(f"L must be a finite number > 0, got {L}")
    if not mu <= L:
        raise ValueError(f"mu must be at most L, got mu={mu} and L={L}")
    if math.isinf(rho):
        return AccelerationAdvice("sgd", 1.0, "the noise does not vanish with the gradient, so there is no strong growth: acceleration "
                                  "amplifies what is left of it; average the iterates or let the learning rate fall")
    if mu <= 0:
        return AccelerationAdvice("stochastic-agd", 1.0, "without strong convexity the bounds are ρL/k against ρ²L/k²: acceleration "
                                  f"leads after about ρ = {rho:.3g} steps, if the loss is convex")
    speedup = math.sqrt(L / mu)
    counts = f"about {rho * L / mu:.3g} steps a factor e for gradient descent, {rho * speedup:.3g} for StochasticAGD"
    if speedup < WORTHWHILE:
        return AccelerationAdvice("sgd", speedup, f"the condition number {L / mu:.3g} is too small for acceleration to pay: {counts}; "
                                  "what slows the run is ρ, which larger batches lower")
    return AccelerationAdvice("stochastic-agd", speedup, f"{counts}, as long as the model fits every sample")
