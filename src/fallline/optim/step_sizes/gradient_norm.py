"""Steps over norms of gradients, over all parameters or over each tensor.

    normalised   η_t = 1 / ‖g_t‖^β                       AdaGrad-Norm   η_t = 1 / √(b₀² + Σ_{i≤t} ‖g_i‖²)

Squares are summed in the working precision: in float32 a gradient longer than 1e19 counts as infinite, and nothing moves.

Ward, Wu, Bottou: AdaGrad Stepsizes, ICML 2019, arXiv 1806.01811.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.optim.engine.hyperparameters import check_finite
from fallline.optim.engine.parts import Scalars, StepSize, Tensors


@dataclass(frozen=True)
class OverGradientNorm(StepSize):
    """1 / ‖g‖^power, and 0 where g is 0."""

    needs: ClassVar[tuple[str, ...]] = ("gradient_norm_squared",)
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("power", self.power, "1 is the normalised gradient")

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        squared = statistics["gradient_norm_squared"]
        moves = squared > 0
        return torch.where(moves, torch.where(moves, squared, 1.0) ** (-self.power / 2), 0.0), {}


@dataclass(frozen=True)
class AccumulatedGradientNorm(StepSize):
    """1 / √(b₀² + Σ ‖g‖²), the current gradient included, and 0 while that is 0; the first group's b₀ is ``b0``."""

    needs: ClassVar[tuple[str, ...]] = ("gradient_norm_squared",)
    defaults: ClassVar[Mapping[str, float]] = {"b0": 1e-6}

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"b0": group["b0"]}

    def scalars(self) -> dict[str, float]:
        return {"gradients": 0.0}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        gradients = s["gradients"] + statistics["gradient_norm_squared"]
        under = c.b0**2 + gradients
        return torch.where(under == 0, 0.0, 1 / torch.where(under == 0, 1.0, under).sqrt()), {"gradients": gradients}
