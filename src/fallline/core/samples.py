"""Random data: which samples a realisation looks at, and the parts of a sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from fallline.core.keys import Key

if TYPE_CHECKING:
    from fallline.core.problem import Problem


class Parts(Sequence["Problem"]):
    """The parts of a problem's sum, made when asked for, on the problem's bill."""

    def __init__(self, whole: Problem, count: int) -> None:
        self._whole, self._count = whole, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"part {index} of {self._count}")
        return self._whole._part(index % self._count)


def check_size(size: int | None) -> None:
    """Raise unless ``size`` is None or a whole number of at least 1."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be a whole number of at least 1 (data points), got {size!r}")


def batch_indices(n: int, key: Key, size: int | None, indices: Tensor | Sequence[int] | None, default: int) -> Tensor:
    """Return which of ``n`` data points a realisation looks at: drawn uniformly with replacement unless given."""
    check_size(size)
    if indices is None:
        return torch.randint(n, (default if size is None else size,), generator=key.generator())
    chosen = torch.as_tensor(indices)
    if chosen.ndim != 1 or not len(chosen) or chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
        raise ValueError("indices must be one or more whole numbers in a 1-D tensor or list, "
                         f"got shape {tuple(chosen.shape)} of {chosen.dtype}")
    least, most = int(chosen.min()), int(chosen.max())
    if least < 0 or most >= n:
        raise ValueError(f"indices must be from 0 to {n - 1} for {n} data points, got {least if least < 0 else most}")
    return chosen


def data_tuple(data: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the data as tensors that agree in their first dimension."""
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    others = sorted({type(t).__name__ for t in tensors if not isinstance(t, Tensor)})
    if others:
        raise TypeError(f"data must be a tensor or a tuple of tensors, got {', '.join(others)} in it; torch.as_tensor makes tensors")
    lengths = {len(t) for t in tensors}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"data must be tensors with one common, non-zero first dimension, got {[len(t) for t in tensors]}")
    return tensors
