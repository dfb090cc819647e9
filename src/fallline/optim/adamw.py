"""AdamW: Adam with decoupled weight decay.

    θ ← (1 − η λ) θ − η m̂ / (√v̂ + ε)

Loshchilov, Hutter: Decoupled weight decay regularization, arXiv 1711.05101.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.quotient import Quotient
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay


@register("adamw")
class AdamW(Optimizer):
    """θ ← (1 − η λ) θ − η m̂ / (√v̂ + ε), with m̂ and v̂ the debiased averages of g and g².

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.001
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0.01
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1), "weight_decay": LogUniform(1e-4, 1.0)}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, Quotient(), defaults, move=DecoupledDecay(), **options)
