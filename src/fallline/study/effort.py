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
    ordered, n = sorted(scores), len(scores)

    def quartile(quarter: int, k: int) -> float:
        orders = math.comb(n, k)
        i = next(i for i in range(1, n + 1) if 4 * math.comb(n - i, k) <= (4 - quarter) * orders)
        halved = quarter == 2 and 2 * math.comb(n - i, k) == orders
        return (ordered[i - 1] + ordered[i]) / 2 if halved else ordered[i - 1]

    return [Spread(quartile(1, k), quartile(2, k), quartile(3, k), n, "quartiles") for k in range(1, n + 1)]


def setting_scores(side: Side, table: RunTable) -> list[float]:
    """The score of every setting that was tried, the median over the tuning seeds."""
    k = table.terms.tuning_seeds
    return [spread([r.score for r in side.tuning[i : i + k]]).median for i in range(0, len(side.tuning), k)]
