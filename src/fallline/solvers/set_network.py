"""The network of Neur2RO: two sums over the items of a program, and a value of both; and it again as part of a mixed-integer program.

    Φ(x, ξ) = value( post_x(Σ_i embed_x(x_i, features_i)), post_ξ(Σ_i embed_ξ(ξ_i, features_i)) )

Embeddings have no bias, so that rows of zeros count for nothing and one network serves programs of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from fallline.solvers.relu_milp import Affine, Array, Program


def _layers(widths: Sequence[int], bias: bool) -> nn.Sequential:
    made = [part for ends in pairwise(widths) for part in (nn.Linear(*ends, bias=bias), nn.ReLU())]
    return nn.Sequential(*made[:-1])


class SetNetwork(nn.Module):
    """Φ on rows (x_i, ξ_i, features_i) of items.

    Parameters
    ----------
    features : int
    embed : pair of int, default (32, 16)
        Hidden and output width of the network of an item, without bias.
    post : pair of int, default (64, 8)
        Of the network of the sum over items, without bias.
    value : int, default 8
        Hidden width of the network of both, with bias.
    """

    def __init__(self, features: int, embed: tuple[int, int] = (32, 16), post: tuple[int, int] = (64, 8), value: int = 8) -> None:
        super().__init__()
        self.x_embed, self.xi_embed = (_layers([1 + features, *embed], bias=False) for _ in range(2))
        self.x_post, self.xi_post = (_layers([embed[1], *post], bias=False) for _ in range(2))
        self.value = _layers([2 * post[1], value, 1], bias=True)

    def forward(self, rows: Tensor) -> Tensor:
        """Return Φ, (B, n, 2 + features) to (B,)."""
        x, xi, features = rows[..., :1], rows[..., 1:2], rows[..., 2:]
        return self.value(torch.cat([self._x_part(x, features), self._xi_part(xi, features)], -1)).squeeze(-1)

    def _x_part(self, x: Tensor, features: Tensor) -> Tensor:
        return self.x_post(self.x_embed(torch.cat([x, features], -1)).sum(-2))

    def _xi_part(self, xi: Tensor, features: Tensor) -> Tensor:
        return self.xi_post(self.xi_embed(torch.cat([xi, features], -1)).sum(-2))

    @torch.no_grad()
    def over_x(self, program: Program, x: Affine, scenarios: Sequence[Array], features: Array) -> Affine:
        """Put Φ(x, ξ_k) into a program for every scenario, with binary variables x: shape (scenarios,).

        embed_x(x_i) is affine in a binary x_i, so that the ReLUs of embeddings need no binaries; those of post_x are shared.
        """
        rows = torch.as_tensor(features)
        off, on = (self.x_embed(torch.cat([torch.full_like(rows[:, :1], bit), rows], -1)).numpy() for bit in (0.0, 1.0))
        first = program.network(self.x_post, x.then((on - off).T, off.sum(0)))
        width = len(first.constant)
        parts = []
        for xi in scenarios:
            second = self._xi_part(torch.as_tensor(xi).unsqueeze(-1), rows).numpy()
            both = first.then(np.eye(2 * width, width), np.append(np.zeros(width), second))
            parts.append(program.network(self.value, both))
        return Affine.stack(parts)

    @torch.no_grad()
    def over_xi(self, program: Program, x: Array, xi: Affine, features: Array) -> Affine:
        """Put Φ(x, ξ) into a program with variables ξ: shape (1,)."""
        rows = torch.as_tensor(features)
        parts = []
        for i, row in enumerate(features):
            inputs = Affine(xi.variables[i:i + 1], np.eye(1 + len(row), 1), np.append(0.0, row))
            parts.append(program.network(self.xi_embed, inputs))
        width = len(parts[0].constant)
        second = program.network(self.xi_post, Affine.stack(parts).then(np.tile(np.eye(width), len(parts))))
        first = self._x_part(torch.as_tensor(x).unsqueeze(-1), rows).numpy()
        both = second.then(np.eye(2 * len(first), len(first), -len(first)), np.append(first, np.zeros(len(first))))
        return program.network(self.value, both)
