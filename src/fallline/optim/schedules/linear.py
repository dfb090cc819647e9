"""Linear decay: the schedule that the theory of the last iterate asks for where gradients keep their length.

    η_t = η (T − t) / (T − W),  t = W, …, T − 1;   before, in a warm-up of W steps, η_t = η (t + 1) / (W + 1)

t counts the steps taken. The paper counts from 1 and has η (1 − t / T), whose T-th step is of length 0; here all T steps move.
Defazio, Cutkosky, Mehta, Mishchenko: When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement, arXiv 2310.07831.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from fallline.optim.schedules.base import RateSchedule, check_count
from fallline.optim.schedules.table import Schedule


class LinearDecay(RateSchedule):
    """η (t + 1) / (W + 1) for the first W steps, then η (T − t) / (T − W): from η in step W to η / (T − W) in the last one.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any.
    steps : int
        T >= 1, with the warm-up. After them the rate is 0, and one more ``step()`` raises ``ValueError``.
    warmup : int, default 0
        W, from 0 to T − 1.
    """

    def __init__(self, optimizer: Optimizer, steps: int, warmup: int = 0) -> None:
        _check(steps, warmup)
        self.steps: int = steps
        self.warmup = warmup
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return base * _factor(t, self.steps, self.warmup)

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "warmup": self.warmup}


def linear_decay(steps: int, warmup: int = 0) -> Schedule:
    """The factors of ``LinearDecay`` as a ``Schedule``, to plot, to compare, or for ``last_iterate_bound``."""
    _check(steps, warmup)
    return Schedule([_factor(t, steps, warmup) for t in range(steps)], "linear decay")


def _check(steps: int, warmup: int) -> None:
    check_count("steps", steps, 1, "the number of steps that will be taken")
    check_count("warmup", warmup, 0, "0 for none")
    if warmup >= steps:
        raise ValueError(f"warmup must be less than steps, got warmup={warmup} and steps={steps}; steps counts the warm-up too")


def _factor(t: int, steps: int, warmup: int) -> float:
    return (t + 1) / (warmup + 1) if t < warmup else (steps - t) / (steps - warmup)
