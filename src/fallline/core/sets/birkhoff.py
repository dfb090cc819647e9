"""The Birkhoff polytope: matrices with entries >= 0 whose rows and columns sum to one.

Its vertices are the permutation matrices, so linear minimisation is the linear assignment problem: the permutation π of least
Σ_i g_{i, π(i)}, in O(n³).

Source: G. Birkhoff, Univ. Nac. Tucumán Rev. A 5 (1946) 147; D. F. Crouse, IEEE Trans. Aerosp. Electron. Syst. 52 (2016) 1679.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fallline.core.sets.base import Region

__all__ = ["Birkhoff"]


class Birkhoff(Region):
    """{X : X >= 0, X 1 = 1, Xᵀ 1 = 1}, for square matrices in the last two dimensions; the others are a batch.

    It has no projection: that onto it has no closed form.
    """

    def linear_minimize(self, g: Tensor) -> Tensor:
        """Return the permutation matrix of the cheapest assignment of rows to columns. Waits for the device: SciPy solves it.

        Raises
        ------
        ValueError
            If the last two dimensions differ, or an entry is not finite.
        """
        self._check_square(g)
        costs = g.detach().double().cpu().reshape(-1, *g.shape[-2:]).numpy()
        if not np.isfinite(costs).all():
            raise ValueError(f"{self!r} needs a finite g, and got a NaN or infinite entry")
        columns = torch.as_tensor(np.stack([linear_sum_assignment(cost)[1] for cost in costs]), device=g.device)
        return torch.zeros_like(g).scatter(-1, columns.view(*g.shape[:-1], 1), 1.0)

    def _violation(self, x: Tensor) -> Tensor:
        self._check_square(x)
        off = torch.maximum((x.sum(dim=-1) - 1).abs(), (x.sum(dim=-2) - 1).abs())
        return torch.maximum(off.amax(dim=-1), -x.amin(dim=(-2, -1)))

    def _check_square(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
            raise ValueError(f"{self!r} holds square matrices in the last two dimensions, got shape {tuple(x.shape)}")

    def __repr__(self) -> str:
        return "Birkhoff()"
