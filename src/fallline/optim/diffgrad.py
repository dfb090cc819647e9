"""diffGrad: Adam with friction where the gradient hardly changes.

    ξ = 1 / (1 + exp(−|g_{t−1} − g_t|)),  g₀ = 0;   θ ← θ − η ξ ∘ m̂ / (√v̂ + ε)

with Adam's m̂ and v̂. Dubey, Chakraborty, Roy, Mukherjee, Singh, Chaudhuri: diffGrad, IEEE TNNLS 2020, arXiv 1909.11015.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.modified import Friction
from fallline.optim.directions.quotient import Quotient
from fallline.optim.engine.optimizer import EngineOptions, Optimizer


@register("diffgrad")
class DiffGrad(Optimizer):
    """θ ← θ − η ξ ∘ m̂ / (√v̂ + ε),  ξ = 1 / (1 + exp(−|g_{t−1} − g_t|)) ∈ [½, 1),  g₀ = 0.

    ξ depends on the scale of the loss. Three state tensors. The paper's theory lets β₁ decay; here, as in its experiments, it does not.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
        Added to the gradient as ``weight_decay · θ``.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, Friction(Quotient()), defaults, **options)
