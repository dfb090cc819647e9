"""Sums and maxima over one parameter from inside a direction, right under packing, stacking and sharding.

A direction that calls :func:`reduce` sets ``reduces = True``. Sums over *all* parameters belong to step sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch import Tensor

How = Literal["sum", "max"]
Reduction = Callable[[Tensor, How], Tensor]

_current: ContextVar[Reduction | None] = ContextVar("reduction", default=None)


def reduce(x: Tensor, how: How = "sum") -> Tensor:
    """The sum of ``x`` over each parameter, or the maximum of an ``x`` that is nowhere negative, shaped to combine with ``x``."""
    reduction = _current.get()
    if reduction is None:
        raise RuntimeError("reduce() works inside a direction that declares reduces = True")
    return reduction(x, how)


@contextmanager
def reducing(reduction: Reduction) -> Iterator[None]:
    """Make :func:`reduce` mean ``reduction``."""
    token = _current.set(reduction)
    try:
        yield
    finally:
        _current.reset(token)


def whole(x: Tensor, how: How) -> Tensor:
    """Of one whole tensor."""
    return x.amax() if how == "max" and x.numel() else x.sum()


def batched(x: Tensor, how: How) -> Tensor:
    """Over all dimensions but the first."""
    rows = x.flatten(1)
    return (rows.amax(1) if how == "max" and x.numel() else rows.sum(1)).view(-1, *[1] * (x.ndim - 1))
