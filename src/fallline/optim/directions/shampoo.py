"""Shampoo's direction: a preconditioner for every mode of a tensor.

    H_i ← H_i + M_i M_iᵀ,  M_i = unfold_i(G),  H_i starts at ε I
    U = G ×_1 H_1^{−1/2k} … ×_k H_k^{−1/2k}              (matrices: L^{−1/4} G R^{−1/4}; vectors: H^{−1/2} g)
    B ← μ B + U

Gupta, Koren, Singer: Shampoo: Preconditioned Stochastic Tensor Optimization, ICML 2018, arXiv 1802.09568.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core.linalg import inverse_root
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State


def _times_mode(G: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Multiply a batch of tensors by a batch of symmetric matrices along a mode (0 is the first after the batch)."""
    moved = G.movedim(mode + 1, -1)
    flat = moved.reshape(len(G), -1, moved.shape[-1])
    return (flat @ matrix).view(moved.shape).movedim(-1, mode + 1)


def _scale_mode(G: Tensor, diagonal: Tensor, mode: int) -> Tensor:
    """The same with diagonal matrices, given as ``(batch, n)``."""
    shape = [1] * G.ndim
    shape[0], shape[mode + 1] = diagonal.shape
    return G * diagonal.view(shape)


@dataclass(frozen=True)
class KroneckerRoots(Direction):
    """U = G ×_i H_i^{−1/2k}, roots renewed every ``root_every`` steps; modes longer than ``max_dim`` keep the diagonal of H_i.

    State of a mode of length n: H_i and its root, 2n² numbers, or n for a diagonal one.
    """

    scope = "matrix"

    eps: float = 1e-4
    root_every: int = 1
    max_dim: int = 1024
    momentum: bool = False

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape or (1,)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"momentum": group["momentum"], "renew": float((t - 1) % self.root_every == 0)}

    def init(self, p: Tensor) -> dict[str, State]:
        state = {}
        for i, n in enumerate(p.shape):
            if n > self.max_dim:
                state[f"diagonal{i}"] = State((n,), nonnegative=True, initial=self.eps)
            else:
                state[f"statistics{i}"] = State((n, n), initial=functools.partial(self._start, n))
                state[f"root{i}"] = State((n, n))
        if self.momentum:
            state["momentum"] = State()
        return state

    def _start(self, n: int, p: Tensor, index: int) -> Tensor:
        return self.eps * torch.eye(n, device=p.device)

    def _root(self, statistics: Tensor, order: int) -> Tensor:
        """H^(-1/order); NaN wherever H is not finite, which is reported and must not end the decomposition."""
        doubled = 2 * statistics  # the decomposition adds the transpose
        return inverse_root(torch.where(doubled.isfinite(), statistics, 0.0), order, self.eps) + 0 * doubled

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        if g.numel() == 0:
            return g, {}
        order = g.ndim - 1
        new: Tensors = {}
        u = g
        for i in range(order):
            rows = g.movedim(i + 1, 1).flatten(2) if order > 1 else g.unsqueeze(-1)
            if f"diagonal{i}" in s:
                diagonal = s[f"diagonal{i}"] + (rows * rows).sum(-1)
                new[f"diagonal{i}"] = diagonal
                u = _scale_mode(u, diagonal ** (-0.5 / order) + 0 * diagonal, i)  # infinity's root is 0, which would hide it
                continue
            statistics = torch.baddbmm(s[f"statistics{i}"], rows, rows.transpose(1, 2))
            new[f"statistics{i}"] = statistics
            root = s[f"root{i}"]
            if c.renew:
                root = self._root(statistics, 2 * order)
                new[f"root{i}"] = root
            u = _times_mode(u, root, i)
        if self.momentum:
            u = c.momentum * s["momentum"] + u
            new["momentum"] = u
        return u, new
