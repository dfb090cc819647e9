"""Elementwise arithmetic that is one operation with a Python number and differentiable with a tensor coefficient.

Rules are out of place, because they are also traced, unrolled and forked. Where the engine runs one eagerly, half of the time would go
into temporaries and copies of new state; there, ``out=over(x)`` lets a result take the place of a tensor that is not used any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_overwrites: ContextVar[bool] = ContextVar("overwrites", default=False)


def over(x: Tensor) -> Tensor | None:
    """``x`` as the place of a result where that is allowed, else ``None``, a new place.

    Give a state entry where its new value is computed and its old one is not needed again, or a temporary of the rule's own.
    """
    return x if _overwrites.get() else None


@contextmanager
def overwriting() -> Iterator[None]:
    """Let :func:`over` allow it."""
    token = _overwrites.set(True)
    try:
        yield
    finally:
        _overwrites.reset(token)


def blend(old: Tensor, new: Tensor, weight: float | Tensor, out: Tensor | None = None) -> Tensor:
    """``old + weight * (new - old)``; give the small one of two complementary weights, it keeps more digits."""
    if isinstance(weight, float):
        return torch.lerp(old, new, weight, out=out)
    return old + weight * (new - old)


def scaled(x: Tensor, a: float | Tensor, out: Tensor | None = None) -> Tensor:
    """``a * x``."""
    return torch.mul(x, a, out=out)


def add_scaled(x: Tensor, a: float | Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """``x + a * y``."""
    if isinstance(a, float):
        return torch.add(x, y, alpha=a, out=out)
    return x + a * y


def add_product(x: Tensor, a: float | Tensor, y: Tensor, z: Tensor, out: Tensor | None = None) -> Tensor:
    """``x + a * y * z``."""
    if isinstance(a, float):
        return torch.addcmul(x, y, z, value=a, out=out)
    return x + a * (y * z)
