"""Comparisons on the digits: both sides at as many learning rates, steps and seeds, each at its best rate for the very figure."""

from __future__ import annotations

from collections.abc import Mapping

import fallline as fl
from fallline.claims import Figure, Scale, at_least, recorded
from fallline.claims._networks import Weights, validation
from fallline.problems import digits_mlp

NOTE = "Every side at the best of its five learning rates for this very figure; the full scale is this network for 5,000 steps"


def digits(seed: int, count: int = 3, batch_size: int = 64) -> list[fl.Training]:
    """The 64-64-64-10 network on the digits, once a seed."""
    return [digits_mlp(s, batch_size=batch_size) for s in range(seed, seed + count)]


def digits_steps(scale: Scale) -> int:
    """400, or at full scale 5,000."""
    return 400 if scale is Scale.QUICK else 5_000


def accuracy_figures(problems: list[fl.Training], sides: Mapping[str, Weights]) -> list[Figure]:
    """Best validation accuracies, the first side's at most half a point below the second's."""
    best = {name: 100 * validation(problems, weights, "accuracy").amax(0) for name, weights in sides.items()}
    ours, peer = best
    return [at_least(f"points of accuracy ahead of {peer}", (best[ours] - best[peer]).tolist(), -0.5),
            *(recorded(f"accuracy, {name}", found.tolist()) for name, found in best.items())]
