"""SGDR: the learning rate falls along half a cosine, again and again, each time for longer.

    η_t = η_min + ½ (η_max − η_min) (1 + cos(π T_cur / T_i)),  T_cur from 0 to T_i;   then T_{i+1} = T_mult T_i, η_max ← decay_max η_max

Weights and momentum are kept at a restart. T_cur moves in every step, not once an epoch. A cycle of n steps starts at η_max and ends at
η_min, which takes T_cur = T_i k / (n − 1) in its step k = 0, …, n − 1; with T_cur = T_i k / n, as in torch's
``CosineAnnealingWarmRestarts``, η_min is never reached. The best weights are those at the end of a cycle.

Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, arXiv 1608.03983.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fallline.optim.schedules.base import RateSchedule, check_count


class WarmRestarts(RateSchedule):
    """η_min + ½ (η_max − η_min) (1 + cos(π T_cur / T_i)), restarted whenever T_cur = T_i; see the module.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any. η_max of the first cycle is each group's own ``lr``.
    T0 : float
        Epochs in the first cycle, >= 1. The paper's pairs (T0, T_mult) are (1, 2), (10, 2), (50, 1), (100, 1), (200, 1).
    T_mult : float, default 2
        >= 1; 1 makes all cycles alike. Cycles are rounded to whole steps.
    eta_min : float, default 0
        η_min >= 0, at most every group's ``lr``.
    decay_max : float, default 1
        In (0, 1]: multiplies η_max after every cycle. It never falls below η_min.
    steps_per_epoch : int, default 1
        With 1, ``T0`` is a number of steps. A cycle of one step is taken at η_max.
    on_cycle_end : callable ``cycle -> None``, optional
        Called by ``step()`` after the last step of each cycle, while the weights are those of its end, with the number of the cycle
        from 0; such as a ``Snapshots``. It is not part of ``state_dict()``.

    Attributes
    ----------
    cycle : int
        That of the next step, from 0.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, T0: float, T_mult: float = 2.0, eta_min: float = 0.0, decay_max: float = 1.0,
                 steps_per_epoch: int = 1, on_cycle_end: Callable[[int], Any] | None = None) -> None:
        check_count("steps_per_epoch", steps_per_epoch, 1, "the number of batches")
        for name, value in (("T0", T0), ("T_mult", T_mult)):
            if not 1 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 1, got {value!r}; (T0, T_mult) = (10, 2) is typical")
        if not 0 < decay_max <= 1:
            raise ValueError(f"decay_max must be a number in (0, 1], got {decay_max!r}; 1 restarts every cycle from the same rate")
        for group in optimizer.param_groups:
            if not 0 <= eta_min <= float(group["lr"]):
                raise ValueError(f"eta_min must be a number from 0 to the groups' lr, got {eta_min!r} for lr={float(group['lr']):g}")
        if on_cycle_end is not None and not callable(on_cycle_end):
            raise TypeError(f"on_cycle_end must be a function of the number of the cycle, got {on_cycle_end!r}")
        self.T0, self.T_mult, self.eta_min, self.decay_max = T0, T_mult, eta_min, decay_max
        self.steps_per_epoch, self.on_cycle_end, self.cycle = steps_per_epoch, on_cycle_end, 0
        super().__init__(optimizer)

    def end(self, cycle: int) -> int:
        """The number of steps taken when a cycle ends."""
        count = cycle + 1
        epochs = self.T0 * count if self.T_mult == 1 else self.T0 * (self.T_mult**count - 1) / (self.T_mult - 1)
        return round(epochs * self.steps_per_epoch)

    def _start(self, cycle: int) -> int:
        return self.end(cycle - 1) if cycle else 0

    def rate(self, base: float, t: int) -> float:
        start, length = self._start(self.cycle), self.end(self.cycle) - self._start(self.cycle)
        largest = max(base * self.decay_max**self.cycle, self.eta_min)
        part = (t - start) / (length - 1) if length > 1 else 0.0
        return self.eta_min + (largest - self.eta_min) * (1 + math.cos(math.pi * part)) / 2

    def get_lr(self) -> list[float | Tensor]:
        while self.last_epoch >= self.end(self.cycle):
            self.cycle += 1
        while self.last_epoch < self._start(self.cycle):
            self.cycle -= 1
        return super().get_lr()

    def step(self, epoch: int | None = None) -> None:
        """Go on to the rate of the next step, and call ``on_cycle_end`` if a cycle is over. Call it after each ``optimizer.step()``."""
        before = self.cycle
        super().step(epoch)
        if epoch is None and self.cycle > before and self.on_cycle_end is not None:
            self.on_cycle_end(before)

    def state_dict(self) -> dict[str, Any]:
        """The state without ``optimizer`` and ``on_cycle_end``."""
        return {name: value for name, value in super().state_dict().items() if name != "on_cycle_end"}

    def settings(self) -> dict[str, Any]:
        return {"T0": self.T0, "T_mult": self.T_mult, "eta_min": self.eta_min, "decay_max": self.decay_max,
                "steps_per_epoch": self.steps_per_epoch, "cycle": self.cycle}
