"""How optimizer state lives in memory.

A storage picks a codec for every declared entry. A codec keeps one entry as one or more flat tensors ("pieces") and
turns them into a plain tensor of the working precision and back; both run inside the rule's compiled kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import quantizer
from .state import State


@dataclass(frozen=True)
class Codec:
    """One entry kept whole, in ``dtype``."""

    dtype: torch.dtype
    pieces: ClassVar[tuple[str, ...]] = ("",)
    block: ClassVar[int] = 1

    def allocate(self, numel: int, device: torch.device) -> tuple[Tensor, ...]:
        """Pieces that decode to zeros."""
        return (torch.zeros(numel, dtype=self.dtype, device=device),)

    def decode(self, pieces: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The entry in the working precision; whole numbers (indices) stay whole."""
        return pieces[0].to(dtype) if pieces[0].is_floating_point() else pieces[0]

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pieces of ``x``."""
        return (x.to(self.dtype),)


@dataclass(frozen=True)
class Exact(Codec):
    """One entry kept whole that a rule sees in ``dtype``, whatever the working precision."""

    def decode(self, pieces: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return pieces[0]


@dataclass(frozen=True)
class BlockwiseCodec(Codec):
    """8-bit codes with one float32 scale a block; works on tensors whose last dimension is the block."""

    signed: bool = True
    block: int = 2048  # type: ignore[misc]
    pieces = ("", "_scale")

    def allocate(self, numel: int, device: torch.device) -> tuple[Tensor, ...]:
        zero = quantizer.zero_code(self.signed)
        codes = torch.full((numel,), zero, dtype=torch.uint8, device=device)
        return codes, torch.zeros(numel // self.block, device=device)

    def decode(self, pieces: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        codes, scale = pieces
        return (quantizer.decode(codes, self.signed) * scale.unsqueeze(-1)).to(dtype)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        # Deviation from the paper's nearest value: a positive second moment never becomes 0, where m / (√0 + ε) explodes.
        return quantizer.quantize_blocks(x.float(), self.signed, None if self.signed else 0.0)


@dataclass(frozen=True)
class Storage:
    """Full precision: an entry has its parameter's dtype, but float32 for bfloat16 and float16 parameters."""

    supports_complex: ClassVar[bool] = True

    def codec(self, state: State, numel: int, working: torch.dtype) -> Codec:
        """The codec of one entry of a parameter with ``numel`` elements."""
        return Codec(state.dtype or working)


@dataclass(frozen=True)
class BFloat16(Storage):
    """Every entry that leaves its precision open is rounded to bfloat16: half the memory of float32."""

    def codec(self, state: State, numel: int, working: torch.dtype) -> Codec:
        return Codec(state.dtype or torch.bfloat16)


@dataclass(frozen=True)
class Blockwise8bit(Storage):
    """One byte a number plus one float32 a block; tensors below ``min_size`` elements stay whole.

    The map is the dynamic tree of Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv:2110.02861).
    """

    supports_complex = False

    block: int = 2048
    min_size: int = 4096

    def __post_init__(self) -> None:
        for name, value, least in (("block", self.block, 2), ("min_size", self.min_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")

    def codec(self, state: State, numel: int, working: torch.dtype) -> Codec:
        if state.dtype is not None or numel < self.min_size or state.shape is not None:
            return Codec(state.dtype or working)
        return BlockwiseCodec(torch.uint8, signed=not state.nonnegative, block=self.block)
