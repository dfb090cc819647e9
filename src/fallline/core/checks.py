"""Checks of arguments that many functions have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_count(name: str, value: Any, remedy: str) -> None:
    """Raise ``ValueError`` unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}; {remedy}")


def check_matrix(name: str, matrix: Tensor) -> None:
    """Raise ``ValueError`` unless a matrix, dense or sparse, has a floating dtype and finite entries."""
    if not matrix.is_floating_point():
        raise ValueError(f"{name} must have a floating dtype, got {matrix.dtype}; {name}.double() has")
    entries = matrix.detach()
    if not bool((entries if entries.layout is torch.strided else entries.to_sparse_coo().coalesce().values()).isfinite().all()):
        raise ValueError(f"{name} must be finite, and has NaN or infinite entries")


def check_vector(name: str, vector: Tensor, matrix_name: str, matrix: Tensor) -> None:
    """Raise ``ValueError`` unless a vector has the dtype of a matrix and finite entries."""
    if vector.dtype != matrix.dtype:
        raise ValueError(f"{name} must have the dtype of {matrix_name}, {matrix.dtype}, got {vector.dtype}; "
                         f"{name}.to({matrix_name}.dtype) has it")
    if not bool(vector.isfinite().all()):
        raise ValueError(f"{name} must be finite, and has NaN or infinite entries")
