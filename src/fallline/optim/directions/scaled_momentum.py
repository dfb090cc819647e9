"""SGD-SaI's direction: an average of gradients times a number that each tensor keeps from the start.

    b ← β b + (1 − β) g, starting at the first g;   u = s b

Xu, Zhang, Cai et al.: No More Adam: Learning Rate Scaling at Initialization is All You Need, arXiv 2412.11768.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fallline.optim.engine.arithmetic import blend, over, scaled
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class ScaledGradient(Direction):
    """u = s g, with s, one number a tensor, and the largest raw number it was divided by."""

    supports_complex: ClassVar[bool] = True

    def init(self, p: Tensor) -> dict[str, State]:
        return {"scale": State(shape=(), initial=1.0), "largest": State(shape=(), initial=1.0)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return g * s["scale"], {}


@dataclass(frozen=True)
class ScaledMomentum(ScaledGradient):
    """u = s b with b ← β b + (1 − β) g from b = g₁."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"new": 1.0 if t == 1 else 1 - group["momentum"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {**super().init(p), "momentum_buffer": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        b = blend(s["momentum_buffer"], g, c.new, out=over(s["momentum_buffer"]))
        return scaled(b, s["scale"]), {"momentum_buffer": b}
