"""How much tuning a method needs: the best score after k of its trials, over every order in which they could have come.

    P(min of k of the n scores ≤ s₍ᵢ₎) = 1 − C(n − i, k) / C(n, k)        median and quartiles by this distribution, exactly

Where this is exactly one half, the median lies midway between s₍ᵢ₎ and s₍ᵢ₊₁₎, as it does for an even number of values.
Trials that a tuner chose after seeing others are taken as if they had been drawn blindly, so that for few trials the curve is a
little too good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fallline.study.spread import Spread, spread
from fallline.study.table import RunTable, Side


def best_after(scores: Sequence[float]) -> list[Spread]:
    """Median and quartiles of the best of k scores, for k = 1 to all; ``inf`` stands for a trial that gave nothing."""
    ordered = sorted(scores)
    return [_after(ordered, k) for k in range(1, len(ordered) + 1)]


def _after(ordered: Sequence[float], k: int) -> Spread:
    n = len(ordered)
    draws = left = math.comb(n, k)  # all, and those of which every score is beyond the first i
    i, found = 0, list[float]()
    for quarter in (1, 2, 3):
        while 4 * left > (4 - quarter) * draws:
            left = left * (n - i - k) // (n - i)
            i += 1
        halved = quarter == 2 and 2 * left == draws
        found.append((ordered[i - 1] + ordered[i]) / 2 if halved else ordered[i - 1])
    low, median, high = found
    return Spread(low, median, high, n, "quartiles")


def setting_scores(side: Side, table: RunTable) -> list[float]:
    """The score of every setting that was tried, the median over the tuning seeds."""
    k = table.terms.tuning_seeds
    return [spread([r.score for r in side.tuning[i : i + k]]).median for i in range(0, len(side.tuning), k)]
