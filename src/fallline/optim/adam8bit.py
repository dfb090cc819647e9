"""8-bit optimizers: ordinary rules whose state is kept as block-wise dynamic 8-bit codes.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022, arXiv 2110.02861.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.velocity import HeavyBall
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Displace
from fallline.optim.engine.storage import Blockwise8bit


def _storage(block: int, min_size: int, options: EngineOptions) -> EngineOptions:
    for name, value in (("block", block), ("min_size", min_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if options.get("storage") is not None:
        raise ValueError("storage is what this optimizer fixes; use Adam or Momentum with storage=... for another one")
    return {**options, "storage": Blockwise8bit(block=block, min_size=min_size)}


@register("adam-8bit")
class Adam8bit(Optimizer):
    """Adam with both averages in 8 bits: θ ← θ − η m̂ / (√v̂ + ε).

    2 bytes of state a parameter, and a float32 a block, for Adam's 8. Hyperparameters as for 32-bit Adam. A positive v never rounds
    to 0 (the paper's nearest value may), since m / ε would follow.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.001
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
        Coupled.
    block : int, default 2048
        Numbers that share a scale.
    min_size : int, default 4096
        Smaller tensors stay in 32 bits.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, block: int = 2048, min_size: int = 4096, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, Quotient(), defaults, **_storage(block, min_size, options))


@register("sgdm-8bit")
class SGDM8bit(Optimizer):
    """v ← γ v + η g;  θ ← θ − v, with v in 8 bits. ``block`` and ``min_size`` as in ``Adam8bit``."""

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0)}

    def __init__(self, params: Any, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0, block: int = 2048,
                 min_size: int = 4096, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, HeavyBall(), defaults, move=Displace(), **_storage(block, min_size, options))


class StableEmbedding(nn.Embedding):
    """An embedding that trains stably with 8-bit state elsewhere: Xavier-uniform start, layer normalisation after the look-up.

    Its own optimizer state should stay in 32 bits: put its weight in a group of a 32-bit optimizer, or below ``min_size``.

    Parameters
    ----------
    n, d : int
        Number and width of the embeddings.
    """

    def __init__(self, n: int, d: int) -> None:
        super().__init__(n, d)
        nn.init.xavier_uniform_(self.weight)
        self.norm = nn.LayerNorm(d)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input).to(torch.get_default_dtype())).to(self.weight.dtype)
