"""Velocities that carry the learning rate, as the survey writes them: v ← γ v + η g.

Heavy ball: θ ← θ − v. Nesterov: the gradient is taken at φ = θ − γ v, which is where the parameters are held.

Adadelta's unit-free step is here too: Δ = −RMS[Δ]_{t−1} / RMS[g]_t · g.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fallline.optim.engine.arithmetic import add_product, add_scaled, over, scaled
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class HeavyBall(Direction):
    """u = v, v ← γ v + η g; to be moved by ``p − u``."""

    supports_complex: ClassVar[bool] = True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"momentum": group["momentum"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"velocity": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        decayed = scaled(s["velocity"], c.momentum, out=over(s["velocity"]))
        v = add_scaled(decayed, c.lr, g, out=over(decayed))
        return v, {"velocity": v}


@dataclass(frozen=True)
class LookAheadBall(HeavyBall):
    """The same at φ = θ − γ v: u = v⁺ + γ (v⁺ − v); the answer is θ = φ + γ v."""

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        before = s["velocity"]
        v = add_scaled(before * c.momentum, c.lr, g)
        return add_scaled(v, c.momentum, v - before), {"velocity": v}

    def solution(self, p: Tensor, s: Tensors, c: Any) -> Tensor:
        return add_scaled(p, c.momentum, s["velocity"])


@dataclass(frozen=True)
class UnitFree(Direction):
    """u = √(d + ε) / √(v + ε) · g with v ← ρ v + (1 − ρ) g², then d ← ρ d + (1 − ρ) u²."""

    supports_complex: ClassVar[bool] = True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"keep": group["rho"], "new": 1 - group["rho"], "eps": group["eps"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"square_avg": like(p, nonnegative=True), "acc_delta": like(p, nonnegative=True)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        v, d = s["square_avg"], s["acc_delta"]
        v = add_product(scaled(v, c.keep, out=over(v)), c.new, g, g, out=over(v))
        u = ((d + c.eps) / (v + c.eps)).sqrt() * g
        d = add_product(scaled(d, c.keep, out=over(d)), c.new, u, u, out=over(d))
        return u, {"square_avg": v, "acc_delta": d}
