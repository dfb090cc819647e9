"""Elementwise arithmetic that is one operation with a Python number and differentiable with a tensor coefficient."""

from __future__ import annotations

import torch
from torch import Tensor


def blend(old: Tensor, new: Tensor, weight: float | Tensor) -> Tensor:
    """``old + weight * (new - old)``; give the small one of two complementary weights, it keeps more digits."""
    if isinstance(weight, float):
        return torch.lerp(old, new, weight)
    return old + weight * (new - old)


def add_scaled(x: Tensor, a: float | Tensor, y: Tensor) -> Tensor:
    """``x + a * y``."""
    if isinstance(a, float):
        return torch.add(x, y, alpha=a)
    return x + a * y


def add_product(x: Tensor, a: float | Tensor, y: Tensor, z: Tensor) -> Tensor:
    """``x + a * y * z``."""
    if isinstance(a, float):
        return torch.addcmul(x, y, z, value=a)
    return x + a * (y * z)
