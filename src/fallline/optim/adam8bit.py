"""8-bit optimizers: ordinary rules whose state is kept as block-wise dynamic 8-bit codes.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022, arXiv 2110.02861.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.state import working_dtype
from fallline.optim.engine.storage import Blockwise8bit, Storage
from fallline.optim.survey import Adam, Momentum


class _In8Bits(Optimizer):
    """State in 8 bits, but whole for groups whose role is ``"embedding"``; see :func:`fallline.optim.roles`."""

    def storage_for(self, p: Tensor, group: Mapping[str, Any]) -> Storage:
        return Storage() if group.get("role") == "embedding" else super().storage_for(p, group)


def _storage(block: int, min_size: int, options: EngineOptions) -> EngineOptions:
    if options.get("storage") is not None:
        raise ValueError("storage is what this optimizer fixes; use Adam or Momentum with storage=... for another one")
    return {**options, "storage": Blockwise8bit(block=block, min_size=min_size)}


@register("adam-8bit")
class Adam8bit(_In8Bits, Adam):
    """Adam with both averages in 8 bits: θ ← θ − η m̂ / (√v̂ + ε).

    2 bytes of state a parameter, and a float32 a block, for Adam's 8. Hyperparameters as for 32-bit Adam. A positive v never rounds
    to 0 (the paper's nearest value may), since m / ε would follow.

    Parameters
    ----------
    params : iterable of Tensor or dict
        Groups whose ``role`` is ``"embedding"``, as ``roles(model)`` makes them, keep 32-bit state.
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
        super().__init__(params, lr, betas, eps, weight_decay, **_storage(block, min_size, options))


@register("sgdm-8bit")
class SGDM8bit(_In8Bits, Momentum):
    """v ← γ v + η g;  θ ← θ − v, with v in 8 bits. ``block`` and ``min_size`` as in ``Adam8bit``."""

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0)}

    def __init__(self, params: Any, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0, block: int = 2048,
                 min_size: int = 4096, **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, lr, momentum, weight_decay, **_storage(block, min_size, options))


class StableEmbedding(nn.Embedding):
    """An embedding that trains stably with 8-bit state elsewhere: Xavier-uniform start, layer normalisation after the look-up.

    Half-precision weights are normalised in float32.

    Its own optimizer state should stay in 32 bits, as it does in ``Adam8bit(roles(model))``.

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
        weight, bias = self.norm.weight, self.norm.bias
        precise = working_dtype(self.weight.dtype)
        found = super().forward(input).to(precise)
        return layer_norm(found, weight.shape, weight.to(precise), bias.to(precise), self.norm.eps).to(self.weight.dtype)
