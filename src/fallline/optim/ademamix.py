"""AdEMAMix: Adam's numerator mixed with an average that forgets slowly.

    m₁ ← β₁ m₁ + (1 − β₁) g;   m₂ ← β₃(t) m₂ + (1 − β₃(t)) g;   θ ← θ − η [(m̂₁ + α(t) m₂) / (√v̂ + ε) + λ θ]

Pagliardini, Ablin, Grangier: The AdEMAMix Optimizer: Better, Faster, Older, arXiv 2409.03137.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range, Uniform
from fallline.core.warning import warn
from fallline.optim.directions.averages import Averaged, Numerator, WithSlowAverage, half_life
from fallline.optim.directions.quotient import Quotient
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay, Direction


@register("ademamix")
class AdEMAMix(Optimizer):
    """θ ← θ − η [(m̂₁ + α(t) m₂) / (√v̂ + ε) + λ θ], with Adam's m̂₁ and v̂ and a slow average m₂, which is not debiased.

    α(t) = α μ and β₃(t) = min(β₃, exp(ln β₁ ln β₃ / ((1 − μ) ln β₃ + μ ln β₁))) with μ = min(1, t / warmup_steps): without these
    warm-ups it diverges. Three state tensors; two with β₁ = 0, where the gradient itself takes the place of m̂₁.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    betas : triple of float, default (0.9, 0.999, 0.9999)
        β₃'s half-life, ln ½ / ln β₃ steps, must fit inside the run: 6,931 steps for 0.9999, 693 for 0.999.
    alpha : float, default 8
        4 to 10.
    warmup_steps : int, optional
        All steps of the run, normally; β₃'s half-life by default. A warning says when the half-life is above half of it.
    eps : float, default 1e-8
    weight_decay : float, default 0
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1), "alpha": Uniform(2.0, 10.0)}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), alpha: float = 8.0,
                 warmup_steps: int | None = None, eps: float = 1e-8, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "alpha": alpha, "warmup_steps": warmup_steps, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, Quotient(WithSlowAverage(Averaged())), defaults, move=DecoupledDecay(), **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        steps, beta3 = group["warmup_steps"], group["betas"][2]
        if steps is not None and half_life(beta3) > steps / 2:
            warn(f"betas[2]={beta3:g} forgets half in {half_life(beta3):.0f} steps, more than half of warmup_steps={steps}, and in a "
                 "run of that length it does harm")

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return self.direction if group["betas"][0] > 0 else Quotient(WithSlowAverage(Numerator()))
