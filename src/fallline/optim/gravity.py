"""Gravity: gradient descent that squashes large gradients, with a memory that grows and a random first velocity.

    ζ = g / (1 + (g max|g|)²);   V ← β̂_t V + (1 − β̂_t) ζ,  β̂_t = (β t + 1) / (t + 2), t from 0;   θ ← θ − η V

Bahrami, Zadeh: Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning, arXiv 2101.09192.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.warning import warn
from fallline.optim.directions.kinematic import Kinematic
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Direction


@register("gravity")
class Gravity(Optimizer):
    """ζ = g / (1 + (g M)²), M = max|g| over the tensor;  V ← β̂_t V + (1 − β̂_t) ζ;  θ ← θ − η V;  V₀ ~ N(0, (α / η)²).

    β̂_t = (β t + 1) / (t + 2) with t from 0, so that it starts at ½ and tends to β. |ζ| ≤ 1 / (2 M), and ζ ≈ g where M ≪ 1. One state
    tensor. M is over each tensor. Entries of a batch of losses scaled by a constant are squashed differently: it is not scale-free.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.1
    alpha : float, default 0.01
        α, the length of the first throw; 0 starts at rest. α / η above 1 throws the first weights far, and a warning says so. Under a
        schedule η is the one it started from.
    beta : float, default 0.9
    weight_decay : float, default 0
        Added to the gradient; the paper has none.
    seed : int, default 0
        Of V₀, which depends on a parameter's position in the optimizer.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-3, 10.0)}

    def __init__(self, params: Any, lr: float = 0.1, alpha: float = 0.01, beta: float = 0.9, weight_decay: float = 0.0, seed: int = 0,
                 **options: Unpack[EngineOptions]) -> None:
        check("seed", seed)
        self.seed = seed
        super().__init__(params, Kinematic(), {"lr": lr, "alpha": alpha, "beta": beta, "weight_decay": weight_decay}, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "seed": self.seed}

    def check_group(self, group: Mapping[str, Any]) -> None:
        if _throw(group) > 1:
            warn(f"alpha / lr = {_throw(group):.3g}: the first velocity throws weights by alpha at every step until it is forgotten; "
                 "take alpha below lr")

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return Kinematic(_throw(group), self.seed)


def _throw(group: Mapping[str, Any]) -> float:
    lr = float(group.get("initial_lr", group["lr"]))
    return float(group["alpha"]) / lr if lr else 0.0
