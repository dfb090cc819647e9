"""Averages of gradients over the diagonal of a Kronecker-factored Fisher matrix (AdaFisher).

    H̄ ← (1 − γ₁) H̄ + γ₂ z_H,  S̄ ← (1 − γ₁) S̄ + γ₂ z_S  from 1, where new z are due;   F = S̄ ⊗ H̄ + λ;   u = m̂ / F

z_H in [0, 1] tells the columns of a weight apart (its inputs), z_S the rows (its outputs).

Martins Gomes, Zhang, Belilovsky, Wolf, Hosseini: AdaFisher, ICLR 2025, arXiv 2405.16397.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.optim.directions.averages import Averaged, Numerator
from fallline.optim.engine.arithmetic import over, scaled
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like

INPUTS, OUTPUTS = "layer inputs", "output gradients"


@dataclass(frozen=True)
class AverageAlone(Direction):
    """u = m̂, or another numerator alone."""

    numerator: Numerator = field(default_factory=Averaged)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**self.numerator.coefficients(group, t), "scale": self.numerator.scale(group, t)}

    def init(self, p: Tensor) -> dict[str, State]:
        return self.numerator.init(p)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        above, new = self.numerator(g, s, c)
        return scaled(above, c.scale), new


@dataclass(frozen=True)
class OverFisher(AverageAlone):
    """u = m̂ / (S̄ ⊗ H̄ + λ), new z at steps 1, 1 + every, …; z_H comes as a tensor of equal rows, z_S as one of equal columns.

    State: the average, and for a matrix of m rows and n columns m + n numbers.
    """

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    every: int = 100

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        forget, new = group["gammas"]
        return {**super().coefficients(group, t), "kept": 1 - forget, "new": new, "lam": group["lam"]}

    def init(self, p: Tensor) -> dict[str, State]:
        factors = {"outputs": like(p, nonnegative=True, axis=0, initial=1.0), "inputs": like(p, nonnegative=True, axis=1, initial=1.0)}
        return {**super().init(p), **factors}

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (INPUTS, OUTPUTS) if (t - 1) % self.every == 0 else ()

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        entry, z = ("inputs", value[:, 0]) if name == INPUTS else ("outputs", value[:, :, 0])
        return {entry: c.kept * s[entry] + c.new * z}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        u, new = super().__call__(g, p, s, c)
        fisher = s["outputs"].unsqueeze(2) * s["inputs"].unsqueeze(1)
        return torch.div(u, torch.add(fisher, c.lam, out=over(fisher)), out=over(u)), new
