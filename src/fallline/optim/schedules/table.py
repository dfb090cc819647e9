"""Schedules as tables: one factor for each step, to look at, to plot and to follow.

    η_t = η s_t,  t = 0, …, T − 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fallline.optim.schedules.base import RateSchedule


class Schedule:
    """The factors s_t >= 0 of the base rate, one for each step.

    Parameters
    ----------
    values : tensor or sequence of float, (T,)
        Kept in float64 on the CPU.
    name : str
        For titles.

    Raises
    ------
    ValueError
        If values are not a row of one or more finite numbers >= 0, one of them above 0.
    """

    def __init__(self, values: Tensor | Sequence[float], name: str = "schedule") -> None:
        found = values.detach().to("cpu", torch.float64, copy=True) if isinstance(values, Tensor) else \
            torch.tensor(values, dtype=torch.float64)
        if found.ndim != 1 or not bool(((found >= 0) & found.isfinite()).all()) or not bool((found > 0).any()):
            raise ValueError(f"values must be a row of finite numbers >= 0, not all 0, got {values!r}")
        self.values, self.name = found, name

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, t: int) -> float:
        return float(self.values[t])

    def __repr__(self) -> str:
        peak = int(self.values.argmax())
        return (f"Schedule({self.name!r}: {len(self):,} steps, {self[0]:.3g} at first, {self[peak]:.3g} at most in step {peak:,}, "
                f"{self[-1]:.3g} at last)")

    def plot(self) -> Any:
        """Return a plotly figure of the factors against the step."""
        import plotly.graph_objects as go

        figure = go.Figure()
        figure.add_scatter(x=list(range(len(self))), y=self.values.tolist(), mode="lines", name=self.name)
        return figure.update_layout(template="simple_white", title=self.name, xaxis_title="step", yaxis_title="factor of the base rate")


class Tabulated(RateSchedule):
    """η s_t in step t, from a table such as that of ``refine``.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any.
    schedule : Schedule or sequence of float, (T,)
        Factors of each group's base rate. After T steps the rate is 0, and one more ``step()`` raises ``ValueError``.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule | Tensor | Sequence[float]) -> None:
        table = schedule if isinstance(schedule, Schedule) else Schedule(schedule)
        self.factors: list[float] = table.values.tolist()
        self.steps: int = len(table)
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return base * self.factors[t] if t < self.steps else 0.0
