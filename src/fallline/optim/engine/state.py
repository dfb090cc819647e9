"""Declarations of optimizer state: what an entry is, so that a storage knows how to keep it.

A direction answers ``init(p)`` with a mapping ``name -> State``. The engine allocates, packs, stacks, shards and
encodes; the direction only ever sees plain tensors in the working precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Initial = float | Literal["parameter"] | Callable[[Tensor, int], Tensor]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of the arithmetic for a parameter of ``dtype``: float32 for half precision, else its own."""
    if dtype.is_complex:
        dtype = dtype.to_real()
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@dataclass(frozen=True)
class State:
    """One entry of optimizer state.

    Parameters
    ----------
    shape : tuple of int or None
        ``None`` (default) means the shape of the parameter. In the elementwise scope the only other choice is ``()``, one number a
        parameter, which rules read and never write (see :meth:`.Optimizer.measure`). Directions of the matrix scope may declare any
        shape; the engine puts the batch dimension before it. In the joint scope a shape, of one dimension or more, is that of an entry
        of the whole vector, which belongs to no parameter; ``optimizer.state`` shows it with the first one.
    rows : int or None
        Joint scope: ``(rows, n)``, so many vectors like the parameters', and not one.
    dtype : torch.dtype or None
        A fixed precision that every storage must keep; ``None`` leaves it to the storage. Joint rules see such an entry as it is, in
        float64 or in whole numbers too; others in the working precision.
    nonnegative : bool
        Whether the entry never is negative, so that a quantising storage may spend no code on signs.
    initial : float, "parameter" or callable
        The starting value: a constant, the parameter itself, or a function of it and its position in the optimizer.
    labels : tuple of str, optional
        Names of the parts along the first axis, for entries whose parts come and go one by one (from process to process): the
        optimizer's state shows each as ``name.label``. Matrix scope only.
    along : int, optional
        The axis of a matrix of which the entry has one row for every index, for rules on parts of matrices: it is cut with them.
    """

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    nonnegative: bool = False
    initial: Initial = field(default=0.0, compare=False)
    labels: tuple[str, ...] | None = None
    along: int | None = None
    rows: int | None = None

    @property
    def is_number(self) -> bool:
        """Whether there is one number a parameter."""
        return self.shape == ()

    def shape_for(self, p: Tensor) -> tuple[int, ...]:
        """The entry's shape for the plain tensor ``p``."""
        if self.shape is not None:
            return self.shape
        return tuple(p.shape) if self.rows is None else (self.rows, *p.shape)

    def start(self, p: Tensor, dtype: torch.dtype, index: int = 0) -> Tensor:
        """The initial value for the plain tensor ``p``, in ``dtype``."""
        if callable(self.initial):
            return self.initial(p, index).to(dtype)
        if self.initial == "parameter":
            return p.detach().to(dtype, copy=True)
        return torch.full(self.shape_for(p), float(self.initial), dtype=dtype, device=p.device)


def like(
    p: Tensor,
    nonnegative: bool = False,
    axis: int | None = None,
    precision: torch.dtype | None = None,
    initial: Initial = 0.0,
) -> State:
    """Declare an entry shaped like ``p``, or, with ``axis``, one number for every index along that axis of ``p``.

    Parameters
    ----------
    p : Tensor
        The parameter as the direction sees it (matrix scope: one matrix, without the batch dimension).
    nonnegative, precision, initial
        See :class:`State`.
    axis : int, optional
        Only for the matrix scope.
    """
    if precision is not None and not (isinstance(precision, torch.dtype) and precision.is_floating_point):
        raise ValueError(f"the precision of state must be a floating-point torch.dtype such as torch.bfloat16, got {precision!r}")
    return State(None if axis is None else (p.shape[axis],), precision, nonnegative, initial)
