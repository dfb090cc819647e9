"""Weighted directed acyclic graphs: what learning a structure gives.

    w_ij ≠ 0: an edge i → j;   linear structural equations x_j = Σ_i w_ij x_i + e_j,   X = E (I − W)⁻¹ in rows

A matrix with cycles becomes a graph by leaving out its smallest entries: a threshold that leaves no cycle leaves none when it is
raised, so the smallest one is found by bisection over the magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fallline.core.keys import Key, as_key, normal_like
from fallline.core.result import Result
from fallline.graphs.accuracy import (
    false_discovery_rate,
    structural_hamming_distance,
    structural_intervention_distance,
    true_positive_rate,
)

if TYPE_CHECKING:
    from fallline.graphs.scores import Score


def topological_order(W: Tensor) -> Tensor:
    """Return the nodes of a graph (d, d) with causes before effects, ``(d,)``, the lowest number first where that leaves a choice.

    Raises
    ------
    ValueError
        The graph has a cycle; the message names one.
    """
    edges = (W != 0).cpu()
    left, incoming, levels = torch.ones(len(edges), dtype=torch.bool), edges.sum(0), []
    while bool(left.any()):
        ready = left & (incoming == 0)
        if not bool(ready.any()):
            raise ValueError(f"W must have no cycle, got {' → '.join(map(str, _cycle(edges, left)))}; "
                             "to_dag(W) leaves out the smallest weights until there is none")
        levels.append(ready.nonzero().flatten())
        left &= ~ready
        incoming = incoming - edges[ready].sum(0)
    return torch.cat(levels).to(W.device)


def _cycle(edges: Tensor, left: Tensor) -> list[int]:
    """A cycle among nodes that all have a parent among them."""
    walk = [int(left.nonzero()[0])]
    while walk[-1] not in walk[:-1]:
        walk.append(int((edges[:, walk[-1]] & left).nonzero()[0]))
    return walk[walk.index(walk[-1]):][::-1]


def is_acyclic(W: Tensor) -> bool:
    """Return whether the graph of the entries that are not 0 has no cycle."""
    try:
        topological_order(W)
    except ValueError:
        return False
    return True


def to_dag(W: Tensor, threshold: float = 0.3, names: tuple[str, ...] = ()) -> WeightedDAG:
    """Leave out the diagonal, entries with |w| ≤ ``threshold``, and further ones, the smallest first, until no cycle is left.

    Parameters
    ----------
    W : Tensor (d, d)
    threshold : float, default 0.3
        At least 0.
    names : tuple of str, optional

    Raises
    ------
    ValueError
        W has NaN or infinite entries.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold!r}")
    if not bool(torch.isfinite(W).all()):
        raise ValueError("W must be finite, and has NaN or infinite entries")
    kept = torch.where(W.abs() > threshold, W, 0).fill_diagonal_(0)
    if not is_acyclic(kept):
        levels = kept.abs().unique()  # the first is 0, and the last leaves nothing
        low, high = 0, len(levels) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_acyclic(torch.where(W.abs() > levels[middle], kept, 0)) else (middle, high)
        kept = torch.where(W.abs() > levels[high], kept, 0)
    return WeightedDAG(kept, names)


