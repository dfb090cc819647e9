"""MARS: a gradient with less variance, under AdamW, Lion or orthonormalised momentum.

    c = g_t + γ β₁ / (1 − β₁) (g_t − g̃);   c ← c / max(1, ‖c‖);   m ← β₁ m + (1 − β₁) c;   then
    AdamW: v ← β₂ v + (1 − β₂) c², m̂ / (√v̂ + ε);   Lion: sign(m);   Shampoo: √max(1, rows / columns) · newton_schulz(m)

Yuan, Liu, Wu, Zhou, Gu: MARS: Unleashing the Power of Variance Reduction for Training Large Models, ICML 2025, arXiv 2411.10438.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.orthonormal import Orthonormalised
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.signed import MappedMomentum
from fallline.optim.directions.variance_reduced import (
    PREVIOUS,
    ExactlyVarianceReduced,
    VarianceReduced,
    previous_points,
)
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.oracles import gradients_at, of_minimised
from fallline.optim.engine.parts import Around, DecoupledDecay, Direction, Scalars
from fallline.optim.engine.state import State, like, working_dtype


@dataclass(frozen=True)
class SignOfAverage(MappedMomentum):
    """sign(m) with m ← β₁ m + (1 − β₁) g: one β, where Lion has two."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"new1": 1 - group["betas"][0], "new2": 1 - group["betas"][0]}


@dataclass(frozen=True)
class ForVectors(Around):
    """The inner direction under the hyperparameters for vectors."""

    brings_decay: ClassVar[bool] = True

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        own = {"betas": group["betas_1d"], "lr": group["lr"] * group["lr_1d_ratio"], "weight_decay": group["weight_decay_1d"]}
        return {**self.inner.coefficients({**group, **own}, t), "lr": own["lr"], "weight_decay": own["weight_decay"]}

    def __call__(self, g: Tensor, p: Tensor, s: Any, c: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner(g, p, s, c)


@dataclass(frozen=True)
class ForVectorsExactly(ForVectors):
    """The same, with the point before kept: the gradient there is that of the whole model at its weights before."""

    def init(self, p: Tensor) -> dict[str, State]:
        return {**super().init(p), "previous_point": like(p, precision=working_dtype(p.dtype), initial="parameter")}

    def __call__(self, g: Tensor, p: Tensor, s: Any, c: Any) -> tuple[Tensor, dict[str, Tensor]]:
        before = p.clone()  # the move may overwrite p
        u, new = super().__call__(g, p, s, c)
        return u, {**new, "previous_point": before}


VARIANTS: dict[str, type[Direction]] = {"adamw": Quotient, "lion": SignOfAverage, "shampoo": Orthonormalised}


@register("mars")
class MARS(Optimizer):
    """c = g + γ β₁ / (1 − β₁) (g − g̃), no longer than 1 a tensor; AdamW, Lion or orthonormalised momentum on c.

    g̃ is the gradient of the step before, or with ``exact=True`` the gradient of the same batch at the weights before, which costs a
    second gradient: ``opt.step(objective(x, y))``, whose dropout masks are the same for both and whose batch statistics move once, or
    any closure that evaluates the same batch whenever it is called. γ = 1, exact, is STORM. In the first step g̃ = g (the authors' code
    has 0). Vectors and scalars are trained by AdamW on the plain gradient, with the hyperparameters ``…_1d``. State: that of the
    variant and one tensor more, or two if exact; that of AdamW for vectors, and one more if exact.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 3e-3
    betas : pair of float, default (0.95, 0.99)
        β₂ acts in the AdamW variant only.
    gamma : float, default 0.025
        γ. Not above 0.1 or so unless exact: successive gradients are of different batches.
    variant : {"adamw", "lion", "shampoo"}, default "adamw"
    exact : bool, default False
    weight_decay : float, default 0
    eps : float, default 1e-8
    lr_1d : float, default 3e-3
        Stays in proportion to ``lr`` under schedules.
    betas_1d : pair of float, default (0.9, 0.95)
    weight_decay_1d : float, default 0.1
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine; the Shampoo variant runs eagerly.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}
    reevaluations: ClassVar[Mapping[str, str]] = {PREVIOUS: "the gradient of this batch at the previous weights"}

    def __init__(self, params: Any, lr: float = 3e-3, betas: tuple[float, float] = (0.95, 0.99), gamma: float = 0.025,
                 variant: Literal["adamw", "lion", "shampoo"] = "adamw", exact: bool = False, weight_decay: float = 0.0,
                 eps: float = 1e-8, lr_1d: float = 3e-3, betas_1d: tuple[float, float] = (0.9, 0.95), weight_decay_1d: float = 0.1,
                 **options: Unpack[EngineOptions]) -> None:
        if not isinstance(variant, str) or variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
        check("lr", lr)
        check("lr_1d", lr_1d)
        estimate = ExactlyVarianceReduced if exact else VarianceReduced
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay,
                    "lr_1d_ratio": lr_1d / lr if lr else 1.0, "betas_1d": betas_1d, "weight_decay_1d": weight_decay_1d}
        super().__init__(params, estimate(VARIANTS[variant]()), defaults, move=DecoupledDecay(), **options)

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        if p.ndim > 1:
            return self.direction
        return (ForVectorsExactly if isinstance(self.direction, ExactlyVarianceReduced) else ForVectors)(Quotient())

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        return of_minimised(gradients_at(previous_points(self.state), realisation), self.param_groups)
