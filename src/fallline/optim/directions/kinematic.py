"""Gravity's direction: a squashed gradient in a velocity whose memory grows.

    M = max|g| over the tensor;   ζ = g / (1 + (g M)²);   V ← β̂_t V + (1 − β̂_t) ζ,  β̂_t = (β t + 1) / (t + 2), t from 0;   u = V

V starts as noise of standard deviation α / η. Bahrami, Zadeh: Gravity Optimizer, arXiv 2101.09192.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core.keys import Key
from fallline.optim.engine.arithmetic import blend, over
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.reduction import reduce
from fallline.optim.engine.state import State, like, working_dtype


@dataclass(frozen=True)
class Kinematic(Direction):
    """See the module; ``deviation`` and ``seed`` are those of V's start, and do not make another rule."""

    reduces: ClassVar[bool] = True

    deviation: float = field(default=0.0, compare=False)
    seed: int = field(default=0, compare=False)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"new": 1 - (group["beta"] * (t - 1) + 1) / (t + 1)}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"velocity": like(p, initial=self._thrown)}

    def _thrown(self, p: Tensor, index: int) -> Tensor:
        generator = Key(self.seed).fold("velocity", index).generator()
        return self.deviation * torch.randn(p.shape, dtype=working_dtype(p.dtype), generator=generator).to(p.device)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        # g M and not g / (1 / M), which a zero gradient would divide by 0.
        product = g * reduce(g.abs(), "max")
        squashed = g / (1 + product * product)
        v = blend(s["velocity"], squashed, c.new, out=over(s["velocity"]))
        return v, {"velocity": v}
