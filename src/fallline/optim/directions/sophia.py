"""Sophia's direction: a clipped Newton step on an estimated diagonal.

    m ← β₁ m + (1 − β₁) g;   every k steps  h ← β₂ h + (1 − β₂) ĥ;   u = clip(m / max(γ h, ε), −1, 1)

h starts at 0 and neither average is debiased; where h is tiny or negative the step is the sign of m.

Liu, Li, Hall, Liang, Ma: Sophia, ICLR 2024, arXiv 2305.14342.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fallline.optim.engine.arithmetic import blend
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class ClippedNewton(Direction):
    """u = clip(m / max(γ h, ε), −1, 1); ``estimator`` names the oracle that is due at steps 1, k + 1, 2k + 1, …"""

    estimator: str = "gnb"
    k: int = 10

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1, beta2 = group["betas"]
        return {"new1": 1 - beta1, "new2": 1 - beta2, "gamma": group["gamma"], "eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"momentum": like(p), "curvature": like(p)}

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (self.estimator,) if (t - 1) % self.k == 0 else ()

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        return {"curvature": blend(s["curvature"], value, c.new2)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = blend(s["momentum"], g, c.new1)
        # A tensor bound for the maximum would be compared in its own dtype; clamp takes the number as it is.
        curvature = (c.gamma * s["curvature"]).clamp(min=c.eps)
        return (m / curvature).clamp(-1, 1), {"momentum": m}
