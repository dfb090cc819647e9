"""Median and spread of one figure over seeds, and what they allow to be said.

The spread of ``n`` values is their range while ``n < 5`` and their interquartile range from five on (quartiles by
nearest rank, so that an infinite value, a run that diverged, needs no arithmetic). A statement about every seed is held against
their whole range, whatever their count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

QUARTILES_FROM = 5


@dataclass(frozen=True)
class Spread:
    """Median of some values between a lower and an upper end."""

    low: float
    median: float
    high: float
    count: int
    kind: str
    """What the two ends are: ``"range"`` or ``"quartiles"``."""


def spread(values: Sequence[float]) -> Spread:
    """Median, lower and upper end of ``values``: the range below five values, the quartiles from five on.

    Parameters
    ----------
    values
        At least one number; ``inf`` stands for a run that diverged, ``nan`` counts as ``inf``.
    """
    n = len(values)
    return _between(values, 0, "range") if n < QUARTILES_FROM else _between(values, n // 4, "quartiles")


def whole_range(values: Sequence[float]) -> Spread:
    """Median, least and largest of ``values``, which are as for `spread`."""
    return _between(values, 0, "range")


def _between(values: Sequence[float], cut: int, kind: str) -> Spread:
    if not values:
        raise ValueError("values must hold at least one number, got none; run at least one seed")
    ordered = sorted(math.inf if math.isnan(v) else float(v) for v in values)
    n = len(ordered)
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    return Spread(ordered[cut], middle, ordered[n - 1 - cut], n, kind)
