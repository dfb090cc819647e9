"""How smooth an objective is where its gradient is large, and how noisy: the four constants of generalised smoothness.

    ℓ_i(x) = ‖∇²_i: f(x)‖ ≈ L₀ + L₁ |∂_i f(x)|,      E g_i(x)² ≈ D₀ + D₁ (∂_i f(x))²

for the gradient g of one sample. Both are fitted over all coordinates and points with numbers that are not negative. ℓ_i is what the
coordinate-wise assumption |∂_i f(x) − ∂_i f(y)| ≤ (L₀ + L₁ |∂_i f(x)|) ‖x − y‖ asks of y near x, and is estimated by
ℓ_i² = E (∇²f(x) u)_i² over random signs u.

Zhang, Zhou, Zou: Convergence Guarantees for RMSProp and Adam in Generalized-smooth Non-convex Optimization with Affine Noise Variance,
arXiv 2404.01436.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import nnls
from torch import Tensor

from fallline.core import tree
from fallline.core.keys import Key, as_key
from fallline.core.problem import Problem
from fallline.core.tree import Tree

FLOOR = 1e-6  # of the mean, below which sizes are taken as equal


class GeneralizedSmoothness(NamedTuple):
    """ℓ_i ≈ L₀ + L₁ |∂_i f| and E g_i² ≈ D₀ + D₁ (∂_i f)²."""

    L0: float
    """Curvature where the gradient vanishes."""
    L1: float
    """How much curvature grows with the gradient; 0 where f is smooth in the usual sense."""
    D0: float
    """Second moment of one sample's gradient where the gradient vanishes."""
    D1: float
    """1 without noise; the excess is noise that grows with the gradient. Batches of B leave D₀ / B and 1 + (D₁ − 1) / B."""

    def __repr__(self) -> str:
        return (f"GeneralizedSmoothness(curvature ≈ {self.L0:.3g} + {self.L1:.3g} |∂f|, "
                f"second moment ≈ {self.D0:.3g} + {self.D1:.3g} (∂f)²)")


def fit_generalized_smoothness(problem: Problem, points: Sequence[Tree], *, probes: int = 8, samples: int = 256,
                               key: Key | int = 0) -> GeneralizedSmoothness:
    """Fit ℓ_i(x) ≈ L₀ + L₁ |∂_i f(x)| and E g_i(x)² ≈ D₀ + D₁ (∂_i f(x))² over points of a trajectory.

    These are fits by weighted least squares, not bounds, and coordinates of unequal curvature share L₀ and L₁. Each point costs a
    gradient and ``probes`` Hessian-vector products on all data, and per-sample gradients of ``samples`` data points.

    Parameters
    ----------
    problem : Problem
        ``Training``, ``FiniteSum``, or anything with ``gradient`` and ``hvp``. One without per-sample gradients has exact ones: D₀ is 0
        and D₁ is 1.
    points : sequence of trees
        Shaped as ``problem.x0``; collect them in a callback of ``solve``. Gradients should differ in size among them.
    probes : int, default 8
        Sign vectors for ℓ; one is exact where coordinates are separate.
    samples : int, default 256
        Data points drawn, with replacement, for the second moments at each point.
    key : Key or int, default 0
        Of signs and draws.

    Raises
    ------
    ValueError
        There is no point, one has another shape, a number is not positive, or derivatives are not finite.
    MissingOracle
        The problem has no gradient or no Hessian-vector product.
    """
    for name, number in (("probes", probes), ("samples", samples)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    if not isinstance(points, Sequence) or not points:
        raise ValueError(f"points must be a list of one or more points of a trajectory, got {points!r}; collect them in a callback")
    problem.require("gradient", "hvp", by="fit_generalized_smoothness")
    slopes, curvatures, moments = [], [], []
    for i, point in enumerate(points):
        x = tree.aligned(point, problem.x0, f"points[{i}]")
        slopes.append(tree.flatten(problem.gradient(x)).double())
        curvatures.append(_row_norms(problem, x, probes, as_key(key).fold(i, "probes")))
        moments.append(_second_moment(problem, x, samples, as_key(key).fold(i, "samples")))
    size = torch.cat(slopes).abs()
    exact = moments[0] is None
    D0, D1 = (0.0, 1.0) if exact else _line(size**2, torch.cat([m for m in moments if m is not None]))
    return GeneralizedSmoothness(*_line(size, torch.cat(curvatures)), D0, D1)


def _row_norms(problem: Problem, x: Tree, probes: int, key: Key) -> Tensor:
    """Estimates of ‖∇²_i: f(x)‖, flat."""
    generator = key.generator()
    squares = []
    for _ in range(probes):
        signs = tree.map(lambda leaf: (2.0 * torch.randint(2, leaf.shape, generator=generator) - 1).to(leaf), x)
        squares.append(tree.flatten(problem.hvp(x, signs)).double() ** 2)
    return torch.stack(squares).mean(0).sqrt()


def _second_moment(problem: Problem, x: Tree, samples: int, key: Key) -> Tensor | None:
    """The mean of g_i² over data points drawn, flat; None for a problem without any."""
    if not problem.has("per_sample_gradients"):
        return None
    gradients = problem.draw(key, size=samples).per_sample_gradients(x)
    return tree.flatten(tree.map(lambda each: each.double().square().mean(0), gradients))


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The intercept and slope, neither negative, of least squares weighted by a first fit, for large estimates spread more.

    Coordinates of which nothing is seen at a point (x = y = 0) are left out.
    """
    if not bool(x.isfinite().all() & y.isfinite().all()):
        raise ValueError("points must be where gradients and curvature are finite, and are not; leave out those after a divergence")
    seen = (x > 0) | (y > 0)
    if not bool((y > 0).any()):
        return 0.0, 0.0
    rows, y = torch.stack([torch.ones_like(x), x], 1)[seen].cpu(), y[seen].cpu()
    first, _ = nnls(rows.numpy(), y.numpy())
    size = rows @ torch.from_numpy(first) + FLOOR * y.mean()
    (intercept, slope), _ = nnls((rows / size[:, None]).numpy(), (y / size).numpy())
    return float(intercept), float(slope)
