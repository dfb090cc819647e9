"""EXAdam's direction: each moment's debiasing depends on the other moment, and the gradient joins its own average.

    d₁ = 1 + v / (v + ε) · β₂ᵗ,   d₂ = 1 + m² / (m² + ε) · β₁ᵗ
    u = a_t (m + g) d₁ / (1 − β₁ᵗ) / (√(v d₂ / (1 − β₂ᵗ)) + ε),   a_t = ln(√2 √(t + 1)) or 1

with Adam's m and v. Adly: EXAdam: The Power of Adaptive Cross-Moments, arXiv 2412.20302.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.optim.directions.averages import Undebiased
from fallline.optim.directions.scalings import average_of_squares
from fallline.optim.engine.arithmetic import over, scaled
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class CrossMoments(Direction):
    """See the module; ``growth`` says whether a_t is the logarithm or 1."""

    supports_complex: ClassVar[bool] = True

    growth: bool = True
    average: Undebiased = field(default_factory=Undebiased)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1, beta2 = group["betas"]
        scale = growth_at(t) if self.growth else 1.0
        return {"new1": 1 - beta1, "keep2": beta2, "new2": 1 - beta2, "eps": group["eps"], "cross1": beta1**t, "cross2": beta2**t,
                "scale": scale / (1 - beta1**t), "debias2": 1 / (1 - beta2**t)}

    def init(self, p: Tensor) -> dict[str, State]:
        return {**self.average.init(p), "exp_avg_sq": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m, new = self.average(g, s, c)
        v = average_of_squares(s["exp_avg_sq"], g, c)
        above = (m + g) * _one_plus_share(v, c.cross2, c.eps)
        below = (v * _one_plus_share(m * m, c.cross1, c.eps) * c.debias2).sqrt() + c.eps
        u = torch.div(above, below, out=over(above))
        return scaled(u, c.scale, out=over(u)), {**new, "exp_avg_sq": v}


def _one_plus_share(x: Tensor, weight: Any, eps: Any) -> Tensor:
    return 1 + x / (x + eps) * weight


def growth_at(t: int) -> float:
    """a_t = ln(√2 √(t + 1)), t from 1."""
    return math.log(math.sqrt(2) * math.sqrt(t + 1))
