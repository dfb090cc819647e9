"""The largest of many numbers, where few change at a time: a complete binary tree whose nodes hold the larger child.

Setting k numbers costs O(k log n) and finding the largest O(log n), where looking at all costs n.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tournament(numbers: Tensor) -> Tensor:
    """Return the tree of ``numbers`` (n,): a flat tensor whose node i has the children 2i and 2i + 1."""
    width = 1 << max(0, len(numbers) - 1).bit_length()
    level = torch.cat([numbers, numbers.new_full((width - len(numbers),), -torch.inf)])
    levels = [level]
    while len(level) > 1:
        level = level.view(-1, 2).amax(1)
        levels.append(level)
    return torch.cat([numbers.new_zeros(1), *reversed(levels)])


def replace(tree: Tensor, places: Tensor, numbers: Tensor) -> None:
    """Set the numbers at ``places``, in place."""
    nodes = places + len(tree) // 2
    tree[nodes] = numbers
    for _ in range((len(tree) // 2).bit_length() - 1):
        nodes = nodes // 2
        tree[nodes] = torch.maximum(tree[2 * nodes], tree[2 * nodes + 1])


def largest(tree: Tensor) -> int:
    """Return the place of the largest number, the first of equals."""
    node = torch.ones((), dtype=torch.int64, device=tree.device)
    for _ in range((len(tree) // 2).bit_length() - 1):
        node = 2 * node + (tree[2 * node + 1] > tree[2 * node])
    return int(node) - len(tree) // 2
