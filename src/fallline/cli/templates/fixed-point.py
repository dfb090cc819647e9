"""A fixed point x = T(x) of a nonexpansive map: replace ``rotate`` by yours.

    fallline compare my_problem.py --methods halpern,picard
"""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl


def problem(seed: int) -> fl.Problem:
    """Return the problem at one seed, which draws where to start; answers are judged by the norm of x − T(x)."""
    angles = torch.linspace(0.1, 3.0, 10, dtype=torch.float64)

    def rotate(x: Tensor) -> Tensor:
        """Turn ten planes about the point 1, each by its own angle."""
        u, v = (x - 1).view(10, 2).unbind(1)
        return 1 + torch.stack([angles.cos() * u - angles.sin() * v, angles.sin() * u + angles.cos() * v], 1).view(20)

    start = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return fl.FixedPoint(rotate, start, name="my-fixed-point", budget=fl.Budget(maps=200))
