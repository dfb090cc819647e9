"""Checks of arguments that many functions have."""

from __future__ import annotations

from typing import Any


def check_count(name: str, value: Any, remedy: str) -> None:
    """Raise ``ValueError`` unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}; {remedy}")
