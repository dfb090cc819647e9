"""Gradients at points not yet evaluated, from those at points that were: kernel regression on a history of (θ, ∇f).

    K = k(θ_i, θ_j) + σ² I,      μ(θ) = k(θ, ·) K⁻¹ G

One scalar kernel of the distance r = ‖θ − θ'‖ / ℓ is shared by all coordinates of the gradient, with variance 1 and mean 0:

    Matérn-5/2:  (1 + √5 r + 5r²/3) e^{−√5 r},      squared exponential:  e^{−r²/2}

The length ℓ is a multiple of the median distance between the history's points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def matern52(r: Tensor) -> Tensor:
    """(1 + √5 r + 5r²/3) e^{−√5 r}."""
    return (1 + math.sqrt(5) * r + 5 * r**2 / 3) * torch.exp(-math.sqrt(5) * r)


def squared_exponential(r: Tensor) -> Tensor:
    """e^{−r²/2}."""
    return torch.exp(-(r**2) / 2)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"matern52": matern52, "rbf": squared_exponential}


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By differences: squares and products would cancel for points that are close to each other and far from 0.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class GradientPredictor:
    """Kernel regression of gradients on positions; ``predictor(position)`` is μ(θ).

    Parameters
    ----------
    positions : Tensor, shape (rows, p)
        Where gradients are known: all coordinates of the points, or those that distances are measured in.
    gradients : Tensor, shape (rows, d)
    kernel : {"matern52", "rbf"}, default "matern52"
    noise : float, default 1e-6
        σ², the variance of a gradient's noise over that of the gradients themselves.
    scale : float, default 3
        The length ℓ over the median distance. With a single point ℓ is infinite: its gradient, over 1 + σ², is predicted everywhere.

    Raises
    ------
    ValueError
        The matrix K is singular: two positions are the same and the noise is 0 (or lost in rounding).

    Notes
    -----
    The kernel's numbers are float64. A prediction costs O(rows · (p + d)), the constructor O(rows² · p + rows³).
    """

    def __init__(self, positions: Tensor, gradients: Tensor, kernel: str = "matern52", noise: float = 1e-6, scale: float = 3.0) -> None:
        check_kernel(kernel, noise)
        self.positions, self.gradients, self.kernel = positions.double(), gradients, KERNELS[kernel]
        distances = _distances(self.positions, self.positions)
        rows = len(positions)
        above = distances[tuple(torch.triu_indices(rows, rows, 1))]
        self.length = scale * float(above.median()) if rows > 1 else math.inf
        if self.length == 0:  # half of the pairs are duplicates
            self.length = scale * float(above.max()) or math.inf
        matrix = self.kernel(distances / self.length) + noise * torch.eye(rows, dtype=torch.float64, device=positions.device)
        self.factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            raise ValueError(f"noise={noise:g} leaves the kernel matrix of {rows} points singular: two of them are the same or too "
                             "close for the length; noise=1e-6 or larger regularises it")

    def __call__(self, position: Tensor) -> Tensor:
        """Return the predicted gradient, shape (d,), at ``position``, shape (p,)."""
        near = self.kernel(_distances(position[None].double(), self.positions) / self.length)
        weights = torch.cholesky_solve(near.T, self.factor)[:, 0]
        return weights.to(self.gradients.dtype) @ self.gradients


def check_kernel(kernel: str, noise: float) -> None:
    """Refuse an unknown kernel and a noise that is no variance."""
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise ValueError(f"kernel must be {' or '.join(map(repr, KERNELS))}, got {kernel!r}")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a number of at least 0, the variance σ² added to the kernel's diagonal, got {noise!r}")


def chosen_scale(positions: Tensor, gradients: Tensor, scales: Sequence[float], kernel: str = "matern52", noise: float = 1e-6) -> float:
    """Return the scale that predicts the newest fifth of the history best from the rest, by squared error.

    The newest, because a chain of predictions goes on from there. Needs five rows, the oldest first.
    """
    rows = len(positions)
    if rows < 5:
        raise ValueError(f"positions must have at least 5 rows, a fifth of which is held out, got {rows}")
    kept = rows - rows // 5
    errors = []
    for scale in scales:
        predictor = GradientPredictor(positions[:kept], gradients[:kept], kernel, noise, scale)
        predicted = torch.stack([predictor(position) for position in positions[kept:]])
        errors.append(float((predicted - gradients[kept:]).double().square().sum()))
    return scales[min(range(len(scales)), key=lambda i: errors[i] if math.isfinite(errors[i]) else math.inf)]
