"""Budgets: how much of what a run may spend."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Budget:
    """Limits on steps, seconds, or anything that is counted; the first one reached ends the run.

    A run ends at the first step boundary at or past a limit, so it overshoots a count by less than one step's use; steps are
    exact.

    Parameters
    ----------
    steps : int, optional
    seconds : float, optional
        Time in the method and the oracles; observing, drawing progress and writing checkpoints are free.
    **counts : int
        By the names of the counters: ``gradients``, ``values``, ``hvps``, ``samples``, ``bytes`` …
    """

    def __init__(self, steps: int | None = None, seconds: float | None = None, **counts: float) -> None:
        limits = {"steps": steps, "seconds": seconds, **counts}
        self.limits: dict[str, float] = {name: limit for name, limit in limits.items() if limit is not None}
        if not self.limits:
            raise ValueError("a budget of nothing never ends: give steps, seconds, or a count such as gradients=10_000")
        for name, limit in self.limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit) or limit <= 0:
                raise ValueError(f"the budget's {name} must be a positive number, got {limit!r}")

    def reached(self, steps: int, seconds: float, counts: Mapping[str, float]) -> str | None:
        """Return the name of a limit that is used up, or None."""
        for name, limit in self.limits.items():
            used = steps if name == "steps" else seconds if name == "seconds" else counts[name]
            if used >= limit:
                return name
        return None

    def fraction(self, steps: int, seconds: float, counts: Mapping[str, float]) -> float:
        """Return how much of the tightest limit is used, in [0, 1]."""
        used = {"steps": steps, "seconds": seconds}
        return min(1.0, max(used.get(name, counts[name]) / limit for name, limit in self.limits.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self.limits == other.limits

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.limits.items())))

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={limit:g}' for name, limit in self.limits.items())})"
