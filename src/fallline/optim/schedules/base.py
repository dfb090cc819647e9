"""What all schedules are: the learning rate as a function of the base rate and of the number of steps taken.

    η_t = rate(η, t),  t = 0, 1, 2, …

η is each group's own, the one it had when the schedule was made. Nothing depends on the rate before, so a schedule goes on exactly from
its ``state_dict()``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler


class RateSchedule(LRScheduler):
    """A torch scheduler given by ``rate``; subclasses set their fields before they call the constructor.

    Attributes
    ----------
    steps : int or None
        How many steps there are: after the last one the schedule is over, and one more is refused. None if it goes on for ever.
    """

    steps: int | None = None

    def rate(self, base: float, t: int) -> float:
        """The learning rate of the next step, when ``t`` steps have been taken."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What the schedule was made with, for ``repr``."""
        return {"steps": self.steps}

    def get_lr(self) -> list[float | Tensor]:
        """The rates of all groups."""
        return [self.rate(float(base), self.last_epoch) for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go on to the rate of the next step. Call it after each ``optimizer.step()``."""
        if epoch is None and self.steps is not None and self.last_epoch >= self.steps:
            raise ValueError(f"{type(self).__name__} was made for steps={self.steps} and is over; give it as many steps as will be "
                             "taken")
        super().step(epoch)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        rates = ", ".join(f"{float(lr):.3g}" for lr in self.get_last_lr())
        return f"{type(self).__name__}({settings}; after {self.last_epoch} steps, lr {rates})"


def check_count(name: str, value: Any, least: int, remedy: str) -> None:
    """Raise ``ValueError`` unless the value is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}; {remedy}")
