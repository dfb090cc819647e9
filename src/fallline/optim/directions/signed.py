"""The sign of a momentum, with one average for the step and another for the memory (Lion).

    u = sign(β₁ m + (1 − β₁) g);   m ← β₂ m + (1 − β₂) g

Chen et al.: Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.optim.engine.arithmetic import blend, over
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class SignedMomentum(Direction):
    """u = sign(β₁ m + (1 − β₁) g); sign(0) = 0. ``precision`` is that of m: by default the parameter's, or float32 for its halves."""

    precision: torch.dtype | None = None

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1, beta2 = group["betas"]
        return {"new1": 1 - beta1, "new2": 1 - beta2}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_avg": like(p, precision=self.precision)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = s["exp_avg"]
        between = blend(m, g, c.new1)
        return torch.sign(between, out=over(between)), {"exp_avg": blend(m, g, c.new2, out=over(m))}
