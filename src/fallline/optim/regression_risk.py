"""What stochastic gradient descent and its acceleration leave of the error in linear regression, direction by direction.

y = ⟨x, w*⟩ + noise of variance σ², Gaussian features with covariance H = diag(λ). One sample a step; the answer is the mean of w over
the last steps. With a = w − w*, b = v − w*, u = α a + (1 − α) b, exactly and for every eigenvector by itself but for one sum:

    a⁺ = u − δ (x xᵀ u − ξ x);   b⁺ = β u + (1 − β) b − γ (x xᵀ u − ξ x)
    E (x xᵀ u)² − (λ E u)² = λ² E u² + λ Σ_j λ_j E u_j²,   E (ξ x)² = σ² λ

so the second moments of (a, b), and with them those of sums of a, follow from a recursion of O(d) a step. Gradient descent is γ = δ.

Li, Deng, Wu, Zhou, Gu: Risk Bounds of Accelerated SGD for Overparameterized Linear Regression, arXiv 2311.14222.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

Spectrum = Tensor | Sequence[float]


class CoupledSteps(TypedDict):
    """Arguments of ``AcceleratedSGD``: δ, γ, β and α."""

    primal_step: float
    dual_step: float
    beta: float
    alpha: float


def asgd_parameters(spectrum: Spectrum, kappa: int, psi: float = 3.0) -> CoupledSteps:
    """δ = 1 / (2 ψ Σ λ), γ = 1 / (2 ψ Σ_{i>κ̃} λ_i), β = δ / (2 ψ κ̃ γ), α = 1 / (1 + β), as ``AcceleratedSGD(params, **…)`` takes them.

    Parameters
    ----------
    spectrum : tensor or sequence of float
        Eigenvalues of the features' covariance, in any order.
    kappa : int
        κ̃: the directions beyond the κ̃-th are accelerated.
    psi : float, default 3
        ψ of E x xᵀ A x xᵀ ≼ ψ tr(H A) H: 3 for Gaussian features. Heavier tails need more, or the run diverges.

    Raises
    ------
    ValueError
        If no eigenvalue that is not 0 lies beyond the κ̃-th, or ψ < 1.
    """
    values = _eigenvalues(spectrum).sort(descending=True).values
    rank = int((values > 0).sum())
    if isinstance(kappa, bool) or not isinstance(kappa, int) or not 1 <= kappa < rank:
        raise ValueError(f"kappa must be a whole number from 1 to {rank - 1} for {rank} eigenvalues above 0, got {kappa!r}: gamma is "
                         "made of the sum of those beyond it")
    if not 1 <= psi < math.inf:
        raise ValueError(f"psi must be a finite number >= 1, got {psi}; 3 is that of Gaussian features")
    delta, gamma = 1 / (2 * psi * float(values.sum())), 1 / (2 * psi * float(values[kappa:].sum()))
    beta = delta / (2 * psi * kappa * gamma)
    return {"primal_step": delta, "dual_step": gamma, "beta": beta, "alpha": 1 / (1 + beta)}


def _eigenvalues(spectrum: Spectrum) -> Tensor:
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    if values.ndim != 1 or not len(values) or not bool(((values >= 0) & values.isfinite()).all()) or not bool(values.any()):
        raise ValueError(f"spectrum must be a row of finite numbers >= 0, not all 0, got {spectrum!r}")
    return values


@dataclass(frozen=True)
class Risk:
    """Expected excess risk ½ λ_i E (w̄_i − w*_i)² along each eigenvector, from the start and from the noise; shapes ``(d,)``."""

    bias: Tensor
    variance: Tensor

    @property
    def total(self) -> float:
        """The sum of both over all directions."""
        return float((self.bias + self.variance).sum())


@dataclass(frozen=True)
class RiskReport:
    """Gradient descent against its acceleration on one regression."""

    spectrum: Tensor
    steps: int
    kappa: int
    parameters: CoupledSteps
    """What ``AcceleratedSGD`` takes."""
    sgd: Risk
    asgd: Risk

    @property
    def recommendation(self) -> str:
        """The registered name of the side with the smaller risk."""
        return "accelerated-sgd" if self.asgd.total < self.sgd.total else "sgd"

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row a direction."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error
        columns = {"eigenvalue": self.spectrum, "sgd bias": self.sgd.bias, "sgd variance": self.sgd.variance,
                   "asgd bias": self.asgd.bias, "asgd variance": self.asgd.variance}
        return pandas.DataFrame({name: column.tolist() for name, column in columns.items()})

    def plot(self) -> Any:
        """Return a plotly figure of bias and variance of both against the eigenvalue."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, risk in (("SGD", self.sgd), ("ASGD", self.asgd)):
            for part, values in (("bias", risk.bias), ("variance", risk.variance)):
                figure.add_scatter(x=self.spectrum.tolist(), y=values.tolist(), mode="lines", name=f"{name}, {part}")
        return figure.update_layout(template="simple_white", xaxis_title="eigenvalue", yaxis_title="excess risk",
                                    xaxis_type="log", yaxis_type="log")

    def __repr__(self) -> str:
        large = self.spectrum >= self.spectrum.sort(descending=True).values[self.kappa - 1]
        lines = [f"excess risk after {self.steps:,} steps: SGD {self.sgd.total:.3g}, ASGD {self.asgd.total:.3g} (kappa {self.kappa}); "
                 f"use {self.recommendation}"]
        for name, rows in ((f"{int(large.sum())} large eigenvalues", large), (f"{int((~large).sum())} small ones", ~large)):
            lines.append(f"  {name}: " + ", ".join(
                f"{side} bias {float(risk.bias[rows].sum()):.3g} variance {float(risk.variance[rows].sum()):.3g}"
                for side, risk in (("SGD", self.sgd), ("ASGD", self.asgd))))
        return "\n".join(lines)


