"""A factor whose eigenvectors and whose root are kept in a few bits.

    V = decode(U), made orthonormal again by Björck steps V ← 1.5 V − 0.5 V Vᵀ V
    statistics:  A = β V diag(λ) Vᵀ + (1 − β) M Mᵀ = P Σ Pᵀ;   keep λ = diag Σ whole, and codes of P
    root:        V (diag(λ) + max(λ) ε I)^{−1/p} Vᵀ;   keep its diagonal whole, and codes of the rest

Rounding eigenvectors harms small eigenvalues far less than rounding A does, and small eigenvalues are what a root magnifies.

Wang, Zhou, Li, Huang: 4-bit Shampoo for Memory-Efficient Network Training, NeurIPS 2024, arXiv 2405.18144.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.linalg import bjorck
from fallline.optim.directions.kronecker.factors import Exponent, Factor, Full, times_mode, told
from fallline.optim.engine import codebook
from fallline.optim.engine.parts import Tensors
from fallline.optim.engine.state import State


@dataclass(frozen=True)
class EigenCodes(Factor):
    """λ and the root's diagonal whole; the eigenvectors and the rest of the root in codes, about n² bytes at 4 bits; all in float32.

    Parameters
    ----------
    eps : float
        ε; λ starts there.
    bits, block : int
        Of the codes; a block lies within one eigenvector.
    learning, rooting : int
        Björck steps before statistics are joined, and before a root.
    small : Full
        Takes factors of fewer than ``min_size`` entries.
    min_size : int
    """

    eps: float
    bits: int
    block: int
    learning: int
    rooting: int
    small: Full
    min_size: int = 4096

    def init(self, n: int) -> dict[str, State]:
        if n * n < self.min_size:
            return self.small.init(n)
        width, blocks = codebook.bytes_of_row(n, self.bits), -(-n // self.block)
        states = {"eigenvalues": State((n,), torch.float32, nonnegative=True, initial=self.eps),
                  "root_diagonal": State((n,), torch.float32, initial=1.0)}
        for name, start in (("vectors", torch.eye), ("root", torch.zeros)):
            states[f"{name}_codes"] = State((n, width), torch.uint8, initial=self._started(start, n, 0))
            states[f"{name}_scales"] = State((n, blocks), torch.float32, initial=self._started(start, n, 1))
        return states

    def _started(self, start: Callable[..., Tensor], n: int, piece: int) -> Callable[[Tensor, int], Tensor]:
        shape = (n,) if start is torch.eye else (n, n)
        return lambda p, index: self._encoded(start(*shape, device=p.device))[piece]

    def _encoded(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Of the columns of a matrix, so that a block is part of one."""
        return codebook.encode(matrix.mT, self.bits, "linear2", self.block)

    def _decoded(self, s: Tensors, name: str, n: int) -> Tensor:
        return codebook.decode(s[f"{name}_codes"], s[f"{name}_scales"].float(), n, self.bits, "linear2", self.block).mT

    def _kept(self, name: str, matrix: Tensor) -> Tensors:
        codes, scales = self._encoded(matrix)
        return {f"{name}_codes": codes, f"{name}_scales": scales}

    @property
    def differentiable(self) -> bool:
        return False

    def observed(self, rows: Tensor, s: Tensors, c: Any) -> Tensors:
        if "eigenvalues" not in s:
            return self.small.observed(rows, s, c)
        values, rows = s["eigenvalues"].float(), rows.float()
        V = bjorck(self._decoded(s, "vectors", values.shape[-1]), self.learning)
        A = torch.baddbmm((V * values.unsqueeze(-2)) @ V.mT, rows, rows.mT, beta=c.keep_statistics, alpha=c.new_statistics)
        spectrum, P = _decomposed(A)
        good = told(P, torch.ones(len(A), dtype=torch.bool, device=A.device), self.small.say)
        return _where(good, {"eigenvalues": spectrum.clamp(min=0), **self._kept("vectors", P)}, s)

    def renewed(self, key: Any, s: Tensors, exponent: Exponent, c: Any) -> Tensors:
        if "eigenvalues" not in s:
            return self.small.renewed(key, s, exponent, c)
        values = s["eigenvalues"].float()
        V = bjorck(self._decoded(s, "vectors", values.shape[-1]), self.rooting)
        damped = values + self.eps * values.amax(-1, keepdim=True)
        root = (V * damped.pow(-1 / exponent.order).unsqueeze(-2)) @ V.mT
        good = told(root, values.amax(-1) > 0, self.small.say)  # eigenvalues of long-silent gradients end at 0
        diagonal = root.diagonal(dim1=-2, dim2=-1)
        return _where(good, {"root_diagonal": diagonal.clone(), **self._kept("root", root - torch.diag_embed(diagonal))}, s)

    def multiply(self, x: Tensor, mode: int, s: Tensors, exponent: Exponent, c: Any) -> Tensor:
        if "eigenvalues" not in s:
            return self.small.multiply(x, mode, s, exponent, c)
        diagonal = s["root_diagonal"].float()
        root = self._decoded(s, "root", diagonal.shape[-1]) + torch.diag_embed(diagonal)
        return times_mode(x, ((root + root.mT) / 2).to(x.dtype), mode)


def _decomposed(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors, NaN for the matrices of the batch that have none."""
    try:
        values, vectors = torch.linalg.eigh(A)
    except torch.linalg.LinAlgError:
        if len(A) == 1:
            return torch.full_like(A[:, 0], torch.nan), torch.full_like(A, torch.nan)
        parts = [_decomposed(matrix) for matrix in A.split(1)]
        values, vectors = (torch.cat(list(found)) for found in zip(*parts, strict=True))
    return values, vectors


def _where(good: Tensor, new: Tensors, old: Tensors) -> Tensors:
    """The new entries for the matrices that are good, the old ones for the others."""
    return {name: torch.where(good.view(-1, *[1] * (value.ndim - 1)), value, old[name].to(value.dtype)) for name, value in new.items()}
