"""Operations of a computation in linear algebra: products of matrices and vectors, factors and solves, entry-wise products and sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
Shape = tuple[int, ...]


def _entries(*shapes: Any, out_shape: Shape = (), **_: Any) -> int:
    """One for every entry of the result, or of what is summed to it."""
    given = [shape for shape in (*shapes, out_shape) if isinstance(shape, tuple | torch.Size)]
    return max(math.prod(shape) for shape in given)


def _matrix_vector(a: Shape, x: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a)


def _cholesky(a: Shape, *_: Any, **__: Any) -> int:
    return math.prod(a) * a[-1] // 3


def _cholesky_solve(b: Shape, a: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(b) * a[-1]


COUNTED: dict[Any, Callable[..., int]] = {
    aten.mv: _matrix_vector, aten.dot: _matrix_vector, aten.linalg_cholesky_ex: _cholesky, aten.cholesky_solve: _cholesky_solve,
    **dict.fromkeys((aten.add, aten.sub, aten.sub_, aten.mul, aten.div, aten.pow, aten.sum, aten.index_add), _entries),
}


def operations(call: Callable[[], Any]) -> int:
    """How many ``call()`` takes."""
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        call()
    return int(counter.get_total_flops())
