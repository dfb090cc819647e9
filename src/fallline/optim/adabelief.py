"""AdaBelief: steps that are large where gradients are as expected.

    m ← β₁ m + (1 − β₁) g;   s ← β₂ s + (1 − β₂) (g − m)² + ε;   θ ← (1 − η λ) θ − η m̂ / (√ŝ + ε)

Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris, Duncan: AdaBelief Optimizer, NeurIPS 2020, arXiv 2010.07468.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.averages import Averaged
from fallline.optim.directions.modified import Bounded
from fallline.optim.directions.quotient import Quotient, Rectified
from fallline.optim.directions.scalings import GrowingSquares, LargestGrowingSquares, surprise
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Add, DecoupledDecay, Direction


@register("adabelief")
class AdaBelief(Optimizer):
    """m ← β₁ m + (1 − β₁) g;  s ← β₂ s + (1 − β₂) (g − m)² + ε, with the new m;  θ ← (1 − η λ) θ − η m̂ / (√ŝ + ε).

    ε joins s at every step, so that s tends to ε / (1 − β₂) where gradients are constant; there the step grows to η √((1 − β₂) / ε),
    3e6 η at the defaults, unless ``max_update`` bounds it.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-16
        1e-8 in the paper's runs on CIFAR. State is kept in float32 for half-precision parameters, where 1e-16 would be 0.
    weight_decay : float, default 0
    decoupled : bool, default True
        Decay the point, and not through the gradient.
    rectify : bool, default False
        RAdam's rectification, with m̂ alone for the first steps; on in the authors' package.
    amsgrad : bool, default False
        The largest s so far under the root.
    max_update : float, optional
        A bound on every entry of m̂ / (√ŝ + ε).
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16,
                 weight_decay: float = 0.0, decoupled: bool = True, rectify: bool = False, amsgrad: bool = False,
                 max_update: float | None = None, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        squares = LargestGrowingSquares if amsgrad else GrowingSquares
        direction: Direction = (Rectified if rectify else Quotient)(Averaged(), squares(surprise))
        if max_update is not None:
            direction, defaults["max_update"] = Bounded(direction), max_update
        super().__init__(params, direction, defaults, move=DecoupledDecay() if decoupled else Add(), **options)
