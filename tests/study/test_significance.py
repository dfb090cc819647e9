"""The paired test, against SciPy and against what it must say by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fallline.study.effort import best_after
from fallline.study.significance import LEVEL, paired_p


def test_positive_figures_are_compared_by_their_logarithms() -> None:
    a, b = [1.0, 2.0, 4.0, 3.0], [1.2, 2.5, 4.7, 3.3]
    assert paired_p(a, b) == pytest.approx(ttest_rel(np.log(a), np.log(b)).pvalue)
    assert paired_p(a, b) == pytest.approx(paired_p(b, a))


def test_figures_of_any_sign_are_compared_by_their_differences() -> None:
    a, b = [-1.0, 2.0, 0.0], [-0.5, 2.4, 0.8]
    assert paired_p(a, b) == pytest.approx(ttest_rel(a, b).pvalue)


def test_equal_figures_and_single_pairs_show_nothing() -> None:
    assert paired_p([1.0], [9.0]) == 1.0
    assert paired_p([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert paired_p([math.inf] * 3, [math.inf] * 3) == 1.0


def test_diverged_runs_count_as_lost_pairs() -> None:
    assert paired_p([1.0, 1.0, 1.0], [2.0, math.inf, 2.0]) == pytest.approx(0.25)  # three wins of three: 2 (1/2)³
    assert paired_p([1.0, 3.0, 1.0], [2.0, math.inf, 0.5]) == 1.0


def test_no_difference_is_called_one_about_as_often_as_the_level_says() -> None:
    draws = np.random.default_rng(0).lognormal(size=(2_000, 2, 5))
    called = np.mean([paired_p(list(a), list(b)) <= LEVEL for a, b in draws])
    assert 0.03 < called < 0.07


def test_the_best_of_k_is_that_of_every_order() -> None:
    import itertools

    scores = [3.0, 1.0, math.inf, 2.0, 5.0]
    for k, found in enumerate(best_after(scores), 1):
        bests = sorted(min(order[:k]) for order in itertools.permutations(scores))
        n = len(bests)
        assert found.median == (bests[n // 2 - 1] + bests[n // 2]) / 2
        assert (found.low, found.high) == (bests[math.ceil(0.25 * n) - 1], bests[math.ceil(0.75 * n) - 1])
    assert best_after(scores)[-1].high == 1.0
    assert [found.median for found in best_after([4.0, 2.0])] == [3.0, 2.0]
