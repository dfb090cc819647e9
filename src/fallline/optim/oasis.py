"""OASIS: a diagonal from the Hessian, and a step size from the local smoothness in its metric.

    D ← β₂ D + (1 − β₂) z ∘ (H z);   D̂ = max(|D|, α);   x ← x − η_k D̂⁻¹ g
    η_k = min{ √(1 + θ_{k−1}) η_{k−1},  ‖x_k − x_{k−1}‖_D̂ / (2 ‖∇F_S(x_k) − ∇F_S(x_{k−1})‖_{D̂⁻¹}) },   θ_k = η_k / η_{k−1}

Jahani, Rusakov, Shi, Richtárik, Mahoney, Takáč: Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information,
ICLR 2022, arXiv 2109.05198.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import Range
from fallline.optim.directions.averages import Undebiased
from fallline.optim.directions.hutchinson import OverCurvature, WithPrevious
from fallline.optim.directions.variance_reduced import PREVIOUS, previous_points
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.oracles import gradients_at, of_minimised
from fallline.optim.engine.parts import Direction, Scalars, StepSize, Tensors
from fallline.optim.probing import Probing

MODES = ("adaptive", "fixed", "momentum")


@dataclass(frozen=True)
class LocalSmoothness(StepSize):
    """η_k = min{√(1 + θ) η_{k−1}, ‖Δx‖_D̂ / (2 ‖Δg‖_{D̂⁻¹})} from η₀ = ``lr0``; θ₀ = ∞. Where Δg is 0 only the first counts.

    η is 0 before the first step.
    """

    needs: ClassVar[tuple[str, ...]] = ("scaled_move_squared", "scaled_gradient_change_squared")

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"lr0": group["lr0"]}

    def scalars(self) -> dict[str, float]:
        return {"rate": 0.0, "growth": math.inf}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        change = statistics["scaled_gradient_change_squared"].sqrt()
        smooth = torch.where(change > 0, statistics["scaled_move_squared"].sqrt() / (2 * change), math.inf)
        rate = torch.minimum((1 + s["growth"]).sqrt() * s["rate"], smooth)
        rate = torch.where(rate.isinf() | rate.isnan(), s["rate"], rate)
        started = s["rate"] > 0
        rate = torch.where(started, rate, c.lr0)
        return rate, {"rate": rate, "growth": torch.where(started, rate / s["rate"], math.inf)}


@register("oasis")
class OASIS(Probing):
    """x ← x − η_k D̂⁻¹ g,  D̂ = max(|D|, α),  D ← β₂ D + (1 − β₂) z ∘ (H z),  η_k from the smoothness between the last two points.

    Needs Hessian-vector products: ``opt.step(objective(x, y))``. A step costs two gradients, both of the same batch, and one product;
    one gradient if ``deterministic``. Piecewise linear networks have little second derivative: there D tends to 0 and D̂ to α. State:
    D, the last point, the last gradient.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr0 : float, default 1e-3
        η₀, which hardly matters; in the other modes the learning rate.
    beta2 : float, default 0.99
        0.95 to 0.999.
    alpha : float, default 1e-5
        α, 1e-7 to 1e-3.
    warm_samples : int, default 10
        Probes whose mean D starts from.
    mode : {"adaptive", "fixed", "momentum"}, default "adaptive"
        ``"fixed"``: η_k = lr0; ``"momentum"``: that, with m ← β₁ m + (1 − β₁) g in place of g.
    beta1 : float, default 0.9
        For ``"momentum"``.
    deterministic : bool, default False
        Every step has the same loss, so that the last gradient is known.
    lr : float, default 1
        Multiplies η_k, in all modes; the method has none.
    weight_decay : float, default 0
        Added to the gradient.
    seed : int, default 0
        Of the probes.
    **options
        ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {}
    positive: ClassVar[Mapping[str, str]] = {"alpha": "it keeps D̂ from 0; 1e-5 is typical", "lr0": "1e-3 is typical"}
    reevaluations: ClassVar[Mapping[str, str]] = {PREVIOUS: "the gradient of this batch at the previous point"}

    def __init__(self, params: Any, lr0: float = 1e-3, beta2: float = 0.99, alpha: float = 1e-5, warm_samples: int = 10,
                 mode: Literal["adaptive", "fixed", "momentum"] = "adaptive", beta1: float = 0.9, deterministic: bool = False,
                 lr: float = 1.0, weight_decay: float = 0.0, seed: int = 0, **options: Unpack[EngineOptions]) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
        check("beta1", beta1)
        rules: dict[str, Direction] = {"adaptive": WithPrevious(resampled=not deterministic), "fixed": OverCurvature(),
                                       "momentum": OverCurvature(Undebiased())}
        defaults = {"lr": lr, "lr0": lr0, "beta2": beta2, "alpha": alpha, "betas": (beta1,), "weight_decay": weight_decay}
        step_size = LocalSmoothness() if mode == "adaptive" else None
        super().__init__(params, rules[mode], defaults, step_size=step_size, warm_samples=warm_samples, seed=seed, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        if self.sentence.step_size is not None and group["lr0"] != self.param_groups[0]["lr0"]:
            raise ValueError(f"lr0 must be the same in all groups with mode='adaptive', where η is one number, got "
                             f"{self.param_groups[0]['lr0']!r} and {group['lr0']!r}; lr may differ")

    def coefficients(self, direction: Direction, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        values = super().coefficients(direction, group, t)
        return values if self.sentence.step_size is not None else {**values, "lr": values["lr"] * group["lr0"]}

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        if oracle == PREVIOUS:
            return of_minimised(gradients_at(previous_points(self.state), realisation), self.param_groups)
        return super().estimate(oracle, realisation, t)
