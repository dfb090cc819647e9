"""Blocks of numbers as codes of a small table, two codes a byte where a table has at most 16 values.

    x ≈ scale · table[code],   scale = max |x| of the block,   code that of the value nearest to x / scale

linear-2:  v_j = −1 + 2 j / (2^b − 1);  table[j] = −v_j² below j = 2^{b−1} − 1, 0 there, v_j² above (denser near 0 than a line).
dynamic:   for b bits, values ± 10^{−i} times midpoints of equal parts of [0.1, 1], twice as many parts for every decade up; and 0, 1.

Wang, Zhou, Li, Huang: 4-bit Shampoo for Memory-Efficient Network Training, NeurIPS 2024, arXiv 2405.18144.
Dettmers: 8-Bit Approximations for Parallelism in Deep Learning, arXiv 1511.04561.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Map = Literal["linear2", "dynamic"]


@functools.cache
def table(name: Map, bits: int) -> Tensor:
    """The sorted values, float32."""
    if name == "linear2":
        v = torch.linspace(-1, 1, 2**bits, dtype=torch.float64)
        squares = v.abs() * v
        squares[2 ** (bits - 1) - 1] = 0
        return squares.float()
    positive = [torch.ones(1, dtype=torch.float64)]
    for i in range(bits - 1):
        borders = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64)
        positive.append((borders[:-1] + borders[1:]) / 2 * 10.0 ** (i - bits + 2))
    values = torch.cat(positive)
    return torch.cat([-values[1:], torch.zeros(1), values]).sort().values.float()


@functools.cache
def _borders(name: Map, bits: int) -> Tensor:
    values = table(name, bits)
    return (values[:-1] + values[1:]) / 2


def encode(x: Tensor, bits: int, name: Map = "linear2", block: int = 64) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows ``(..., n)``, whose blocks lie within a row: uint8 ``(..., bytes)`` and float32 ``(..., blocks)``."""
    n = x.shape[-1]
    blocks = pad(x.float(), (0, -n % block)).unflatten(-1, (-1, block))
    scale = blocks.abs().amax(-1)
    relative = blocks / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    codes = torch.bucketize(relative.contiguous(), _borders(name, bits).to(x.device)).flatten(-2)[..., :n].to(torch.uint8)
    return _packed(codes) if bits <= 4 else codes, scale


def decode(codes: Tensor, scale: Tensor, n: int, bits: int, name: Map = "linear2", block: int = 64) -> Tensor:
    """The rows ``(..., n)``, float32."""
    whole = _unpacked(codes, n) if bits <= 4 else codes
    values = table(name, bits).to(codes.device)[whole.int()]
    return values * scale.repeat_interleave(block, -1)[..., :n]


def bytes_of_row(n: int, bits: int) -> int:
    """Bytes of the codes of n numbers."""
    return -(-n // 2) if bits <= 4 else n


def _packed(codes: Tensor) -> Tensor:
    pairs = pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4


def _unpacked(packed: Tensor, n: int) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., :n]


class QuantizedBlocks:
    """x ≈ scale_block · table[code], the code of the value nearest to x / scale_block.

    Parameters
    ----------
    x : Tensor, shape (..., n)
        Blocks lie within a row of n: lay what belongs together along the last dimension.
    bits : int
        2 to 8; up to 4, two codes share a byte.
    map : {"linear2", "dynamic"}, default "linear2"
    block : int, default 64
    """

    def __init__(self, x: Tensor, bits: int, map: Map = "linear2", block: int = 64) -> None:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim):
            raise TypeError(f"x must be a floating-point tensor of at least one dimension, got {getattr(x, 'dtype', type(x).__name__)}")
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ValueError(f"bits must be a whole number from 2 to 8, got {bits!r}")
        if map not in ("linear2", "dynamic"):
            raise ValueError(f"map must be 'linear2' or 'dynamic', got {map!r}")
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            raise ValueError(f"block must be a whole number of at least 1, got {block!r}; 64 is typical")
        self.shape, self.dtype, self.bits, self.map, self.block = x.shape, x.dtype, bits, map, block
        self.codes, self.scale = encode(x.detach(), bits, map, block)

    def dequantize(self) -> Tensor:
        """Return the tensor that is kept, in its own shape and dtype."""
        return decode(self.codes, self.scale, self.shape[-1], self.bits, self.map, self.block).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def __repr__(self) -> str:
        return f"QuantizedBlocks({tuple(self.shape)}, bits={self.bits}, map={self.map!r}, block={self.block}; {self.nbytes:,} bytes)"


def quantize_blockwise(x: Tensor, bits: int, map: Map = "linear2", block: int = 64) -> QuantizedBlocks:
    """Return x as codes of ``bits`` bits with a scale for every ``block`` numbers of a row; see :class:`QuantizedBlocks`."""
    return QuantizedBlocks(x, bits, map, block)
