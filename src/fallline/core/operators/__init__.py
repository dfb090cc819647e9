"""Linear operators known by their products with vectors, and what can be computed from products alone.

Linear systems (``conjugate_gradient``, ``minres``, the stochastic ``OUSolver``), eigenvalues (``lanczos``, ``power_iteration``,
``top_eigenvalues``) and stochastic estimates (``hutchinson_trace``, ``hutchinson_diagonal``, ``spectral_density``).
"""

from __future__ import annotations

from fallline.core.operators.estimates import (
    Estimate,
    SpectralDensity,
    hutchinson_diagonal,
    hutchinson_trace,
    spectral_density,
)
from fallline.core.operators.linear import Counter, LinearOperator
from fallline.core.operators.linear_systems import Solution, conjugate_gradient, minres
from fallline.core.operators.ornstein_uhlenbeck import OUSolution, OUSolver
from fallline.core.operators.spectra import (
    Eigenpair,
    Eigenpairs,
    Tridiagonalization,
    lanczos,
    power_iteration,
    top_eigenvalues,
)

__all__ = [
    "Counter",
    "Eigenpair",
    "Eigenpairs",
    "Estimate",
    "LinearOperator",
    "OUSolution",
    "OUSolver",
    "Solution",
    "SpectralDensity",
    "Tridiagonalization",
    "conjugate_gradient",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "lanczos",
    "minres",
    "power_iteration",
    "spectral_density",
    "top_eigenvalues",
]
