"""U-DoG: accelerated stochastic descent whose step size is distance over gradients (universal extra-gradient).

With x₀ = y₀, S = W = Q = 0, iteration k = 0, 1, … takes two gradients of two batches:

    m at (ω_k y_k + S) / (W + ω_k);   x_{k+1} = y_k − α_k r̄_k m / √(λ_k² (‖m₀‖² + Q));   S ← S + ω_k x_{k+1},  W ← W + ω_k
    g at S / W;   Q ← Q + α_k² ‖g − m‖²;   y_{k+1} = y_k − α_k r̄_k g / √(λ_k² (‖m₀‖² + Q))

    r̄_k = max(r_ε, ‖y_j − x₀‖, ‖x_j − x₀‖ over j ≤ k),   α_k = Σ_{j≤k} r̄_j / r̄_k,   ω_k = α_k r̄_k,   λ_k = 1 + ln(1 + k);   answer S / W

Kreisler, Ivgi, Hinder, Carmon: Accelerated Parameter-Free Stochastic Optimization, COLT 2024, arXiv 2404.00666.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import Range
from fallline.optim.engine.arithmetic import add_scaled, blend
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Direction, Multiplier, Replace, Scalars, StepSize, Tensors
from fallline.optim.engine.state import State, like, working_dtype


@dataclass(frozen=True)
class ExtraGradient(Direction):
    """The next point to ask at, from the anchor y, the weighted mean of x so far, and the numbers of the step.

    z = y − η g; the next point is the mean with z at weight ``share``. In the first half z is x_{k+1}, and that point the new mean; in
    the second it is y_{k+1}, the new anchor.
    """

    supports_complex: ClassVar[bool] = True
    uses_rate: ClassVar[bool] = True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"rate": 0.0, "share": 0.0, "first_half": 0.0}  # which the step size finds

    def init(self, p: Tensor) -> dict[str, State]:
        exact = like(p, precision=working_dtype(p.dtype), initial="parameter")
        return {"anchor": exact, "mean": exact, "previous_gradient": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        z = add_scaled(s["anchor"], -c.lr * c.rate, g)
        point = blend(s["mean"], z, c.share)
        mean = blend(s["mean"], point, c.first_half)
        anchor = blend(z, s["anchor"], c.first_half)
        return point, {"anchor": anchor, "mean": mean, "previous_gradient": g}

    def solution(self, p: Tensor, s: Tensors, c: Any) -> Tensor:
        return s["mean"]


@dataclass(frozen=True)
class UniversalDistanceOverGradients(StepSize):
    """η, and the weight of the next point, from norms over all parameters."""

    needs: ClassVar[tuple[str, ...]] = ("gradient_norm_squared", "parameter_norm_squared", "gradient_change_squared",
                                        "gradient_step_squared", "anchor_distance_squared", "anchor_distance_dot_gradient_step")
    damping: bool = True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"reps_rel": group["reps_rel"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"start": like(p, precision=working_dtype(p.dtype), initial="parameter")}

    def scalars(self) -> dict[str, float]:
        # How many steps were taken is the same for parameters that came late.
        return {"taken": 0.0, "radius": 0.0, "reach": 0.0, "omega": 0.0, "weight": 0.0, "first_gradient": 0.0, "changes": 0.0}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Multiplier, Tensors]:
        squared, starts, ahead = statistics["gradient_norm_squared"], s["taken"] == 0, s["taken"] % 2 == 0
        radius = torch.where(starts, c.reps_rel * (1 + statistics["parameter_norm_squared"].sqrt()), s["radius"])
        omega = torch.where(starts, radius, s["omega"])
        first = torch.where(starts, squared, s["first_gradient"])
        changes = torch.where(ahead, s["changes"], s["changes"] + (omega / radius) ** 2 * statistics["gradient_change_squared"])
        under = first + changes
        damping = 1 + (1 + (s["taken"] / 2).floor()).log() if self.damping else 1.0
        rate = torch.where(under > 0, omega / (damping * torch.where(under > 0, under, 1.0).sqrt()), 0.0)
        # ‖y − η g − x₀‖², of a point that is not there yet; η has the groups' own lr.
        moved = (statistics["anchor_distance_squared"] - 2 * rate * statistics["anchor_distance_dot_gradient_step"]
                 + rate**2 * statistics["gradient_step_squared"])
        reach = torch.maximum(s["reach"], moved.clamp(min=0).sqrt())
        weight = torch.where(ahead, s["weight"] + omega, s["weight"])
        radius = torch.where(ahead, radius, torch.maximum(radius, reach))
        omega = torch.where(ahead, omega, omega + radius)
        share = omega / torch.where(ahead, weight, weight + omega)
        return {"rate": rate, "share": share, "first_half": ahead.to(rate)}, {
            "taken": s["taken"] + 1, "radius": radius, "reach": reach, "omega": omega, "weight": weight, "first_gradient": first,
            "changes": changes}


@register("u-dog")
class UDoG(Optimizer):
    """x = y − η m, y ← y − η g, η = α r̄ / √(λ² (‖m₀‖² + Σ α² ‖g − m‖²)): extra-gradient steps with distance over gradients.

    Every step takes one gradient, and two steps, of two batches, are one iteration: odd steps go to the weighted mean of x, where the
    second gradient is taken, even ones to the point ahead of the anchor. Taking both of one batch would make Q vanish. The answer is
    the mean, ``with opt.solution():``. Nothing to tune. State: x₀, y, the mean and the last gradient. The scheme, r̄, α and ω are the
    paper's; the logarithms and maxima inside its G, which its proof needs to keep iterates bounded, are not: λ stands for them. There
    is no projection onto a set.

    Parameters
    ----------
    params : iterable of Tensor or dict
    reps_rel : float, default 1e-6
        r_ε = reps_rel (1 + ‖x₀‖), which hardly matters once small.
    damping : {"log", None}, default "log"
        λ_k = 1 + ln(1 + k), or 1, which noise drives away: r̄ grows with it.
    lr : float, default 1
        Multiplies η; the method has none.
    weight_decay : float, default 0
        Added to the gradient.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {}
    positive: ClassVar[Mapping[str, str]] = {"reps_rel": "the first step's length; 1e-6 is typical"}

    def __init__(self, params: Any, reps_rel: float = 1e-6, damping: Literal["log"] | None = "log", lr: float = 1.0,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        if damping not in ("log", None):
            raise ValueError(f"damping must be 'log' or None, got {damping!r}")
        super().__init__(params, ExtraGradient(), {"lr": lr, "reps_rel": reps_rel, "weight_decay": weight_decay}, move=Replace(),
                         step_size=UniversalDistanceOverGradients(damping=damping is not None), **options)
