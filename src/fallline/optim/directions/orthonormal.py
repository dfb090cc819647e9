"""An average of gradients with its singular values made nearly 1.

    m ← β₁ m + (1 − β₁) g;   u = √max(1, rows / columns) · O,  O the Newton-Schulz iterate of m

O is :func:`fallline.core.linalg.newton_schulz`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from fallline.core.linalg import newton_schulz
from fallline.optim.directions.averages import Undebiased
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State


@dataclass(frozen=True)
class Orthonormalised(Direction):
    """u = √max(1, rows / columns) · newton_schulz(m) for matrices; further dimensions are merged into the columns."""

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    average: Undebiased = field(default_factory=Undebiased)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return self.average.coefficients(group, t)

    def init(self, p: Tensor) -> dict[str, State]:
        return self.average.init(p)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m, new = self.average(g, s, c)
        rows, columns = m.shape[-2:]
        return math.sqrt(max(1.0, rows / max(columns, 1))) * newton_schulz(m), new
