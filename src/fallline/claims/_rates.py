"""Rates of convergence, fitted to what a run has seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np


def exponent(gaps: Sequence[float], floor: float = 0.0) -> float:
    """The slope of log gap against log k over steps k = 1, 2, … with gaps above the floor: the p of k^p."""
    seen = list(itertools.takewhile(lambda pair: pair[1] > floor, enumerate(gaps)))[1:]
    if len(seen) < 2:
        return math.nan
    k, gap = zip(*seen, strict=True)
    return float(np.polyfit(np.log(k), np.log(gap), 1)[0])


def order(errors: Sequence[float], floor: float) -> float:
    """The largest log(e₊₊/e₊)/log(e₊/e) near the end, of errors above the floor: 2 is quadratic, 1 linear convergence."""
    seen = [e for e in errors if e > floor][-5:]
    found = [math.log(c / b) / math.log(b / a) for a, b, c in zip(seen, seen[1:], seen[2:], strict=False) if b < a and c < b]
    return max(found, default=math.nan)
