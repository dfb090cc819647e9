"""AdaGrad-Norm: one step size for all variables, from the sum of squared gradient norms.

    a_t² = b₀² + Σ_{i≤t} ‖g_i‖²;   x ← x − η g / a_t

Ward, Wu, Bottou: AdaGrad Stepsizes: Sharp Convergence over Nonconvex Landscapes, ICML 2019, arXiv 1806.01811.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Gradient
from fallline.optim.step_sizes.gradient_norm import AccumulatedGradientNorm


@register("adagrad-norm")
class AdaGradNorm(Optimizer):
    """x ← x − η g / √(b₀² + Σ ‖g_i‖²), the current gradient included; norms over all parameters.

    No state but one number.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1
        η, a guess of the distance to the solution.
    b0 : float, default 1e-6
    weight_decay : float, default 0
        Added to the gradient.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-2, 1e2)}

    def __init__(self, params: Any, lr: float = 1.0, b0: float = 1e-6, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, Gradient(), {"lr": lr, "b0": b0, "weight_decay": weight_decay}, step_size=AccumulatedGradientNorm(),
                         **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        if group["b0"] != self.param_groups[0]["b0"]:
            raise ValueError(f"b0 must be the same in all groups, whose norms are one, got {self.param_groups[0]['b0']!r} and "
                             f"{group['b0']!r}; lr may differ")
