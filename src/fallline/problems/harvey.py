"""The function on which the last subgradient step may be worse than the average by a factor log T.

    f(x) = max_{i ≤ T+1} ⟨h_i, x⟩;   h_ij = a_j for j < i,  h_ii = −b_i,  0 beyond;   a_j = 1 / (8 (T − j + 1)),  b_i = √i / (2 √T)

on the unit ball of ℝ^T, from 0. Of several maximisers the oracle answers with the h of the smallest index: then steps 1 / √t lead to
f(x_{T+1}) of order log T / √T. Harvey, Liaw, Plan, Randhawa: Tight Analyses for Non-Smooth Stochastic Gradient Descent, COLT 2019,
arXiv 1812.05217.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.constructors import Constrained, Smooth
from fallline.core.problem import Problem
from fallline.core.sets import L2Ball


def harvey_function(T: int = 256) -> Problem:
    """max_i ⟨h_i, x⟩ over the unit ball of ℝ^T; ``gradient`` is the subgradient of the smallest index.

    float64; starts at 0, where f = 0; convex, 1-Lipschitz, piecewise linear; values and subgradients in O(T) operations; T steps.

    Parameters
    ----------
    T : int, default 256
        The number of steps that it is made to spoil, and the dimension; >= 1.
    """
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise ValueError(f"T must be a whole number >= 1, the number of steps that will be taken, got {T!r}")
    index = torch.arange(1, T + 1, dtype=torch.float64)
    a, b = 1 / (8 * (T - index + 1)), (index / T).sqrt() / 2

    def products(x: Tensor) -> Tensor:
        """⟨h_i, x⟩ for all i. Sums run from the left, so that what is equal in exact arithmetic is equal here."""
        before = torch.cat([x.new_zeros(1), (a.to(x) * x).cumsum(0)])
        return before - torch.cat([b.to(x) * x, x.new_zeros(1)])

    def gradient(x: Tensor) -> Tensor:
        chosen = products(x).argmax()  # of equals the first
        position = torch.arange(T, device=x.device)
        return torch.where(position < chosen, a.to(x), torch.where(position == chosen, -b.to(x), 0.0))

    smooth = Smooth(lambda x: products(x).amax(), torch.zeros(T, dtype=torch.float64), gradient=gradient)
    return Constrained(smooth, L2Ball(dim=None), name="harvey", budget=Budget(steps=T))
