"""Blocks of variables: partitions and forests, what a smooth function knows of a block, which block moves next, and how.

Shared by block coordinate methods, and by methods that alternate over factors, layers or dictionaries.
"""

from __future__ import annotations

from fallline.core.blocks import tournament
from fallline.core.blocks.forests import Elimination, forest_partition, greedy_forest, grid_combs, neighbours
from fallline.core.blocks.models import BlockModel, LinearBlocks, QuadraticBlocks, SmoothBlocks, block_model
from fallline.core.blocks.partition import Partition
from fallline.core.blocks.plan import Plan, Sight
from fallline.core.blocks.prox import prox_gradient, scaled_prox, separable_decrease, slopes
from fallline.core.blocks.schemes import SCHEMES, Blocks, Fixed, Forests, Variable, VariableForest
from fallline.core.blocks.selection import SELECTIONS, Cyclic, GaussSouthwell, Random, Selection, quadratic_forms
from fallline.core.blocks.updates import (
    UPDATES,
    BlockStep,
    ExactUpdate,
    GradientUpdate,
    MatrixUpdate,
    MessagePassing,
    NewtonUpdate,
    Update,
    block_norm,
    pseudo_inverse,
)

__all__ = [
    "SCHEMES", "SELECTIONS", "UPDATES", "BlockModel", "BlockStep", "Blocks", "Cyclic", "Elimination", "ExactUpdate", "Fixed", "Forests",
    "GaussSouthwell", "GradientUpdate", "LinearBlocks", "MatrixUpdate", "MessagePassing", "NewtonUpdate", "Partition", "Plan",
    "QuadraticBlocks", "Random", "Selection", "Sight", "SmoothBlocks", "Update", "Variable", "VariableForest", "block_model",
    "block_norm", "forest_partition", "greedy_forest", "grid_combs", "neighbours", "prox_gradient", "pseudo_inverse", "quadratic_forms",
    "scaled_prox", "separable_decrease", "slopes", "tournament",
]
