"""The dynamic-tree map of 256 values and its nearest-value rounding, in arithmetic alone.

For every decade ``i = 0 .. 6`` the map holds the midpoints of ``linspace(0.1, 1, c_i + 1)`` times ``10**(i - 6)``, with
``c_i = 2**i`` for signed maps (both signs of each) and ``2**(i + 1)`` for unsigned ones, and then 0 and 1. Within a decade
the values are linear in the sorted index ``j = 1, 2, ..`` of the positive values (decade ``i`` starts at ``c_i - c_0 + 1``),

    value(j) = slope_i * j + offset_i,     slope_i = 0.9 * 10**(i - 6) / c_i,

so neither direction needs a table. A decade's line crosses the next one's half-way between their indices, hence ``value(j)`` is the
first line plus a bend at each crossing: sums of ``relu``, which compiled code does in one instruction where a maximum that passes NaN
on takes three and a choice by comparison four. Rounding to the nearest value picks the
decade by comparing with the midpoints between decades and rounds the index within it.

Codes are indices into the sorted map: signed 0 .. 255 with 0 at 127, unsigned 0 .. 255 with 0 at 0.
Source: T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer, arXiv:2110.02861.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DECADES = 7


class Line(NamedTuple):
    """One decade: ``value = slope * index + offset`` for ``first <= index <= last``; ``start`` is the rounding border."""

    slope: float
    offset: float
    first: int
    last: int
    start: float


def lines(signed: bool) -> tuple[Line, ...]:
    """The seven decades of the positive half of the map."""
    result: list[Line] = []
    first, below = 1, 0.0
    for i in range(DECADES):
        count = 2**i if signed else 2 ** (i + 1)
        scale = 10.0 ** (i - DECADES + 1)
        slope = 0.9 * scale / count
        offset = 0.1 * scale + slope * (0.5 - first)
        result.append(Line(slope, offset, first, first + count - 1, (below + slope * first + offset) / 2))
        first += count
        below = slope * (first - 1) + offset
    return tuple(result)


def zero_code(signed: bool) -> int:
    """The code of 0."""
    return 127 if signed else 0


def top_index(signed: bool) -> int:
    """The index of the value 1 among the positive values."""
    return lines(signed)[-1].last + 1


def dynamic_map(signed: bool) -> Tensor:
    """The sorted 256 values of the map, float32."""
    n = top_index(signed)
    codes = torch.arange(zero_code(signed) - (n - 1 if signed else 0), zero_code(signed) + n + 1)
    return decode(codes.to(torch.uint8), signed)


def decode(codes: Tensor, signed: bool) -> Tensor:
    """The values in [-1, 1] of ``codes``, float32."""
    index = codes.to(torch.float32) - zero_code(signed)
    j = index.abs() if signed else index
    first, *others = lines(signed)
    value, slope = torch.relu(j * first.slope + first.offset), first.slope
    for line in others:
        value = value + torch.relu(j - (line.first - 0.5)) * (line.slope - slope)
        slope = line.slope
    value = torch.where(j >= top_index(signed), 1.0, value)
    return _with_sign_of(index, value) if signed else value


def _with_sign_of(x: Tensor, magnitude: Tensor) -> Tensor:
    # Two operations on bits; copysign calls a library, and a choice by comparison takes five.
    sign = x.view(torch.int32) & -(2**31)
    return (magnitude.view(torch.int32) | sign).view(torch.float32)


def encode(x: Tensor, signed: bool, zero_up_to: float | None = None) -> Tensor:
    """The codes of the map's values nearest to ``x`` in [-1, 1] (unsigned: [0, 1]).

    Magnitudes up to ``zero_up_to`` get the code of 0 and larger ones never do; by default half the smallest value, which is nearest.
    """
    a = x.abs() if signed else x
    pieces = lines(signed)
    scale, shift = torch.full_like(a, 1 / pieces[0].slope), torch.full_like(a, -pieces[0].offset / pieces[0].slope)
    for line in pieces[1:]:
        above = a >= line.start
        scale = torch.where(above, 1 / line.slope, scale)
        shift = torch.where(above, -line.offset / line.slope, shift)
    # The shift is 8/9 count - 1/2 (signed) or 8/9 count - 3/2, so that it tells the last index of its decade as well.
    border = 2.25 * shift + (0.625 if signed else 1.875)
    j = torch.floor(torch.minimum(a * scale + shift + 0.5, border))
    j = torch.relu(j - 1) + 1
    j = torch.where(a <= (pieces[0].start if zero_up_to is None else zero_up_to), 0.0, j)
    final = pieces[-1]
    middle = (1.0 + final.slope * final.last + final.offset) / 2
    j = torch.where(x >= middle, float(top_index(signed)), j)
    # The map holds 1 but not -1.
    return (_with_sign_of(x, j) + zero_code(True) if signed else j).to(torch.uint8)


def quantize_blocks(x: Tensor, signed: bool, zero_up_to: float | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``x`` with shape ``(..., block)``; a block of zeros has scale 0 and the code of 0. See :func:`encode`."""
    scale = x.abs().amax(dim=-1)
    # The inverse of a subnormal scale would be infinite: such a block counts as zeros.
    inverse = torch.where(scale >= torch.finfo(scale.dtype).tiny, 1.0 / scale, 0.0)
    return encode(x * inverse.unsqueeze(-1), signed, zero_up_to), scale
