"""DoG and its layer-wise form: SGD whose step size is distance over gradients, with nothing to tune.

Ivgi, Hinder, Carmon: DoG is SGD's Best Friend, ICML 2023, arXiv 2302.12022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch

from fallline.core.registry import register
from fallline.core.space import Range
from fallline.core.warning import warn
from fallline.optim.averaging import PolynomialDecay
from fallline.optim.engine.layout import local
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Gradient
from fallline.optim.engine.state import working_dtype
from fallline.optim.step_sizes import DampedDistanceOverGradients, DistanceOverGradients


@register("dog")
class DoG(Optimizer):
    """x ← x − η_t g,  η_t = max(r_ε, max_i ‖x_i − x_0‖) / √(Σ ‖g_i‖² + ε),  r_ε = reps_rel (1 + ‖x_0‖).

    Norms are over all parameters. The answer is the polynomial average of the iterates, x̄_t = (1 − a) x̄ + a x_t with
    a = (γ + 1) / (t + γ): evaluate it in ``with opt.solution():``.

    A first step r_ε below the rounding of the parameters moves nothing, and so does every later one: bfloat16 and float16
    parameters need a ``reps_rel`` of about 1e-2 and 1e-3, float32 ones at least 1e-7. The first step warns of that.

    Parameters
    ----------
    params : iterable of Tensor or dict
    reps_rel : float, default 1e-6
        The first step's length relative to 1 + ‖x_0‖; 1e-4 with batch normalisation. Hardly matters once small.
    eps : float, default 1e-8
    weight_decay : float, default 0
        Added to the gradient.
    lr : float, default 1
        Multiplies η_t; the method has none. Leave it, and leave out decaying schedules.
    gamma : float, default 8
        γ; 0 is the plain mean. ``PolynomialAverage`` keeps the same average of a model under another optimizer.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {}
    over: ClassVar[Literal["all", "tensor"]] = "all"

    def __init__(self, params: Any, reps_rel: float = 1e-6, eps: float = 1e-8, weight_decay: float = 0.0, lr: float = 1.0,
                 gamma: float = 8.0, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "reps_rel": reps_rel, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, Gradient(), defaults, step_size=DistanceOverGradients(over=self.over),
                         average=PolynomialDecay(gamma), **options)

    def before_step(self) -> None:
        if not self.state:
            _warn_of_rounding(self.param_groups, together=self.over == "all")


def _warn_of_rounding(groups: Sequence[Mapping[str, Any]], together: bool) -> None:
    """Warn if the first step is below the rounding of the parameters: of each, or of all of a dtype ``together``."""
    norms: dict[Any, list[float]] = {}
    settings: dict[Any, tuple[torch.dtype, Mapping[str, Any]]] = {}
    for group in groups:
        for p in group["params"]:
            x = local(p)
            key = x.dtype if together else id(p)
            norms.setdefault(key, []).append(float(torch.linalg.vector_norm(x, dtype=working_dtype(x.dtype))))
            settings.setdefault(key, (x.dtype, group))
    whole = math.hypot(*(norm for found in norms.values() for norm in found))
    for key, (dtype, group) in settings.items():
        norm, rounding = math.hypot(*norms[key]), torch.finfo(dtype).eps
        first = float(group["lr"]) * float(group["reps_rel"]) * (1 + (whole if together else norm))
        if 0 < first < rounding / 2 * norm:
            enough = 1.1 * float(group["reps_rel"]) * rounding / 2 * norm / first
            warn(f"reps_rel={group['reps_rel']:g} makes a first step of length {first:.2g}, below the rounding of {dtype} parameters "
                 f"of norm {norm:.2g}, which may never move; use reps_rel={enough:.1e} or more, or keep the parameters in a higher "
                 "precision")
            return


@register("ldog")
class LDoG(DoG):
    """DoG with norms over each tensor, so that every tensor has a step size of its own. Parameters as in ``DoG``."""

    over = "tensor"


@register("t-dog")
class TDoG(Optimizer):
    """DoG damped as its proof asks: η_t = r̄_t / √(8⁴ θ² log₊²(1 + t) (G_{t−1} + 16 ℓ²)), θ = ln(60 ln(6 T) / δ), log₊ x = 1 + ln x.

    For convex Lipschitz problems the average is near the optimal rate with probability 1 − δ, and iterates stay bounded; the steps are
    hundreds of times shorter than DoG's, which is what to use in practice. The form of the logarithm's argument for a constant ℓ and
    the constants in θ follow the proof as remembered, unchecked against the paper's text.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lipschitz : float, default 1
        ℓ, a bound on the norm of stochastic gradients.
    horizon : int, default 1000
        T, the number of steps that will be taken.
    delta : float, default 0.01
        δ, the probability that the bound fails.
    reps_rel, weight_decay, lr
        As in ``DoG``.
    """

    space: ClassVar[Mapping[str, Range]] = {}

    def __init__(self, params: Any, lipschitz: float = 1.0, horizon: int = 1000, delta: float = 0.01, reps_rel: float = 1e-6,
                 weight_decay: float = 0.0, lr: float = 1.0, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "reps_rel": reps_rel, "eps": 0.0, "weight_decay": weight_decay, "lipschitz": lipschitz,
                    "horizon": horizon, "delta": delta}
        super().__init__(params, Gradient(), defaults, step_size=DampedDistanceOverGradients(), average=PolynomialDecay(), **options)