def risk_report(spectrum: Spectrum, w0: Spectrum, sigma: float, n: int, *, kappa: int | None = None, psi: float = 3.0,
                tail: float = 0.5) -> RiskReport:
    """Compute both methods' expected excess risk with Gaussian features, from the recursion of the second moments.

    Parameters
    ----------
    spectrum : tensor or sequence of float, (d,)
        Eigenvalues λ of the features' covariance.
    w0 : tensor or sequence of float, (d,)
        The first error w₀ − w* along the eigenvectors, in the same order.
    sigma : float
        Standard deviation of the labels' noise.
    n : int
        Steps, one sample each.
    kappa : int, optional
        κ̃ of ``asgd_parameters``; by default the power of 2 with the least risk.
    psi : float, default 3
    tail : float, default 0.5
        The share of the steps, the last, over which w is averaged.

    Notes
    -----
    Both take δ of ``asgd_parameters``. O(n d) operations; nothing is sampled.
    """
    values = _eigenvalues(spectrum)
    start = torch.as_tensor(w0, dtype=torch.float64)
    if start.shape != values.shape:
        raise ValueError(f"w0 must have one entry for each of the {len(values)} eigenvalues, got shape {tuple(start.shape)}")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be a finite number >= 0, got {sigma}")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number >= 1, got {n!r}")
    if not 0 < tail <= 1:
        raise ValueError(f"tail must be in (0, 1], got {tail}; 0.5 is typical")
    rank = int((values > 0).sum())
    candidates = [kappa] if kappa is not None else [2**i for i in range(max(1, (rank - 1).bit_length())) if 2**i < rank]
    settings = [asgd_parameters(values, k, psi) for k in candidates]
    if not settings:
        raise ValueError(f"spectrum must have at least two eigenvalues above 0, got {rank}: there is no small one to accelerate")
    plain: CoupledSteps = {**settings[0], "dual_step": settings[0]["primal_step"]}
    average = max(1, round(tail * n))
    bias = _moments(values, start**2, 0.0, [plain, *settings], n, average)
    variance = _moments(values, torch.zeros_like(start), sigma**2, [plain, *settings], n, average)
    sgd, *accelerated = (Risk(b, v) for b, v in zip(values / 2 * bias, values / 2 * variance, strict=True))
    best = min(range(len(settings)), key=lambda i: accelerated[i].total)
    return RiskReport(values, n, candidates[best], settings[best], sgd, accelerated[best])


def _moments(spectrum: Tensor, squares: Tensor, noise: float, settings: Sequence[CoupledSteps], n: int, average: int) -> Tensor:
    """E (mean of a over the last ``average`` of ``n`` steps)², from E a² = ``squares`` at the start; a row a setting."""
    if noise == 0 and not bool(squares.any()):
        return torch.zeros(len(settings), len(spectrum), dtype=torch.float64)
    columns = [[s["primal_step"], s["dual_step"], s["beta"], s["alpha"]] for s in settings]
    delta, gamma, beta, alpha = torch.tensor(columns, dtype=torch.float64).T.unsqueeze(-1)
    to_a, to_b, keep = 1 - delta * spectrum, beta - gamma * spectrum, 1 - beta  # a⁺ = to_a u, b⁺ = to_b u + keep b, in the mean
    aa = ab = bb = squares.expand(len(settings), -1)
    total = total_a = total_b = torch.zeros_like(aa)  # moments of the sum S of a: E S², E S a, E S b
    for t in range(1, n + 1):
        ub = alpha * ab + (1 - alpha) * bb
        uu = alpha * (alpha * aa + (1 - alpha) * ab) + (1 - alpha) * ub
        spread = spectrum * (spectrum * uu + (spectrum * uu).sum(1, keepdim=True) + noise)
        aa = to_a**2 * uu + delta**2 * spread
        ab = to_a * (to_b * uu + keep * ub) + delta * gamma * spread
        bb = to_b * (to_b * uu + 2 * keep * ub) + keep**2 * bb + gamma**2 * spread
        if t > n - average:
            total_u = alpha * total_a + (1 - alpha) * total_b
            total_a, total_b = to_a * total_u, to_b * total_u + keep * total_b
            total, total_a, total_b = total + 2 * total_a + aa, total_a + aa, total_b + ab
    return total / average**2
