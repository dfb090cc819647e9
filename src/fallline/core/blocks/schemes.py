"""Where blocks come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fallline.core.blocks.forests import forest_partition, neighbours
from fallline.core.blocks.models import BlockModel
from fallline.core.blocks.partition import Partition
from fallline.core.checks import check_count


@dataclass(frozen=True)
class Fixed:
    """A partition: blocks of that many neighbours, or the ones given.

    Parameters
    ----------
    blocks : int or sequence of sequences of int, default 5
    """

    blocks: int | Sequence[Sequence[int]] = 5

    def __post_init__(self) -> None:
        if isinstance(self.blocks, int):
            check_count("blocks", self.blocks, "variables in a block, or lists of variables")

    def partition(self, model: BlockModel, size: int, device: torch.device) -> Partition:
        """Return the blocks of ``size`` variables."""
        if isinstance(self.blocks, int):
            return Partition.consecutive(size, self.blocks, device)
        return Partition(self.blocks, size, device)


@dataclass(frozen=True)
class Forests:
    """A partition into forests of the graph of dependencies: variables in their order join the first in which they close no cycle."""

    def partition(self, model: BlockModel, size: int, device: torch.device) -> Partition:
        """Return the blocks of ``size`` variables."""
        return Partition(forest_partition(neighbours(model.bound_columns(), size)), size, device)


@dataclass(frozen=True)
class Variable:
    """Any ``size`` variables: the most promising ones by a greedy rule, or random ones."""

    size: int = 5

    def __post_init__(self) -> None:
        check_count("size", self.size, "variables in a block")


@dataclass(frozen=True)
class VariableForest:
    """The forest that grows when variables, in the order of a greedy rule, are added unless they close a cycle."""


Blocks = Fixed | Forests | Variable | VariableForest
SCHEMES: dict[str, Blocks] = {"fixed": Fixed(), "variable": Variable(), "forest": Forests(), "variable-forest": VariableForest()}
