"""Scores of a weighted graph on data: F(W) = loss(W) + λ‖W‖₁, less being better; those that estimate the noise as well.

    equal variances     √(d Σ_j q_j)  = min over σ of  Σ_j q_j / 2σ + dσ/2,       σ = √(Σq/d)
    unequal variances   Σ_j √q_j      = min over σ_j of  Σ_j (q_j / 2σ_j + σ_j / 2),   σ_j = √q_j
    q_j = [(I−W)ᵀC(I−W)]_jj, what W leaves of the variance of x_j;   C = XᵀX/n of centred columns;   gradient −C(I−W)/σ

These are CoLiDE's concomitant scores with σ at its best for W. σ is kept above σ₀ = 10⁻² √(tr C/d), below which they go on as
parabolas, so that nothing breaks where n < d makes q = 0.

Saboksayr, Mateos, Tepper: CoLiDE, ICLR 2024, arXiv 2310.02895.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOOR = 1e-2


@dataclass(frozen=True)
class Score:
    """What a weighted graph costs on data.

    Parameters
    ----------
    lam : float
        λ ≥ 0, the weight of ‖W‖₁.
    """

    lam: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"lam must be a finite number >= 0, got {self.lam!r}")

    def condense(self, X: Tensor) -> Any:
        """Return what the score looks at, of rows of data (n, d): here the covariance (d, d)."""
        centred = X - X.mean(0)
        return centred.T @ centred / len(X)

    def loss(self, data: Any, W: Tensor) -> Tensor:
        """Return the loss without the penalty, a 0-d tensor."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def gradient(self, data: Any, W: Tensor) -> Tensor:
        """Return the gradient of the loss, ``(d, d)``."""
        raise NotImplementedError(f"{type(self).__name__} must define gradient")

    def noise(self, data: Any, W: Tensor) -> Tensor | None:
        """Return the standard deviations of the residuals ``(d,)``, or None where the score has none."""
        return residuals(data, W)[1].clamp(min=0).sqrt()


def residuals(C: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Return −C(I − W), the gradient of ½ Σ q, and the residual variances q ``(d,)``."""
    gradient = torch.addmm(C, C, W, beta=-1)
    return gradient, (W * gradient).sum(0) - gradient.diagonal()


@dataclass(frozen=True)
class _Concomitant(Score):
    """A score whose data is the covariance and the bound σ₀."""

    lam: float = 0.05

    def condense(self, X: Tensor) -> tuple[Tensor, Tensor]:
        C = super().condense(X)
        return C, FLOOR * C.diagonal().mean().sqrt()

    def _sigma(self, q: Tensor, floor: Tensor) -> Tensor:
        return torch.maximum(q.clamp(min=0).sqrt(), floor)


@dataclass(frozen=True)
class EqualVarianceScore(_Concomitant):
    """√(d Σ_j q_j) + λ‖W‖₁: all nodes have noise of one variance, which need not be known."""

    def loss(self, data: tuple[Tensor, Tensor], W: Tensor) -> Tensor:
        q = residuals(data[0], W)[1].mean()
        sigma = self._sigma(q, data[1])
        return (q / sigma + sigma) * (len(W) / 2)

    def gradient(self, data: tuple[Tensor, Tensor], W: Tensor) -> Tensor:
        gradient, q = residuals(data[0], W)
        return gradient.div_(self._sigma(q.mean(), data[1]))

    def noise(self, data: tuple[Tensor, Tensor], W: Tensor) -> Tensor:
        return residuals(data[0], W)[1].mean().clamp(min=0).sqrt().expand(len(W))


@dataclass(frozen=True)
class UnequalVarianceScore(_Concomitant):
    """Σ_j √q_j + λ‖W‖₁: every node has noise of its own variance."""

    def loss(self, data: tuple[Tensor, Tensor], W: Tensor) -> Tensor:
        q = residuals(data[0], W)[1]
        sigma = self._sigma(q, data[1])
        return (q / sigma + sigma).sum() / 2

    def gradient(self, data: tuple[Tensor, Tensor], W: Tensor) -> Tensor:
        gradient, q = residuals(data[0], W)
        return gradient.div_(self._sigma(q, data[1]))

    def noise(self, data: tuple[Tensor, Tensor], W: Tensor) -> Tensor:
        return residuals(data[0], W)[1].clamp(min=0).sqrt()
