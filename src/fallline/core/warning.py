"""Warnings that point at the line of the user's that caused them."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Warn at the innermost caller outside of this library and torch, whose ``__init__`` and ``step`` are on the way."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fallline", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


class Once:
    """A warning that is given once, however often it is asked for."""

    def __init__(self) -> None:
        self.said = False

    def __call__(self, message: str) -> None:
        if not self.said:
            self.said = True
            warn(message)
