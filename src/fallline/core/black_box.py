"""What comes back from a function of which only values can be had, and the box in which to look for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def number(value: Any, points: Tensor) -> Tensor:
    """Return the value of one point as a 0-d tensor like ``points``."""
    try:
        return torch.as_tensor(value, dtype=points.dtype, device=points.device).reshape(())
    except (TypeError, ValueError, RuntimeError):
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"fun must return one number for one point, got {found}") from None


def row_values(fun: Callable[[Tensor], Any], points: Tensor) -> Tensor:
    """Return the values of all rows of ``points``, shape ``(n,)``, from one call."""
    values = fun(points)
    if not isinstance(values, Tensor) or values.shape != points.shape[:1]:
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise TypeError(f"fun with vectorized=True must take {tuple(points.shape)} and return a tensor of shape ({len(points)},), "
                        f"got {found}")
    return values


def checked_bounds(bounds: Any, x0: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Return the bounds if they are a box in the space of ``x0``."""
    try:
        low, high = bounds
        ends = [torch.as_tensor(end, dtype=x0.dtype).expand(x0.shape) for end in (low, high)]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"bounds must be a pair (low, high) of numbers or of tensors of shape {tuple(x0.shape)}, "
                         f"got {bounds!r}") from None
    if not bool((torch.isfinite(ends[0]) & torch.isfinite(ends[1]) & (ends[0] < ends[1])).all()):
        raise ValueError(f"bounds must be finite with low < high, got {bounds!r}")
    return low, high
