"""AdaMomentum: the second moment of the average instead of the gradient, so that noise leaves the denominator.

    m ← β₁ m + (1 − β₁) g;   v ← β₂ v + (1 − β₂) m² + ε;   θ ← (1 − η λ) θ − η m̂ / √v̂

Wang, Kang, Qin, Wang, Xu, Zhang, Fu: Rethinking Adam: A Twofold Exponential Moving Average Approach, arXiv 2106.11514.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.averages import Averaged
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.scalings import RootOfGrowingSquares, momentum
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Add, DecoupledDecay


@register("adamomentum")
class AdaMomentum(Optimizer):
    """m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) m² + ε, with the new m, not debiased;  θ ← (1 − η λ) θ − η m̂ / √v̂.

    ε joins v at every step and nowhere else. The best learning rate is about a third of Adam's.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
        Positive: it alone keeps v from 0.
    weight_decay : float, default 0
    decoupled : bool, default True
        Decay the point, and not through the gradient.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}
    positive: ClassVar[Mapping[str, str]] = {"eps": "entries without gradient would be 0 / 0; 1e-8 is typical"}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, decoupled: bool = True, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        rule = Quotient(Averaged(), RootOfGrowingSquares(momentum))
        super().__init__(params, rule, defaults, move=DecoupledDecay() if decoupled else Add(), **options)
