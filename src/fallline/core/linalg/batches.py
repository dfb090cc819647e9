"""What every function of a batch of matrices asks of its argument."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(A: Tensor) -> Tensor:
    """The same numbers, half precisions as float32."""
    return A.float() if A.dtype in (torch.float16, torch.bfloat16) else A


def require_square(A: Tensor, name: str = "A") -> None:
    """Refuse what is not a batch of square matrices."""
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{name} must be a batch of square matrices (..., n, n), got shape {tuple(A.shape)}")


def symmetric(A: Tensor) -> Tensor:
    """(A + Aᴴ)/2."""
    return (A + A.mH) / 2


def identity_like(A: Tensor) -> Tensor:
    """The identity of A's size, dtype and device, without its batch."""
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def largest_entry(A: Tensor) -> Tensor:
    """max |a_ij|, shape (..., 1, 1), and 1 where all are 0: what to divide by before anything is squared."""
    if A.shape[-1] == 0:
        return A.new_ones(*A.shape[:-2], 1, 1)
    largest = A.abs().amax((-2, -1), keepdim=True)
    return torch.where(largest == 0, 1.0, largest)
