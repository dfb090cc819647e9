"""Directions made from another one, element by element.

    friction     u = ξ ∘ inner(g),  ξ = 1 / (1 + exp(−|g_{t−1} − g_t|)),  g₀ = 0
    bounded      u = clip(inner(g), −b, b)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.optim.engine.arithmetic import over
from fallline.optim.engine.parts import Around, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class Friction(Around):
    """ξ ∘ inner(g): slower where the gradient hardly changes. ξ ∈ [½, 1) depends on the gradient's scale."""

    def init(self, p: Tensor) -> dict[str, State]:
        return {**self.inner.init(p), "previous_gradient": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        change = s["previous_gradient"] - g
        friction = torch.sigmoid(torch.abs(change, out=over(change)))
        u, new = self.inner(g, p, s, c)
        return torch.mul(u, friction, out=over(friction)), {**new, "previous_gradient": g}


@dataclass(frozen=True)
class Bounded(Around):
    """clip(inner(g), −b, b) with b = ``max_update`` of the group."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**self.inner.coefficients(group, t), "max_update": group["max_update"]}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        u, new = self.inner(g, p, s, c)
        return torch.clamp(u, min=-c.max_update, max=c.max_update), new
