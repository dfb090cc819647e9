"""A spectrum, and what it looks like: a bulk near zero, a few outliers, some negative mass.

    bulk = {i : |λ_i| < 0.01 λ_max},      negative mass = Σ_{λ<0} |λ| / Σ |λ|

Sagun, Evci, Güney, Dauphin, Bottou: Empirical Analysis of the Hessian of Over-Parametrized Neural Networks,
ICLR workshop 2018, arXiv 1706.04454.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.operators import SpectralDensity

BULK = 0.01


@dataclass(frozen=True, repr=False)
class Spectrum:
    """Eigenvalues of a symmetric matrix.

    Attributes
    ----------
    eigenvalues : Tensor, shape (m,)
        Descending: all ``size`` of them if ``complete``, else those at the ends that were asked for.
    size : int
        Number of parameters.
    complete, converged : bool
        Whether all eigenvalues are there; whether Lanczos reached its tolerance (true of a dense decomposition).
    density : SpectralDensity or None
        The distribution of eigenvalues; exact, with ``samples = 0``, if ``complete``.
    matrix : str
        "Hessian" or "Gauss-Newton".
    """

    eigenvalues: Tensor
    size: int
    complete: bool
    converged: bool
    density: SpectralDensity | None
    matrix: str

    def plot(self) -> Any:
        """Return a plotly figure, logarithmic: the density if there is one, else |λ| against rank by sign."""
        import plotly.graph_objects as go

        figure = go.Figure()
        if self.density is not None:
            low, high = float(self.density.nodes[0]), float(self.density.nodes[-1])
            margin = 0.05 * (high - low) or 1.0
            grid = torch.linspace(low - margin, high + margin, 500, dtype=torch.float64)
            heights = self.density.density(grid.to(self.density.nodes), margin / 5).clamp(min=1e-8)
            figure.add_scatter(x=grid.tolist(), y=heights.tolist(), mode="lines", name=self.matrix)
            titles = {"xaxis_title": "eigenvalue", "yaxis_title": "density"}
        else:
            ranked = list(enumerate(self.eigenvalues.tolist(), 1))
            for name, sign in (("positive", 1), ("negative", -1)):
                signed = [(rank, sign * value) for rank, value in ranked if sign * value > 0]
                figure.add_scatter(x=[r for r, _ in signed], y=[v for _, v in signed], mode="markers", name=name)
            titles = {"xaxis_title": "rank", "yaxis_title": "|eigenvalue|"}
        return figure.update_layout(template="simple_white", title=f"{self.matrix}, {self.size:,} parameters",
                                    yaxis_type="log", **titles)

    def __repr__(self) -> str:
        kept = "all" if self.complete else f"{len(self.eigenvalues)} at the ends"
        status = "" if self.converged else ", not converged"
        high, low = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        return f"Spectrum({self.matrix}, {self.size:,} parameters: {kept}, {low:.4g} to {high:.4g}{status})"


@dataclass(frozen=True)
class SpectrumSummary:
    """What a spectrum looks like.

    Attributes
    ----------
    largest : float
        λ_max.
    bulk_fraction : float
        Share of eigenvalues with |λ| < 0.01 λ_max.
    outliers : int
        How many are not in the bulk.
    negative_mass : float
        Σ_{λ<0} |λ| / Σ |λ|.
    gauss_newton_difference : float or None
        max |λ_i − γ_i| / |λ_i| over the largest k eigenvalues λ of the Hessian and γ of Gauss-Newton, if that was given.
    """

    largest: float
    bulk_fraction: float
    outliers: int
    negative_mass: float
    gauss_newton_difference: float | None


def spectrum_summary(spectrum: Spectrum, gauss_newton: Spectrum | None = None, *, k: int = 10) -> SpectrumSummary:
    """Summarise a spectrum, and compare its top with that of Gauss-Newton.

    Parameters
    ----------
    spectrum : Spectrum
        Complete, or with a density, from which bulk, outliers and negative mass are then estimated.
    gauss_newton : Spectrum, optional
        Of the same problem and point.
    k : int, default 10
        How many of the largest eigenvalues are compared.
    """
    if not spectrum.complete and spectrum.density is None:
        raise ValueError("spectrum must hold all eigenvalues or a density, got only its ends; use density=True")
    if spectrum.complete:
        values = spectrum.eigenvalues.double()
        weights = torch.full_like(values, 1 / spectrum.size)
    else:
        assert spectrum.density is not None
        values, weights = spectrum.density.nodes.double(), spectrum.density.weights.double()
    largest = float(spectrum.eigenvalues[0])
    bulk = float(weights[values.abs() < BULK * largest].sum())
    mass = weights * values.abs()
    negative = float(mass[values < 0].sum() / mass.sum()) if mass.any() else 0.0
    difference = None if gauss_newton is None else _difference(spectrum, gauss_newton, k)
    return SpectrumSummary(largest, bulk, round(spectrum.size * (1 - bulk)), negative, difference)


def _difference(spectrum: Spectrum, gauss_newton: Spectrum, k: int) -> float:
    for side in (spectrum, gauss_newton):
        available = len(side.eigenvalues) if side.complete else len(side.eigenvalues) // 2
        if not 1 <= k <= available:
            raise ValueError(f"k must be between 1 and the {available} largest eigenvalues of {side!r}, got {k}")
    if spectrum.size != gauss_newton.size:
        raise ValueError(f"gauss_newton must be of the same problem, got {gauss_newton!r} against {spectrum!r}")
    ours, theirs = spectrum.eigenvalues[:k], gauss_newton.eigenvalues[:k]
    return float(((ours - theirs).abs() / ours.abs()).max())
