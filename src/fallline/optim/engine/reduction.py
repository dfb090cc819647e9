"""Sums over one parameter from inside a direction, right under packing, stacking and sharding.

A direction that calls :func:`reduce` sets ``reduces = True``. Sums over *all* parameters belong to step sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_current: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("reduction", default=None)


def reduce(x: Tensor) -> Tensor:
    """The sum of ``x`` over each parameter, shaped to combine with ``x``."""
    total = _current.get()
    if total is None:
        raise RuntimeError("reduce() works inside a direction that declares reduces = True")
    return total(x)


@contextmanager
def reducing(total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Make :func:`reduce` mean ``total``."""
    token = _current.set(total)
    try:
        yield
    finally:
        _current.reset(token)


def whole(x: Tensor) -> Tensor:
    """The sum of one whole tensor."""
    return x.sum()


def batched(x: Tensor) -> Tensor:
    """Sums over all dimensions but the first."""
    return x.flatten(1).sum(1).view(-1, *[1] * (x.ndim - 1))
