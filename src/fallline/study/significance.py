"""Whether a lead exceeds what seeds alone would give: a paired test, for both sides run at the same seeds.

    dᵢ = log(bᵢ / aᵢ), or bᵢ − aᵢ where a figure is not positive;   t = mean(d) / (sd(d)/√n);   p two-sided, n − 1 degrees of freedom

Where a run diverged there is no difference to average, and where all differences are one there is no deviation: the exact sign test
takes the place, a diverged run counting as lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL, FEWEST = 0.05, 3
"""The largest p at which a lead is called one, and the fewest seeds: with two, the test has one degree of freedom and rests on the
normal law alone."""


def paired_p(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided p-value of the hypothesis that neither side is ahead, from figures at the same seeds.

    Parameters
    ----------
    a, b
        Equally many figures, pair by pair; infinite where a run diverged.

    Returns
    -------
    float
        1.0 for fewer than two pairs, and for pairs that are all equal.
    """
    from scipy.stats import binomtest, ttest_1samp

    pairs = list(zip(a, b, strict=True))
    apart = [(x, y) for x, y in pairs if x != y]
    if len(pairs) < 2 or not apart:
        return 1.0
    finite = all(math.isfinite(v) for pair in pairs for v in pair)
    positive = all(v > 0 for pair in pairs for v in pair)
    differences = [math.log(y / x) if positive else y - x for x, y in pairs] if finite else []
    if not finite or max(differences) == min(differences):
        return float(binomtest(sum(x < y for x, y in apart), len(apart)).pvalue)
    return float(ttest_1samp(differences, 0.0).pvalue)