@dataclass(frozen=True, eq=False, repr=False)
class WeightedDAG:
    """A directed graph without cycles, with a weight on every edge.

    Parameters
    ----------
    weights : Tensor (d, d)
        ``weights[i, j]`` of the edge i → j; 0 is no edge.
    names : tuple of str, optional
        Of the nodes; their numbers by default.
    noise : Tensor (d,), optional
        Standard deviations of what the parents leave unexplained, where they were estimated.
    result : Result, optional
        The run that found it.

    Attributes
    ----------
    order : Tensor (d,)
        The nodes with causes before effects.

    Raises
    ------
    ValueError
        A cycle, NaNs, or shapes that do not fit.
    """

    weights: Tensor
    names: tuple[str, ...] = ()
    noise: Tensor | None = None
    result: Result | None = None
    order: Tensor = field(init=False)

    def __post_init__(self) -> None:
        W = self.weights
        if not isinstance(W, Tensor) or W.ndim != 2 or len(W) != W.shape[-1]:
            raise ValueError(f"weights must be a square matrix, got {tuple(W.shape) if isinstance(W, Tensor) else type(W).__name__}")
        if not bool(torch.isfinite(W).all()):
            raise ValueError("weights must be finite, and have NaN or infinite entries")
        names = tuple(map(str, self.names)) or tuple(map(str, range(len(W))))
        if len(names) != len(W) or len(set(names)) != len(W):
            raise ValueError(f"names must be {len(W)} different ones, got {self.names!r}")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "order", topological_order(W))

    @property
    def edges(self) -> list[tuple[str, str, float]]:
        """The edges by name, with weights."""
        return [(self.names[i], self.names[j], float(self.weights[i, j])) for i, j in self.weights.nonzero().tolist()]

    def threshold(self, threshold: float = 0.3) -> WeightedDAG:
        """Return the graph of the edges with |w| > ``threshold``."""
        return WeightedDAG(torch.where(self.weights.abs() > threshold, self.weights, 0), self.names, self.noise, self.result)

    def sample(self, n: int, key: Key | int = 0, *, variances: float | Tensor = 1.0) -> Tensor:
        """Return n rows of the linear structural equations with Gaussian noise, ``(n, d)``.

        ``variances`` are those of the noise, one or ``(d,)``, at least 0.
        """
        variance = torch.as_tensor(variances, dtype=self.weights.dtype, device=self.weights.device)
        if not bool((variance >= 0).all()):
            raise ValueError(f"variances must be at least 0, got {variances!r}")
        E = variance.sqrt() * normal_like(self.weights.new_empty(n, len(self.weights)), as_key(key).generator())
        return torch.linalg.solve(torch.eye(len(self.weights)).to(self.weights) - self.weights, E, left=False)

    def score(self, X: Any, score: Score | None = None) -> float:
        """Return F(W) on data ``(n, d)``; by default the least-squares score (1/2n) ‖X − XW‖²."""
        from fallline.graphs.nodewise_scores import LeastSquaresScore
        from fallline.graphs.structure import StructureLearning

        return StructureLearning(X, score or LeastSquaresScore()).observe(self.weights)["value"]

    def compare(self, truth: WeightedDAG | Tensor) -> dict[str, float]:
        """Return ``shd``, ``sid``, ``tpr`` and ``fdr`` of this graph as an estimate of ``truth``."""
        true = truth.weights if isinstance(truth, WeightedDAG) else truth
        measures: Mapping[str, Any] = {"shd": structural_hamming_distance, "sid": structural_intervention_distance,
                                       "tpr": true_positive_rate, "fdr": false_discovery_rate}
        return {name: measure(self.weights, true) for name, measure in measures.items()}

    def to_networkx(self) -> Any:
        """Return a ``networkx.DiGraph`` with the attribute ``weight`` on every edge."""
        try:
            import networkx
        except ImportError as error:
            raise ImportError("to_networkx needs networkx: pip install 'fallline[graphs]'") from error
        graph = networkx.DiGraph()
        graph.add_nodes_from(self.names)
        graph.add_weighted_edges_from(self.edges)
        return graph

    def plot(self) -> Any:
        """Return a plotly figure: causes to the left of effects, positive weights blue, negative ones red."""
        import plotly.graph_objects as go

        places = self._places()
        largest = float(self.weights.abs().max()) or 1.0
        figure = go.Figure(go.Scatter(
            x=[x for x, _ in places], y=[y for _, y in places], mode="markers+text", text=list(self.names), hoverinfo="text",
            marker={"size": 26, "color": "white", "line": {"color": "black", "width": 1}}))
        for i, j in self.weights.nonzero().tolist():
            (x, y), (to_x, to_y), weight = places[i], places[j], float(self.weights[i, j])
            figure.add_annotation(x=to_x, y=to_y, ax=x, ay=y, axref="x", ayref="y", showarrow=True, arrowhead=2, text="", standoff=14,
                                  startstandoff=14, arrowwidth=0.5 + 2.5 * abs(weight) / largest,
                                  arrowcolor="steelblue" if weight > 0 else "indianred", hovertext=f"{weight:.3g}")
        return figure.update_layout(template="simple_white", xaxis_visible=False, yaxis_visible=False, showlegend=False)

    def _places(self) -> list[tuple[float, float]]:
        """Where nodes are drawn: across, the longest path from a root; upwards, evenly, with columns shifted against each other.

        Of some shifts the one whose edges keep furthest from the nodes that they pass.
        """
        levels = [0] * len(self.names)
        for node in self.order.tolist():
            parents = self.weights[:, node].nonzero().flatten().tolist()
            levels[node] = max((levels[p] + 1 for p in parents), default=0)
        columns = {level: [node for node in self.order.tolist() if levels[node] == level] for level in set(levels)}
        middle = {node: k - (len(column) - 1) / 2 for column in columns.values() for k, node in enumerate(column)}

        def placed(shift: float) -> list[tuple[float, float]]:
            return [(float(level), middle[node] + shift * level % 1) for node, level in enumerate(levels)]

        return max((placed(k / 20) for k in range(20)), key=self._clearance)

    def _clearance(self, places: list[tuple[float, float]]) -> float:
        """The least height between an edge and a node that it passes above or below."""
        found = [abs(places[i][1] + (x - places[i][0]) / (places[j][0] - places[i][0]) * (places[j][1] - places[i][1]) - y)
                 for i, j in self.weights.nonzero().tolist() for x, y in places if places[i][0] < x < places[j][0]]
        return min(found, default=0.0)

    def __repr__(self) -> str:
        sizes = self.weights[self.weights != 0].abs()
        weights = f", |w| from {float(sizes.min()):.3g} to {float(sizes.max()):.3g}" if len(sizes) else ""
        first = [self.names[node] for node in self.order[:8].tolist()]
        more = ", …" if len(self.names) > 8 else ""
        return f"WeightedDAG({len(self.names)} nodes, {len(sizes)} edges{weights}; order {', '.join(first)}{more})"
