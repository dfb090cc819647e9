"""Lion: the sign of an interpolated momentum.

    c = β₁ m + (1 − β₁) g;   θ ← θ − η (sign(c) + λ θ);   m ← β₂ m + (1 − β₂) g

Chen et al.: Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.warning import warn
from fallline.optim.directions.signed import MappedMomentum
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay


@register("lion")
class Lion(Optimizer):
    """θ ← (1 − η λ) θ − η sign(β₁ m + (1 − β₁) g);  m ← β₂ m + (1 − β₂) g.

    One state tensor; no debiasing, no ε. The decay acts on θ before the step.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-4
        3 to 10 times smaller than AdamW's; above 3e-3 without decay a warning says so.
    betas : pair of float, default (0.9, 0.99)
        (0.95, 0.98) for language models.
    weight_decay : float, default 0
        3 to 10 times larger than AdamW's, so that η λ stays the same.
    momentum_dtype : torch.dtype, optional
        Precision of m; by default the parameter's, or float32 if that is half precision. ``torch.bfloat16`` halves the state, and
        a constant gradient of 1 then takes m to about 0.8 only: the last steps of its approach are below bfloat16's rounding.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-2), "weight_decay": LogUniform(1e-4, 10.0)}

    def __init__(self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
                 momentum_dtype: torch.dtype | None = None, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, MappedMomentum(momentum_dtype), defaults, move=DecoupledDecay(), **options)
        large = max((float(group["lr"]) for group in self.param_groups if float(group["weight_decay"]) == 0), default=0.0)
        if large > 3e-3:
            warn(f"lr={large:g} is large for Lion without weight decay: every weight moves by lr at every step; 3e-5 to 1e-3 is "
                 "typical")


def lion_from_adamw(lr: float, weight_decay: float) -> tuple[float, float]:
    """Return Lion's ``(lr / 5, weight_decay · 5)`` from a tuned AdamW setting: η λ is kept."""
    return lr / 5, weight_decay * 5
