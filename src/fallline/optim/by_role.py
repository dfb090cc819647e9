"""Optimizers that treat a network's matrices by one rule and everything else by another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay, Direction
from fallline.optim.engine.roles import roles


class ByRole(Optimizer):
    """Matrices by the direction, others by another; groups tell them apart by role, or by dimensions.

    Parameters
    ----------
    matrices, others : Direction
    defaults, options : dict
        Hyperparameters, and options of the engine.
    """

    def __init__(self, params: Any, matrices: Direction, others: Direction, defaults: dict[str, Any], options: EngineOptions) -> None:
        self.others = others
        super().__init__(params, matrices, defaults, move=DecoupledDecay(), **options)

    @classmethod
    def for_model(cls, model: nn.Module, **hyperparameters: Any) -> Self:
        """Make the optimizer of a network: embeddings, head, norms and biases are not treated as matrices."""
        return cls(roles(model), **hyperparameters)

    def is_matrix(self, p: Tensor, group: Mapping[str, Any]) -> bool:
        """Whether the rule of matrices applies: role "matrix", or at least two dimensions where no role is given."""
        return bool(group["role"] == "matrix" if "role" in group else p.ndim >= 2)

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return self.direction if self.is_matrix(p, group) else self.others

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "others": self.others}
