"""Preconditioners from a window of compressed gradients, with what compression leaves out fed back.

    a = ξ + g;   c = compressed(a);   ξ ← a − c;   the newest row of Γ is c

    full-matrix Fisher:   u = (λ I + Γᵀ Γ / m)⁻¹ c = m Γᵀ (m λ I + Γ Γᵀ)⁻¹ e,  or of g in place of c
    full-matrix AdaGrad:  u = (1/ε) (c − U Uᵀ c) + U (Σ + ε I)⁻¹ Uᵀ c = Γᵀ V (Σ + ε I)⁻¹ Vᵀ e,   Γ Γᵀ = V Σ² Vᵀ,  Γᵀ = U Σ Vᵀ

The second forms are the first without their difference of large numbers: c = Γᵀ e is a row of the window, and nothing of it lies
outside.

Modoranu, Kalinov, Kurtic, Frantar, Alistarh: Error Feedback Can Accurately Compress Preconditioners, ICML 2024, arXiv 2306.06098;
Agarwal et al.: Efficient Full-Matrix Adaptive Regularization (GGT), ICML 2019, arXiv 1806.02958.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from fallline.core.compressors import power_step, top_k
from fallline.core.fisher_window import (
    LowRankRows,
    Rows,
    SparseRows,
    factored,
    inverse_times,
    inverse_times_row,
    with_products,
    with_row,
)
from fallline.core.keys import Key
from fallline.optim.engine.arithmetic import add_scaled, over
from fallline.optim.engine.layout import numel
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like

Shapes = tuple[tuple[int, ...], ...]


class Compressor(Protocol):
    """How a row of the window is made, and kept."""

    def with_shapes(self, shapes: Shapes) -> Self:
        """The compressor of parameters with these shapes."""

    def entries(self, m: int, p: Tensor) -> dict[str, State]:
        """The state of a window of m rows for vectors like ``p``."""

    def push(self, a: Tensor, slot: int, s: Tensors) -> tuple[Tensor, Rows, Tensors]:
        """c as a vector, exactly what the window keeps; the window that holds it in the given row; its state."""


@dataclass(frozen=True)
class TopK:
    """The ⌊density · n⌋ entries of the whole vector that are largest in size: 8 bytes each in float32."""

    density: float

    def with_shapes(self, shapes: Shapes) -> Self:
        return self

    def kept(self, n: int) -> int:
        """Entries in a row."""
        share = self.density * n
        k = int(share + 2 * math.ulp(share))  # 0.29 · 100, as computed, lies below 29
        if k < 1:
            raise ValueError(f"density must keep at least one of the {n} numbers of a parameter group, got {self.density:g}; put more "
                             "parameters into the group or raise it")
        return k

    def entries(self, m: int, p: Tensor) -> dict[str, State]:
        shape = (m, self.kept(p.numel()))
        return {"indices": State(shape, torch.int32), "values": State(shape, p.dtype)}

    def push(self, a: Tensor, slot: int, s: Tensors) -> tuple[Tensor, Rows, Tensors]:
        chosen, kept = top_k(a, self.kept(len(a)))
        c = torch.zeros_like(a).index_add(0, chosen, kept)
        indices = with_row(s["indices"], slot, chosen, out=over(s["indices"]))
        values = with_row(s["values"], slot, kept, out=over(s["values"]))
        return c, SparseRows(indices, values, len(a)), {"indices": indices, "values": values}


@dataclass(frozen=True)
class LowRank:
    """Every parameter as a matrix of at most this rank, by a power iteration that goes on from step to step; vectors stay whole.

    A gradient of r (n + m) numbers for each n × m. The bases start from normal numbers of the seed.
    """

    rank: int
    seed: int = 0
    shapes: Shapes = ()

    def with_shapes(self, shapes: Shapes) -> Self:
        return replace(self, shapes=shapes)

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """Rows, columns and rank of each."""
        sizes = [(shape[0], numel(shape[1:])) if shape else (1, 1) for shape in self.shapes]
        return tuple((rows, columns, min(self.rank, rows, columns)) for rows, columns in sizes)

    def entries(self, m: int, p: Tensor) -> dict[str, State]:
        left, right = sum(n * r for n, _, r in self.matrices), sum(n * r for _, n, r in self.matrices)

        def start(x: Tensor, index: int) -> Tensor:
            generator = Key(self.seed).fold("basis", index).generator()
            return torch.randn(right, dtype=torch.float64, generator=generator).to(x)

        return {"left": State((m, left), p.dtype), "right": State((m, right), p.dtype),
                "basis": State((right,), p.dtype, initial=start)}

    def push(self, a: Tensor, slot: int, s: Tensors) -> tuple[Tensor, Rows, Tensors]:
        parts = a.split([rows * columns for rows, columns, _ in self.matrices])
        bases = s["basis"].split([columns * rank for _, columns, rank in self.matrices])
        lefts, rights, again, products = [], [], [], []
        for part, basis, (rows, columns, rank) in zip(parts, bases, self.matrices, strict=True):
            old = basis.view(columns, rank)
            p, q = power_step(part.view(rows, columns), old)
            lefts.append(p.reshape(-1))
            rights.append(q.reshape(-1))
            again.append(torch.where((q != 0).any(0), q, old).reshape(-1))  # a gradient of zeros leaves a basis to go on from
            products.append((p.double() @ q.double().mT).reshape(-1))  # a rounded one would be none of the window's rows
        left = with_row(s["left"], slot, torch.cat(lefts), out=over(s["left"]))
        right = with_row(s["right"], slot, torch.cat(rights), out=over(s["right"]))
        return torch.cat(products), LowRankRows(left, right, self.matrices), {"left": left, "right": right, "basis": torch.cat(again)}


@dataclass(frozen=True)
class _Compressed(Direction):
    """v ← μ v + u over all parameters of a group, u from a window of ``m`` compressed gradients."""

    m: int
    compressor: Compressor
    scope = "joint"

    def with_shapes(self, shapes: Shapes) -> Direction:
        return replace(self, compressor=self.compressor.with_shapes(shapes))

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"slot": (t - 1) % self.m, "momentum": group["momentum"]}

    def init(self, p: Tensor) -> dict[str, State]:
        own = {"error": like(p), "momentum": like(p), "gram": State((self.m, self.m), torch.float64)}
        return own | self.compressor.entries(self.m, p)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        a = s["error"] + g
        kept, rows, new = self.compressor.push(a, c.slot, s)
        gram = with_products(s["gram"], c.slot, rows.dot(kept), out=over(s["gram"]))
        v = add_scaled(self.preconditioned(g, rows, gram, c).to(g.dtype), c.momentum, s["momentum"])
        return v, {**new, "error": (a - kept).to(a.dtype), "gram": gram, "momentum": v}

    def preconditioned(self, g: Tensor, rows: Rows, gram: Tensor, c: Any) -> Tensor:
        """u, from a window whose row ``c.slot`` is the newest."""
        raise NotImplementedError


@dataclass(frozen=True)
class CompressedFisher(_Compressed):
    """u = (λ I + Γᵀ Γ / m)⁻¹ c; of the gradient itself if ``dense``."""

    dense: bool = False

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**super().coefficients(group, t), "damp": group["damp"]}

    def preconditioned(self, g: Tensor, rows: Rows, gram: Tensor, c: Any) -> Tensor:
        factor = factored(gram, c.damp)
        return inverse_times(rows, factor, g, c.damp) if self.dense else inverse_times_row(rows, factor, c.slot)


@dataclass(frozen=True)
class CompressedAdaGrad(_Compressed):
    """u = Γᵀ V (Σ + ε I)⁻¹ Vᵀ e."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**super().coefficients(group, t), "eps": group["eps"]}

    def preconditioned(self, g: Tensor, rows: Rows, gram: Tensor, c: Any) -> Tensor:
        squares, vectors = torch.linalg.eigh(gram)
        weights = vectors @ (vectors[c.slot] / (squares.clamp(min=0).sqrt() + c.eps))
        return rows.combine(weights)
