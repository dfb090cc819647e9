"""Finite differences with trainable stencils and auxiliary time steps.

    one step:  u ← u + Σ_k S_k ∗ u  (+ Σ_{j ≤ k} c_jk (S_j ∗ u)(S_k ∗ u)  for order 2),    s of them between two snapshots

The stencils S_k are small convolution kernels; the s steps share them. A stencil of width 2r + 1 moves information by r cells a step,
and an explicit scheme is stable for short steps only: with s auxiliary steps snapshots may lie farther apart, and only these are
compared with data.

Sila Gulgec, Shi, Deshmukh, Pakzad, Takáč: FD-Net with Auxiliary Time Steps: Fast Prediction of PDEs using Hessian-Free Trust-Region
Methods, arXiv 1910.12680.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, pad

from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key, normal_like

CONVOLUTIONS = {1: conv1d, 2: conv2d, 3: conv3d}
PADDINGS = ("circular", "replicate", "reflect", "zeros")


class FDNet(nn.Module):
    """Maps a snapshot to the next: u ← u + Σ_k S_k ∗ u, ``aux_steps`` times.

    Parameters
    ----------
    filter_sizes : sequence of int, default (5,)
        Widths of the stencils, odd; one stencil each.
    order : {1, 2}, default 1
        2 adds the products of pairs of stencils' outputs, for nonlinear equations.
    aux_steps : int, default 1
        s, the steps between two snapshots.
    dimensions : {1, 2, 3}, default 1
        Of the grid.
    padding : {"circular", "replicate", "reflect", "zeros"}, default "circular"
        What is beyond the boundary: the other end, the last value, a mirror, or 0.
    scale : float, default 0.1
        Standard deviation of the weights at the start.
    key : Key or int, default 0
        Of these weights.

    Notes
    -----
    ``forward`` takes fields of shape (batch, *grid), ``rollout`` a field of any batch and a number of snapshots. The authors' list of
    layers is not known; this is the scheme of their text.
    """

    def __init__(self, filter_sizes: Sequence[int] = (5,), order: int = 1, aux_steps: int = 1, *, dimensions: int = 1,
                 padding: str = "circular", scale: float = 0.1, key: Key | int = 0, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if not filter_sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 or n % 2 == 0 for n in filter_sizes):
            raise ValueError(f"filter_sizes must be odd whole numbers such as (3, 5), got {tuple(filter_sizes)}")
        if order not in (1, 2):
            raise ValueError(f"order must be 1 (linear) or 2 (products of pairs), got {order!r}")
        if dimensions not in CONVOLUTIONS:
            raise ValueError(f"dimensions must be 1, 2 or 3, got {dimensions!r}")
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(map(repr, PADDINGS))}, got {padding!r}")
        check_count("aux_steps", aux_steps, "1 compares every step with data")
        self.order, self.aux_steps, self.dimensions, self.padding = order, aux_steps, dimensions, padding
        generator = as_key(key).fold("stencils").generator()
        self.stencils = nn.ParameterList(
            scale * normal_like(torch.empty(1, 1, *(n,) * dimensions, dtype=dtype), generator) for n in filter_sizes)
        pairs = len(filter_sizes) * (len(filter_sizes) + 1) // 2 if order == 2 else 0
        self.products = nn.Parameter(scale * normal_like(torch.empty(pairs, dtype=dtype), generator)) if pairs else None

    def step(self, u: Tensor) -> Tensor:
        """Return the field (batch, *grid) one auxiliary step later."""
        parts = [self._applied(stencil, u) for stencil in self.stencils]
        change = torch.stack(parts).sum(0)
        if self.products is not None:
            pairs = [parts[j] * parts[k] for k in range(len(parts)) for j in range(k + 1)]
            change = change + torch.tensordot(self.products, torch.stack(pairs), 1)
        return u + change

    def _applied(self, stencil: Tensor, u: Tensor) -> Tensor:
        margin = [stencil.shape[-1] // 2] * (2 * self.dimensions)
        fields = u.unsqueeze(1)
        wide = pad(fields, margin) if self.padding == "zeros" else pad(fields, margin, mode=self.padding)
        return CONVOLUTIONS[self.dimensions](wide, stencil).squeeze(1)

    def forward(self, u: Tensor) -> Tensor:
        if u.ndim != self.dimensions + 1:
            raise ValueError(f"u must be a batch of fields on a grid of {self.dimensions} dimensions, got shape {tuple(u.shape)}")
        for _ in range(self.aux_steps):
            u = self.step(u)
        return u

    def rollout(self, u: Tensor, snapshots: int) -> Tensor:
        """Return the next snapshots, shape (snapshots, batch, *grid)."""
        check_count("snapshots", snapshots, "how many to predict")
        found = []
        for _ in range(snapshots):
            u = self(u)
            found.append(u)
        return torch.stack(found)

    def extra_repr(self) -> str:
        widths = tuple(stencil.shape[-1] for stencil in self.stencils)
        return f"filter_sizes={widths}, order={self.order}, aux_steps={self.aux_steps}, dimensions={self.dimensions}, " \
               f"padding={self.padding!r}"
