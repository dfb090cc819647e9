"""A tensor kept in 8 bits: codes of the dynamic-tree map and one scale a block."""

from __future__ import annotations

import torch
from torch import Tensor

from . import quantizer


class Quantized:
    """x ≈ scale_block · map[code], the code of the map's value nearest to x / scale_block.

    Parameters
    ----------
    x : Tensor
        Any floating-point shape; the last block may be shorter.
    signed : bool, default True
        Whether the map spends half its codes on negative values; unsigned maps refuse negative x.
    block : int, default 2048
        Numbers that share a scale, the largest magnitude among them.
    """

    def __init__(self, x: Tensor, signed: bool = True, block: int = 2048) -> None:
        if not x.is_floating_point():
            raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
        if not signed and bool((x < 0).any()):
            raise ValueError(f"x has negative numbers (the least is {float(x.min()):.3g}); use signed=True")
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            raise ValueError(f"block must be a whole number of at least 1, got {block!r}")
        self.shape, self.dtype, self.signed, self.block = x.shape, x.dtype, signed, block
        padded = torch.nn.functional.pad(x.detach().reshape(-1).float(), (0, -x.numel() % block)).view(-1, block)
        codes, self.scale = quantizer.quantize_blocks(padded, signed)
        self.codes = codes.view(-1)[: x.numel()].clone()

    def dequantize(self) -> Tensor:
        """Return the tensor that is kept, in its own shape and dtype."""
        n = self.codes.numel()
        padded = torch.nn.functional.pad(self.codes, (0, -n % self.block), value=quantizer.zero_code(self.signed))
        values = quantizer.decode(padded.view(-1, self.block), self.signed) * self.scale.unsqueeze(-1)
        return values.view(-1)[:n].view(self.shape).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def __repr__(self) -> str:
        return f"Quantized({tuple(self.shape)}, signed={self.signed}, block={self.block}; {self.nbytes:,} bytes)"
