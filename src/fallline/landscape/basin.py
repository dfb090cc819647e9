"""The loss between two solutions: one basin, or a barrier.

    barrier = max_{t ∈ [0, 1]} L((1 − t) θ₁ + t θ₂) − max(L(θ₁), L(θ₂))

Sagun, Evci, Güney, Dauphin, Bottou: Empirical Analysis of the Hessian of Over-Parametrized Neural Networks,
ICLR workshop 2018, arXiv 1706.04454.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.landscape.evaluation import checked_point, evaluation


@dataclass(frozen=True, repr=False)
class Segment:
    """The loss at ``positions`` t, both of shape (points,), on the segment (1 − t) θ₁ + t θ₂."""

    positions: Tensor
    values: Tensor

    @property
    def barrier(self) -> float:
        """max on the segment − max of the two ends: never negative, and 0 along any convex loss."""
        return float(self.values.max() - torch.maximum(self.values[0], self.values[-1]))

    def plot(self) -> Any:
        """Return a plotly figure of the loss along the segment."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Scatter(x=self.positions.tolist(), y=self.values.tolist(), mode="lines+markers"))
        return figure.update_layout(template="simple_white", xaxis_title="position on the segment", yaxis_title="loss",
                                    title=f"barrier {self.barrier:.4g}")

    def __repr__(self) -> str:
        first, last = float(self.values[0]), float(self.values[-1])
        return f"Segment(barrier={self.barrier:.4g}, ends {first:.4g} and {last:.4g}, {len(self.values)} points)"


def same_basin(problem: Problem, first: Tree, second: Tree, points: int = 21) -> Segment:
    """Evaluate the loss on the segment between two points; the same basin has a ``barrier`` near 0.

    Parameters
    ----------
    problem : Problem
        Models are evaluated in evaluation mode, as by ``hessian_spectrum``.
    first, second : tree
        Shaped as ``problem.x0``.
    points : int, default 21
        At least 3, ends included, evenly spread.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise ValueError(f"points must be a whole number of at least 3 (two ends and one between), got {points!r}")
    with evaluation(problem, first) as (realisation, start):
        end = checked_point(problem, second, "second")
        positions = torch.linspace(0, 1, points, dtype=torch.float64)
        values = [realisation.value(tree.map(lambda a, b, t=t: torch.lerp(a, b, t), start, end)) for t in positions.tolist()]
    return Segment(positions, torch.stack(values).cpu())
