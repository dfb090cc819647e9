"""Forests: blocks in which the dependencies have no cycle, so that a Newton system is solved in linear time.

A set of variables is a forest where the graph with an edge for every H_ij ≠ 0 has no cycle among them. Elimination from the leaves to
the roots (message passing) then factorises H_bb = L D Lᵀ without fill:

    leaf to root    D_i = H_ii − Σ_children H_ic² / D_c,    y_i = r_i − Σ_children (H_ic / D_c) y_c
    root to leaf    x_i = y_i / D_i − (H_ip / D_i) x_parent

All variables of one depth are one vector, so that a solve takes as many vector operations as the forest is deep.

Nutini, Laradji, Schmidt: Let's Make Block Coordinate Descent Converge Faster, JMLR 2022, arXiv 1712.08859, section 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fallline.core.operators.columns import DenseColumns, SparseColumns, diagonal_block

Neighbours = Sequence[Sequence[int]]


def neighbours(columns: DenseColumns | SparseColumns, size: int) -> list[list[int]]:
    """Return the variables that each one depends on: the off-diagonal pattern of a symmetric matrix."""
    found: list[list[int]] = [[] for _ in range(size)]
    row, column, value = columns.triplets(torch.arange(size, device=columns.triplets(torch.arange(0))[0].device))
    kept = (row != column) & (value != 0)
    for i, j in zip(column[kept].tolist(), row[kept].tolist(), strict=True):
        found[i].append(j)
    return found


class _Forest:
    """A growing forest: union-find over its trees."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def add(self, node: int, around: Iterable[int]) -> bool:
        """Add a node unless two of its neighbours are in one tree, which it would close into a cycle."""
        roots = [self.root(each) for each in around if each in self.parent]
        if len(set(roots)) < len(roots):
            return False
        self.parent[node] = node
        for root in roots:
            self.parent[root] = node
        return True


def greedy_forest(graph: Neighbours, order: Iterable[int]) -> list[int]:
    """Return the variables that are taken when each, in this order, is added unless it closes a cycle."""
    forest = _Forest()
    return [node for node in order if forest.add(node, graph[node])]


def forest_partition(graph: Neighbours, order: Iterable[int] | None = None) -> list[list[int]]:
    """Return blocks that are forests: each variable, in this order, joins the first one in which it closes no cycle."""
    forests: list[_Forest] = []
    for node in range(len(graph)) if order is None else order:
        if not any(forest.add(node, graph[node]) for forest in forests):
            forests.append(_Forest())
            forests[-1].add(node, graph[node])
    return [list(forest.parent) for forest in forests]


def grid_combs(rows: int, columns: int) -> list[list[int]]:
    """Return the two interleaved combs that cover a grid graph whose variables are numbered row by row.

    One has the first column as its back and even rows as teeth, the other the last column and odd rows: each is a tree.
    """
    first = [i * columns + j for i in range(rows) for j in range(columns) if (j == 0 or i % 2 == 0) and j < columns - 1]
    taken = set(first)
    return [first, [node for node in range(rows * columns) if node not in taken]]


@dataclass(frozen=True)
class Elimination:
    """The factors of a symmetric positive definite H_bb whose graph is a forest, in an order from the roots to the leaves."""

    order: Tensor
    """Which variable of the block is at each place."""
    levels: tuple[tuple[int, int], ...]
    """First and last place of each depth below the roots."""
    parent: Tensor
    """The place of each one's parent; its own for roots."""
    pivots: Tensor
    ratios: Tensor
    """H_ip / D_i, 0 for roots."""

    @classmethod
    def of(cls, columns: DenseColumns | SparseColumns, block: Tensor) -> Elimination | None:
        """Factorise H_bb; None where a pivot is not positive, so that H_bb is not positive definite.

        Raises
        ------
        ValueError
            The block is not a forest.
        """
        row, column, value = diagonal_block(columns, block)
        order, levels, parent = _rooted(row, column, value, len(block))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        row, column = place[row], place[column]
        pivots = value.new_zeros(len(block)).index_add_(0, row, torch.where(row == column, value, 0.0))
        coupling = torch.zeros_like(pivots).index_add_(0, row, torch.where((parent[row] == column) & (row != column), value, 0.0))
        ratios = torch.zeros_like(pivots)
        for first, last in reversed(levels):
            here = slice(first, last)
            ratios[here] = coupling[here] / pivots[here]
            pivots.index_add_(0, parent[here], -ratios[here] * coupling[here])
        return cls(order, levels, parent, pivots, ratios) if bool((pivots > 0).all()) else None

    def solve(self, right: Tensor) -> Tensor:
        """Return H_bb⁻¹ right, both (|b|,) in the order of the block."""
        y = right[self.order]
        for first, last in reversed(self.levels):
            y.index_add_(0, self.parent[first:last], self.ratios[first:last] * y[first:last], alpha=-1)
        y /= self.pivots
        for first, last in self.levels:
            y[first:last] -= self.ratios[first:last] * y[self.parent[first:last]]
        x = torch.empty_like(y)
        x[self.order] = y
        return x


def _rooted(row: Tensor, column: Tensor, value: Tensor, size: int) -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor]:
    """Variables from the roots to the leaves, the places of every depth below the roots, and the place of each parent."""
    around: list[list[int]] = [[] for _ in range(size)]
    edges = (row != column) & (value != 0)
    for i, j in zip(row[edges].tolist(), column[edges].tolist(), strict=True):
        around[i].append(j)
    parent_of: list[int] = [-1] * size
    depth: list[list[int]] = []
    for root in range(size):
        if parent_of[root] >= 0:
            continue
        parent_of[root], level, number = root, [root], 0
        while level:
            if len(depth) == number:
                depth.append([])
            depth[number] += level
            below = []
            for node in level:
                for each in around[node]:
                    if parent_of[each] < 0:
                        parent_of[each] = node
                        below.append(each)
                    elif each != parent_of[node]:
                        raise ValueError("the block is not a forest: its variables depend on each other in a cycle; forest_partition, "
                                         "greedy_forest and grid_combs make blocks that are")
            level, number = below, number + 1
    order = [node for level in depth for node in level]
    place = {node: at for at, node in enumerate(order)}
    ends = torch.tensor([len(level) for level in depth]).cumsum(0).tolist()
    levels = tuple(itertools.pairwise(ends))
    device = row.device
    return torch.tensor(order, device=device), levels, torch.tensor([place[parent_of[node]] for node in order], device=device)
