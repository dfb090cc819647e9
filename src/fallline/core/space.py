"""Ranges of hyperparameters: what a method says may be tuned, and over which values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Uniform:
    """Real numbers in [low, high], all alike."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range needs finite low < high, got low={self.low}, high={self.high}")


@dataclass(frozen=True)
class LogUniform(Uniform):
    """Positive numbers in [low, high], every factor alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"a logarithmic range needs low > 0, got low={self.low}")


@dataclass(frozen=True)
class Integers:
    """Whole numbers low, …, high, by factor if ``log``."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        if self.low >= self.high or (self.log and self.low < 1):
            raise ValueError(f"a range of integers needs low < high (and low >= 1 if log), got {self}")


@dataclass(frozen=True, init=False)
class Choice:
    """One of a few options."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        if not options:
            raise ValueError("a choice needs at least one option")
        object.__setattr__(self, "options", options)


Range = Uniform | Integers | Choice
