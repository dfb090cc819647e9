"""Preconditioners P = Qᵀ Q whose factor Q moves inside a group of matrices, fitted to pairs of a probe v and h = H v.

    P minimises  E[hᵀ P h + vᵀ P⁻¹ v],  v ~ N(0, I);   over all P that is |H|⁻¹

A step multiplies Q by (I − μ E), E from y = Q h and w = Q⁻ᵀ v, and μ the rate over a norm of E: Q stays in its group and invertible,
without damping. It starts at I, and the first pair of which s = (⟨v, v⟩ / ⟨h, h⟩)^¼ is a finite number above 0 makes it s I. A pair
before, or that would make Q infinite, is left out.

Li: Curvature-Informed SGD via General Purpose Lie-Group Preconditioners, arXiv 2402.04553.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.keys import Key
from fallline.optim.engine.arithmetic import blend, over
from fallline.optim.engine.parts import Direction, Tensors
from fallline.optim.engine.state import State, like

PAIR = "probe and its product with the Hessian"


def uniform(seed: int, t: int, name: str) -> float:
    """A number in [0, 1) for a decision of step t."""
    return Key(seed).fold(t, name).integer() / 2**63


@dataclass(frozen=True)
class LieGroup(Direction):
    """u = P m,  m ← μ m + (1 − μ) g, over all parameters of a group; ``probability`` is that of a step with a pair."""

    probability: float = 1.0
    seed: int = 0
    scope = "joint"

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (PAIR,) if t == 1 or uniform(self.seed, t, "pair") < self.probability else ()

    def coefficients(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return {"new": 1 - group["momentum"], "rate": group["lr_precond"], "clip": group["grad_clip"]}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"momentum": like(p), "pairs": State((1,), torch.int32), **self.factors(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = blend(s["momentum"], g, c.new, out=over(s["momentum"]))
        u = self.preconditioned(m, s)
        if c.clip is not None:
            norm = torch.linalg.vector_norm(u)
            u = u * torch.where(norm > c.clip, c.clip / norm, 1.0)
        return u, {"momentum": m}

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        v, h = value
        if not len(v):
            return {}
        h = h + c.weight_decay * v  # the decay is part of the loss, as it is of the gradient
        scale, first = (v @ v / (h @ h)) ** 0.25, s["pairs"] == 0
        measured = scale.isfinite() & (scale > 0)
        scaled = {**s, **self.times(torch.where(first & measured, scale, 1.0), s)}
        new = self.fitted(v, h, scaled, c)  # all factors
        works = torch.stack([x.isfinite().all() for x in new.values()]).all() & (measured | ~first)
        return {"pairs": s["pairs"] + works, **{name: torch.where(works, x, s[name]) for name, x in new.items()}}

    def factors(self, p: Tensor) -> dict[str, State]:
        """What Q is made of, which starts at I."""
        raise NotImplementedError

    def times(self, scale: Tensor, s: Tensors) -> Tensors:
        """The factors of Q times a number ``(1,)``, those that change."""
        raise NotImplementedError

    def fitted(self, v: Tensor, h: Tensor, s: Tensors, c: Any) -> Tensors:
        """The factors after a pair."""
        raise NotImplementedError

    def preconditioned(self, x: Tensor, s: Tensors) -> Tensor:
        """P x."""
        raise NotImplementedError


def _rate(c: Any, norm: Tensor) -> Tensor:
    return c.rate / (norm + torch.finfo(norm.dtype).tiny)


def _exact(p: Tensor, rows: int | None = None, initial: Any = 0.0) -> State:
    # A step changes a factor by about the rate, which a coarser precision would lose.
    return State(rows=rows, dtype=p.dtype, initial=initial)


@dataclass(frozen=True)
class Diagonal(LieGroup):
    """Q = diag(d):  d ← d − μ d ∘ ((d ∘ h)² − (v / d)²),  μ = rate / max|·|."""

    def factors(self, p: Tensor) -> dict[str, State]:
        return {"scale": _exact(p, initial=1.0)}

    def times(self, scale: Tensor, s: Tensors) -> Tensors:
        return {"scale": scale * s["scale"]}

    def fitted(self, v: Tensor, h: Tensor, s: Tensors, c: Any) -> Tensors:
        d = s["scale"]
        change = (d * h) ** 2 - (v / d) ** 2
        return {"scale": d - _rate(c, change.abs().max()) * d * change}

    def preconditioned(self, x: Tensor, s: Tensors) -> Tensor:
        return s["scale"] ** 2 * x


@dataclass(frozen=True)
class Cross(LieGroup):
    """Q = diag(a) + antidiag(b), of which pairs of entries mirrored about the middle are blocks; x̃ is x reversed.

    y = a ∘ h + b ∘ h̃,  w = (ã ∘ v − b̃ ∘ ṽ) / (a ∘ ã − b ∘ b̃),  A = y² − w²,  B = y ∘ ỹ − w ∘ w̃ (0 in the middle),
    (a, b) ← (a − μ (A ∘ a + B ∘ b̃), b − μ (A ∘ b + B ∘ ã)),  μ = rate / max(|A|, |B|).
    """

    def factors(self, p: Tensor) -> dict[str, State]:
        return {"diagonal": _exact(p, initial=1.0), "antidiagonal": _exact(p)}

    def times(self, scale: Tensor, s: Tensors) -> Tensors:
        return {name: scale * s[name] for name in ("diagonal", "antidiagonal")}

    def fitted(self, v: Tensor, h: Tensor, s: Tensors, c: Any) -> Tensors:
        a, b = s["diagonal"], s["antidiagonal"]
        a_, b_ = a.flip(0), b.flip(0)
        y = a * h + b * h.flip(0)
        w = (a_ * v - b_ * v.flip(0)) / (a * a_ - b * b_)
        A, B = y**2 - w**2, y * y.flip(0) - w * w.flip(0)
        if len(B) % 2:
            B[len(B) // 2] = 0
        mu = _rate(c, torch.maximum(A.abs().max(), B.abs().max()))
        return {"diagonal": a - mu * (A * a + B * b_), "antidiagonal": b - mu * (A * b + B * a_)}

    def preconditioned(self, x: Tensor, s: Tensors) -> Tensor:
        a, b = s["diagonal"], s["antidiagonal"]
        ab = a * b
        return (a**2 + b.flip(0) ** 2) * x + (ab + ab.flip(0)) * x.flip(0)


@dataclass(frozen=True)
class LowRank(LieGroup):
    """Q = (I + U Vᵀ) diag(d), U and V of ``rank`` columns (kept as rows), of which a step changes d and, by a coin, U or V.

    K = I + Vᵀ U,  w = v / d − V K⁻ᵀ Uᵀ (v / d),  P⁻¹ v = (w − U K⁻¹ Vᵀ w) / d
    d ← d − μ d ∘ (P h ∘ h − v ∘ P⁻¹ v),  μ = rate / max|·|
    U ← U − μ (y yᵀ − w wᵀ) V K,  μ = rate / ‖(y yᵀ − w wᵀ) V Vᵀ‖
    V ← V − μ (I + V Uᵀ) (y yᵀ − w wᵀ) U,  μ = rate / ‖U Uᵀ (y yᵀ − w wᵀ)‖

    U and V start from normal numbers over √(n (r + 10)); one step in a hundred on average makes their norms equal, and leaves Q as it
    is.
    """

    rank: int = 10

    def coefficients(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        coin, balance = uniform(self.seed, t, "coin") < 0.5, uniform(self.seed, t, "balance") < 0.01
        return {**super().coefficients(group, t), "turns_left": coin, "balances": balance}

    def factors(self, p: Tensor) -> dict[str, State]:
        def start(name: str) -> Any:
            def drawn(x: Tensor, index: int) -> Tensor:
                generator = Key(self.seed).fold(name, index).generator()
                numbers = torch.randn(self.rank, len(x), dtype=torch.float64, generator=generator)
                return (numbers / math.sqrt(max(1, len(x)) * (self.rank + 10))).to(x)

            return drawn

        return {"scale": _exact(p, initial=1.0), **{name: _exact(p, self.rank, start(name)) for name in ("left", "right")}}

    def times(self, scale: Tensor, s: Tensors) -> Tensors:
        return {"scale": scale * s["scale"]}

    def fitted(self, v: Tensor, h: Tensor, s: Tensors, c: Any) -> Tensors:
        U, V, d = s["left"], s["right"], s["scale"]
        if c.balances:
            ratio = (torch.linalg.vector_norm(U) / torch.linalg.vector_norm(V)).sqrt()
            U, V = U / ratio, V * ratio
        K = torch.eye(self.rank, dtype=U.dtype, device=U.device) + V @ U.mT
        y = _plus(U, V, d * h)
        w = v / d
        w = w - _solved(K.mT, U @ w) @ V
        inverse = (w - _solved(K, V @ w) @ U) / d
        change = d * _plus(V, U, y) * h - v * inverse
        new = {"scale": d - _rate(c, change.abs().max()) * d * change, "left": U, "right": V}
        if c.turns_left:
            along_y, along_w = V @ y, V @ w
            mu = _rate(c, _difference_norm(y, along_y @ V, w, along_w @ V))
            new["left"] = U - mu * (torch.outer(along_y @ K, y) - torch.outer(along_w @ K, w))
        else:
            along_y, along_w = U @ y, U @ w
            mu = _rate(c, _difference_norm(y, along_y @ U, w, along_w @ U))
            new["right"] = V - mu * (torch.outer(along_y, y + along_y @ V) - torch.outer(along_w, w + along_w @ V))
        return new

    def preconditioned(self, x: Tensor, s: Tensors) -> Tensor:
        U, V, d = s["left"], s["right"], s["scale"]
        return d * _plus(V, U, _plus(U, V, d * x))


def _plus(U: Tensor, V: Tensor, x: Tensor) -> Tensor:
    """(I + U Vᵀ) x."""
    return x + (V @ x) @ U


def _solved(K: Tensor, x: Tensor) -> Tensor:
    """K⁻¹ x, not finite where K is singular."""
    found, failed = torch.linalg.solve_ex(K.double(), x.double().unsqueeze(-1))
    return torch.where(failed == 0, found, math.nan).squeeze(-1).to(x.dtype)


def _difference_norm(y: Tensor, a: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """‖y aᵀ − w bᵀ‖ over all entries, at least its rounding: of ((y − w) (a + b)ᵀ + (y + w) (a − b)ᵀ) / 2.

    Where y comes near ±w, as it must where Q fits and n is small, the squares of y aᵀ and w bᵀ would cancel.
    """
    p, q, r, s = y - w, a + b, y + w, a - b
    square = (p @ p) * (q @ q) + (r @ r) * (s @ s) + 2 * (p @ r) * (q @ s)
    norm = torch.linalg.vector_norm
    return square.abs().sqrt() / 2 + torch.finfo(y.dtype).eps * (norm(y) * norm(a) + norm(w) * norm(b))


@dataclass(frozen=True)
class Triangular(LieGroup):
    """Q upper triangular, n × n:  Q ← Q − μ triu(y yᵀ − w wᵀ) Q,  μ = rate / max|y yᵀ − w wᵀ|."""

    def factors(self, p: Tensor) -> dict[str, State]:
        def identity(x: Tensor, index: int) -> Tensor:
            return torch.eye(len(x), dtype=x.dtype, device=x.device)

        return {"factor": State((p.numel(), p.numel()), p.dtype, initial=identity)}

    def times(self, scale: Tensor, s: Tensors) -> Tensors:
        return {"factor": scale * s["factor"]}

    def fitted(self, v: Tensor, h: Tensor, s: Tensors, c: Any) -> Tensors:
        Q = s["factor"]
        y, w = Q @ h, torch.linalg.solve_triangular(Q.mT, v.unsqueeze(1), upper=False).squeeze(1)
        change = torch.outer(y, y) - torch.outer(w, w)
        return {"factor": Q - _rate(c, change.abs().max()) * change.triu() @ Q}

    def preconditioned(self, x: Tensor, s: Tensors) -> Tensor:
        return s["factor"].mT @ (s["factor"] @ x)
