"""M-FAC: gradients preconditioned by the inverse of the empirical Fisher matrix of the last m.

    Γ ← Γ with g + w θ in the place of its oldest row;   u = (λ I + Γᵀ Γ / m)⁻¹ (g + w θ);   v ← μ v + (1 − μ) u;   θ ← θ − η v

Frantar, Kurtic, Alistarh: M-FAC: Efficient Matrix-Free Approximations of Second-Order Information, NeurIPS 2021, arXiv 2107.03356.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.checks import check_count
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.fisher import WindowedFisher
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.whole_group import WholeGroup


@register("m-fac")
class MFAC(WholeGroup):
    """u = (λ I + Γᵀ Γ / m)⁻¹ g over all parameters of a group together;  v ← μ v + (1 − μ) u;  θ ← θ − η v.

    The window Γ holds the last m gradients and starts with zeros, which count: the divisor always is m. A step costs O(d m + m³) flops
    for d parameters. With g itself in the window ‖u‖ is at most m / ‖g‖ however small λ is, and ‖g‖ / λ where λ is large: the right
    learning rate depends on ``damp``.

    Memory: a window takes ``m`` times the parameters' own in float32, 2 KiB a parameter at m = 512; ``memory`` has the bytes of all
    state, before any is made. Every group has its own window, whose parameters are those that require gradients when it takes its
    first step, and which is whole on every rank.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    m : int, default 512
        Gradients in the window; the authors take up to 1024.
    damp : float, default 1e-5
        λ > 0; the authors take 1e-6 to 1e-5.
    momentum : float, default 0
        μ, of the preconditioned gradients.
    weight_decay : float, default 0
        w, added to the gradient before it enters the window.
    **options
        ``nonfinite``, ``maximize``, ``storage`` of the engine; it runs eagerly. Storages keep the window in the precision of the
        arithmetic.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1), "damp": LogUniform(1e-6, 1e-1)}
    positive: ClassVar[Mapping[str, str]] = {"damp": "the Fisher matrix of a window has no inverse without; 1e-5 is typical"}

    def __init__(self, params: Any, lr: float = 1e-3, m: int = 512, damp: float = 1e-5, momentum: float = 0.0,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        check_count("m", m, "512 is typical")
        defaults = {"lr": lr, "damp": damp, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, WindowedFisher(m), defaults, **options)
