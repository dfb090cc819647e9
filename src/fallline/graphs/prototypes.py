"""What a cluster is measured against: a mean, or a mode, for which far points do not count.

    mean   d = ‖x − m‖²,                    m ← Σ s x / Σ s
    mode   d = −exp(−‖x − m‖²/2σ²) = −g,    m ← Σ s g x / Σ s g, a few times (mean shift)

Neither step raises Σ_p s_p d(x_p, m).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fallline.core.checks import check_count


@dataclass(frozen=True)
class MeanPrototype:
    """d = ‖x − m‖², for which the weighted mean is best."""

    def distances(self, X: Tensor, prototypes: Tensor) -> Tensor:
        """Return d of every point to every prototype, ``(n, k)``."""
        return squared_distances(X, prototypes)

    def update(self, X: Tensor, S: Tensor, prototypes: Tensor) -> Tensor:
        """Return better prototypes for assignments ``(n, k)``; one without any weight stays where it is."""
        return _weighted_means(X, S, prototypes)


@dataclass(frozen=True)
class ModePrototype:
    """d = −exp(−‖x − m‖²/2σ²), for which the weighted mode is best: it looks at points within a few σ.

    Parameters
    ----------
    sigma : float, default 1
    steps : int, default 5
        Of mean shift, m ← Σ s g x / Σ s g with g = exp(−‖x − m‖²/2σ²).
    """

    sigma: float = 1.0
    steps: int = 5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be a positive number, got {self.sigma!r}")
        check_count("steps", self.steps, "5 is the default")

    def distances(self, X: Tensor, prototypes: Tensor) -> Tensor:
        """Return d of every point to every prototype, ``(n, k)``."""
        return squared_distances(X, prototypes).div_(-2 * self.sigma**2).exp_().neg_()

    def update(self, X: Tensor, S: Tensor, prototypes: Tensor) -> Tensor:
        """Return better prototypes for assignments ``(n, k)``; one without any weight stays where it is."""
        for _ in range(self.steps):
            prototypes = _weighted_means(X, self.distances(X, prototypes).mul_(S).neg_(), prototypes)
        return prototypes


PROTOTYPES: dict[str, MeanPrototype | ModePrototype] = {"mean": MeanPrototype(), "mode": ModePrototype()}


def squared_distances(X: Tensor, prototypes: Tensor) -> Tensor:
    """Return ‖x_p − m_k‖², ``(n, k)``."""
    # Not by ‖x‖² − 2⟨x, m⟩ + ‖m‖², which loses the digits of points far from 0.
    return torch.cdist(X, prototypes, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _weighted_means(X: Tensor, weights: Tensor, otherwise: Tensor) -> Tensor:
    totals = weights.sum(0)[:, None]
    empty = totals <= torch.finfo(X.dtype).tiny
    return torch.where(empty, otherwise, weights.T @ X / torch.where(empty, 1, totals))
