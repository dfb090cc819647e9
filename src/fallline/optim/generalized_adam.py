"""RMSProp and Adam with hyperparameters that follow from the horizon, as their convergence under generalised smoothness asks.

    v ← β₂ v + (1 − β₂) g²;   x ← x − η m / √(v + ζ);   η = c / √T,  β₂ = 1 − 1 / T

with m the average of gradients (Adam) or g itself (RMSProp); nothing is debiased, and ζ is inside the root.

Zhang, Zhou, Zou: Convergence Guarantees for RMSProp and Adam in Generalized-smooth Non-convex Optimization with Affine Noise Variance,
arXiv 2404.01436.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.averages import Numerator, Undebiased
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.scalings import Squares
from fallline.optim.engine.hyperparameters import check, check_positive
from fallline.optim.engine.optimizer import EngineOptions, Optimizer


def _from_horizon(horizon: int, c: float, zeta: float) -> dict[str, float]:
    """η = c / √T and β₂ = 1 − 1 / T."""
    check("horizon", horizon)
    check_positive("c", c, "1 is typical; it is what to tune")
    check_positive("zeta", zeta, "it alone keeps the root from 0; 0.01 is typical")
    return {"lr": c / math.sqrt(horizon), "rho": 1 - 1 / horizon, "eps": zeta}


@register("adam-gs")
class AdamGS(Optimizer):
    """m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  x ← x − η m / √(v + ζ), with η = c / √T and β₂ = 1 − 1 / T.

    For |∂ᵢf(x) − ∂ᵢf(y)| ≤ (L₀ + L₁ |∂ᵢf(x)|) ‖x − y‖ and E|gᵢ|² ≤ D₀ + D₁ (∂ᵢf)², the mean of E‖∇f‖ falls below ε in O(ε⁻⁴) steps;
    ``fit_generalized_smoothness`` estimates the four numbers. The paper fixes how η and β₂ scale with T and leaves c to be tuned.

    Parameters
    ----------
    params : iterable of Tensor or dict
    horizon : int, default 1000
        T, the number of steps that will be taken.
    c : float, default 1
    beta1 : float, default 0.9
    zeta : float, default 1e-2
        ζ, inside the root.
    v0 : float, default 0
        Where v starts.
    weight_decay : float, default 0
        Added to the gradient; the paper has none.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine. A parameter group may override ``lr``, ``betas`` (one
        number), ``rho`` (β₂) and ``eps`` (ζ).
    """

    space: ClassVar[Mapping[str, Range]] = {"c": LogUniform(1e-2, 1e2)}
    positive: ClassVar[Mapping[str, str]] = {"eps": "it is ζ, which alone keeps the root from 0; 0.01 is typical"}

    def __init__(self, params: Any, horizon: int = 1000, c: float = 1.0, beta1: float = 0.9, zeta: float = 1e-2, v0: float = 0.0,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        check("beta1", beta1)
        defaults = {**_from_horizon(horizon, c, zeta), "betas": (beta1,), "weight_decay": weight_decay}
        super().__init__(params, Quotient(Undebiased(), Squares(v0)), defaults, **options)


@register("rmsprop-gs")
class RMSPropGS(Optimizer):
    """v ← β₂ v + (1 − β₂) g²;  x ← x − η g / √(v + ζ), with η = c / √T and β₂ = 1 − 1 / T. Parameters as in ``AdamGS``, without β₁."""

    space: ClassVar[Mapping[str, Range]] = {"c": LogUniform(1e-2, 1e2)}
    positive: ClassVar[Mapping[str, str]] = {"eps": "it is ζ, which alone keeps the root from 0; 0.01 is typical"}

    def __init__(self, params: Any, horizon: int = 1000, c: float = 1.0, zeta: float = 1e-2, v0: float = 0.0,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, Quotient(Numerator(), Squares(v0)), {**_from_horizon(horizon, c, zeta), "weight_decay": weight_decay},
                         **options)
