"""Random graphs with random weights, to try structure learning on.

    Erdős-Rényi: every set of ``edges`` pairs of nodes is as likely as any other;   scale-free: node by node, each new one with
    ``edges_per_node`` edges, to nodes chosen with probability proportional to their degree (Barabási and Albert, Science 1999)
    edges go along a random order;   weights ± uniform on [low, high]
"""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key
from fallline.graphs.weighted_dag import WeightedDAG


def erdos_renyi(d: int, edges: int, key: Key | int = 0, *, low: float = 0.5, high: float = 2.0) -> WeightedDAG:
    """Return a random graph with exactly so many edges, in float64.

    Parameters
    ----------
    d : int
        Nodes.
    edges : int
        At most d (d − 1) / 2.
    key : Key or int, default 0
    low, high : float, default 0.5 and 2
        The magnitudes of weights.
    """
    check_count("d", d, "10 is small")
    pairs = torch.triu_indices(d, d, 1)
    if not 0 <= edges <= pairs.shape[1]:
        raise ValueError(f"edges must be between 0 and the {pairs.shape[1]} pairs of {d} nodes, got {edges}")
    key = as_key(key)
    chosen = torch.randperm(pairs.shape[1], generator=key.fold("edges").generator())[:edges]
    skeleton = torch.zeros(d, d, dtype=torch.float64)
    skeleton[pairs[0, chosen], pairs[1, chosen]] = 1.0
    return _weighted(skeleton, key, low, high)


def scale_free(d: int, edges_per_node: int, key: Key | int = 0, *, low: float = 0.5, high: float = 2.0) -> WeightedDAG:
    """Return a random graph with few nodes of many edges, in float64.

    Parameters
    ----------
    d : int
        Nodes.
    edges_per_node : int
        Below d.
    key : Key or int, default 0
    low, high : float, default 0.5 and 2
    """
    check_count("edges_per_node", edges_per_node, "2 is typical")
    if edges_per_node >= d:
        raise ValueError(f"edges_per_node must be below the {d} nodes, got {edges_per_node}")
    key = as_key(key)
    generator = key.fold("edges").generator()
    skeleton = torch.zeros(d, d, dtype=torch.float64)
    degrees = torch.zeros(d, dtype=torch.float64)
    for node in range(edges_per_node, d):
        odds = degrees[:node] if node > edges_per_node else torch.ones(node, dtype=torch.float64)
        others = torch.multinomial(odds, edges_per_node, generator=generator)
        skeleton[others, node] = 1.0
        degrees[others] += 1
        degrees[node] += edges_per_node
    return _weighted(skeleton, key, low, high)


def _weighted(skeleton: Tensor, key: Key, low: float, high: float) -> WeightedDAG:
    """Random weights on an upper triangular skeleton, its nodes renamed at random."""
    if not 0 < low <= high:
        raise ValueError(f"low and high must be 0 < low <= high, got {low} and {high}")
    generator = key.fold("weights").generator()
    sizes = low + (high - low) * torch.rand(skeleton.shape, generator=generator, dtype=skeleton.dtype)
    signs = 2.0 * torch.randint(0, 2, skeleton.shape, generator=generator) - 1
    order = torch.randperm(len(skeleton), generator=key.fold("order").generator())
    return WeightedDAG((skeleton * sizes * signs)[order][:, order])
