"""Distance over gradients (DoG), norms over all parameters or over each tensor.

    r̄_t = max(r_ε, max_{i≤t} ‖x_i − x_0‖),   r_ε = reps_rel (1 + ‖x_0‖);   η_t = r̄_t / √(Σ_{i≤t} ‖g_i‖² + ε)

Ivgi, Hinder, Carmon: DoG is SGD's Best Friend, ICML 2023, arXiv 2302.12022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.optim.engine.parts import Scalars, StepSize, Tensors
from fallline.optim.engine.state import State, like, working_dtype


@dataclass(frozen=True)
class DistanceOverGradients(StepSize):
    """η_t = r̄_t / √G_t; the current gradient and distance are in both before the step."""

    needs: ClassVar[tuple[str, ...]] = ("gradient_norm_squared", "distance_squared", "parameter_norm_squared")
    defaults: ClassVar[Mapping[str, float]] = {"reps_rel": 1e-6, "eps": 1e-8}

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"first": float(t == 1), "reps_rel": group["reps_rel"], "eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        # A rounded start would be a distance from the first step on.
        return {"start": like(p, precision=working_dtype(p.dtype), initial="parameter")}

    def scalars(self) -> dict[str, float]:
        return {"radius": 0.0, "gradients": 0.0}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        floor = c.first * c.reps_rel * (1 + statistics["parameter_norm_squared"].sqrt())
        radius = torch.maximum(torch.maximum(s["radius"], statistics["distance_squared"].sqrt()), floor)
        gradients = s["gradients"] + statistics["gradient_norm_squared"]
        return radius / self.damped(s["gradients"], gradients, c).sqrt(), {"radius": radius, "gradients": gradients}

    def damped(self, before: Tensor, gradients: Tensor, c: Any) -> Tensor:
        """What stands under the root, from G_{t−1} and G_t."""
        return gradients + c.eps


@dataclass(frozen=True)
class DampedDistanceOverGradients(DistanceOverGradients):
    """T-DoG: η_t = r̄_t / √(8⁴ θ² log₊²(1 + t) (G_{t−1} + 16 ℓ²)), θ = ln(60 ln(6 T) / δ), log₊ x = 1 + ln x."""

    defaults: ClassVar[Mapping[str, float]] = {**DistanceOverGradients.defaults, "horizon": 1_000, "delta": 0.01, "lipschitz": 1.0}

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        theta = math.log(60 * math.log(6 * group["horizon"]) / group["delta"])
        damping = 8**4 * theta**2 * (1 + math.log(1 + t)) ** 2
        return {**super().coefficients(group, t), "damping": damping, "bound": 16 * group["lipschitz"] ** 2}

    def damped(self, before: Tensor, gradients: Tensor, c: Any) -> Tensor:
        return c.damping * (before + c.bound)
