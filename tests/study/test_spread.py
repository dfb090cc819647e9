"""Medians and spreads."""

from __future__ import annotations

import math

import pytest

from fallline.study import spread
from fallline.study.spread import whole_range


def test_range_below_five_values_and_quartiles_from_five() -> None:
    few = spread([3.0, 1.0, 2.0])
    assert (few.low, few.median, few.high, few.kind) == (1.0, 2.0, 3.0, "range")
    many = spread([100.0, 1.0, 2.0, 3.0, -50.0])
    assert (many.low, many.median, many.high, many.kind) == (1.0, 2.0, 3.0, "quartiles")


def test_the_whole_range_drops_nothing() -> None:
    found = whole_range([100.0, 1.0, 2.0, 3.0, -50.0])
    assert (found.low, found.median, found.high, found.kind) == (-50.0, 2.0, 100.0, "range")
    with pytest.raises(ValueError, match="at least one"):
        whole_range([])


def test_a_diverged_run_counts_as_infinite_and_is_not_dropped() -> None:
    found = spread([1.0, math.nan, 2.0])
    assert (found.low, found.median, found.high) == (1.0, 2.0, math.inf)
    assert spread([1.0, math.inf, math.inf]).median == math.inf


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        spread([])
