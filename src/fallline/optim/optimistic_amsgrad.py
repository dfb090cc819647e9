"""Optimistic AMSGrad: a second step along a predicted gradient before the gradient is asked for.

    θ ← β₁ θ + (1 − β₁) g;   v̂ ← max(v̂, β₂ v + (1 − β₂) g²);   w ← w − η θ / √v̂;   point = w − η (β₁ θ + (1 − β₁) m) / √v̂

Wang, Li, Karimi, Li: An Optimistic Acceleration of AMSGrad for Nonconvex Optimization, ACML 2021, arXiv 1903.01435.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.optimistic import Optimistic, extrapolation_weights, last_weights
from fallline.optim.engine.hyperparameters import check, check_positive
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Replace, View

Predictor = Literal["rmpe", "last"] | Callable[[Tensor], Tensor]


@register("optimistic-amsgrad")
class OptAMSGrad(Optimizer):
    """w ← w − η θ / √v̂;  point = w − η (β₁ θ + (1 − β₁) m) / √v̂, where m predicts the gradient at the point.

    θ is AMSGrad's average, v̂ the largest second moment so far; neither is debiased, and v and v̂ start at ε. The parameters hold
    the point: gradients are taken there, and it is the answer; a change of them from outside is lost, for steps start from w. m
    extrapolates the last r + 1 gradients of all parameters together; until there are that many, it is the last one. State: Adam's, v̂,
    w, and r gradients. Whether the paper forms the second step from the average before or after the newest gradient is unclear; after
    is what makes a perfect prediction the coming step of AMSGrad.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    betas : pair of float, default (0.9, 0.99)
    eps : float, default 1e-8
        Where v and v̂ start; positive.
    r : int, default 5
    reg : float, default 1e-3
        ρ of the extrapolation.
    predictor : {"rmpe", "last"} or callable, default "rmpe"
        Extrapolation, the last gradient, or a function from the Gram matrix of the last r + 1 gradients, oldest first, to coefficients.
    weight_decay : float, default 0
        Added to the gradient; the paper has none.
    **options
        ``nonfinite``, ``maximize``, ``storage`` of the engine; the rule runs eagerly.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, r: int = 5,
                 reg: float = 1e-3, predictor: Predictor = "rmpe", weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        check_positive("eps", eps, "it is where the denominator starts; 1e-8 is typical")
        check("r", r)
        self.predictor = _predictor(predictor, reg)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, Optimistic(int(r), eps), defaults, move=Replace(), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "predictor": self.predictor}

    def share(self, views: Sequence[View], loss: Any) -> dict[str, Any]:
        assert isinstance(self.direction, Optimistic)
        if self.predictor is last_weights:  # which is what a step does without weights
            return {}
        full = max(view.t for view in views) > self.direction.r
        return {"weights": self.direction.weights(views, self.predictor)} if full else {}


def _predictor(predictor: Predictor, reg: float) -> Callable[[Tensor], Tensor]:
    check_positive("reg", reg, "without it the extrapolation may be singular; 1e-3 is typical")
    if predictor == "rmpe":
        return functools.partial(extrapolation_weights, reg=reg)
    if predictor == "last":
        return last_weights
    if callable(predictor):
        return predictor
    raise ValueError(f"predictor must be 'rmpe', 'last' or a function from a Gram matrix to coefficients, got {predictor!r}")


def extrapolate(gradients: Sequence[Tensor] | Tensor, reg: float = 1e-3) -> Tensor:
    """Return the next term of a sequence of gradients by regularised minimal polynomial extrapolation.

    Σ c_i g_i with c = z / Σ z, (UᵀU / ‖UᵀU‖ + ρ I) z = 1 and U the differences; c_i belongs to the later gradient of each.

    Parameters
    ----------
    gradients : sequence of at least two tensors of one shape, oldest first
    reg : float, default 1e-3
        ρ > 0.
    """
    stacked = torch.stack(list(gradients))
    if len(stacked) < 2:
        raise ValueError(f"gradients must be at least two, got {len(stacked)}")
    check_positive("reg", reg, "without it the extrapolation may be singular; 1e-3 is typical")
    rows = stacked.flatten(1)
    return torch.tensordot(extrapolation_weights(rows @ rows.mT, reg), stacked, 1)
