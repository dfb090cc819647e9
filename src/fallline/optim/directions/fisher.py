"""The inverse of the empirical Fisher matrix of a window of gradients, applied to the newest.

    u = (λ I + (1/m) Γᵀ Γ)⁻¹ g = m Γᵀ (m λ I + Γ Γᵀ)⁻¹ e,  the newest row of Γ being g = Γᵀ e;   v ← μ v + (1 − μ) u

See :mod:`fallline.core.fisher_window`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.fisher_window import DenseRows, factored, inverse_times_row, with_products, with_row
from fallline.optim.engine.arithmetic import blend, over
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class WindowedFisher(Direction):
    """v ← μ v + (1 − μ) F⁻¹ g over all parameters of a group, F of its last ``m`` gradients."""

    m: int
    scope = "joint"

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"slot": (t - 1) % self.m, "damp": group["damp"], "new": 1 - group["momentum"]}

    def init(self, p: Tensor) -> dict[str, State]:
        # No storage may round the rows: S is theirs to the last digit, or its factor need not exist.
        return {"window": State(rows=self.m, dtype=p.dtype), "gram": State((self.m, self.m), torch.float64), "momentum": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        window = with_row(s["window"], c.slot, g, out=over(s["window"]))
        rows = DenseRows(window)
        gram = with_products(s["gram"], c.slot, rows.dot(g), out=over(s["gram"]))
        u = inverse_times_row(rows, factored(gram, c.damp), c.slot).to(g.dtype)
        v = blend(s["momentum"], u, c.new, out=over(s["momentum"]))
        return v, {"window": window, "gram": gram, "momentum": v}
