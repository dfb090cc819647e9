"""XGrad: the gradient is taken where the weights are expected to be after the step.

    θ̂ = θ − s · η u_{t−1};   g = ∇f(θ̂);   θ ← step of the base rule from θ with g

u_{t−1} is the base's last direction, without weight decay. Guan, Li, Shi, Xu: XGrad: Boosting Gradient-Based Optimizers With Weight
Prediction, arXiv 2305.18240.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.predicted import Held, Predicted
from fallline.optim.engine.hyperparameters import check_nonnegative
from fallline.optim.engine.over import Base, Over
from fallline.optim.engine.parts import Direction, Move, Replace, has_solution
from fallline.optim.survey import Adam


@register("xgrad")
class XGrad(Over):
    """Gradients at θ̂ = θ − s · η u_{t−1}; steps of the base rule from θ.

    Between steps the parameters hold θ̂, where the next gradient is taken; ``with opt.solution():`` shows the weights θ, for
    validation and for saving a model (batch-norm statistics are those of θ̂). Accumulated gradients, clipping, scaling and skipped steps
    need nothing special; a change of the parameters from outside lasts until the next step, which starts from θ. η is that of the step
    just taken: a schedule reaches the prediction one step later. One more tensor of state, the weights.

    Parameters
    ----------
    params : iterable of Tensor or dict
    base : str or class, default Adam
        Any rule of the library whose last step says where the next one leads: not one whose step size depends on the gradient to
        come, or which holds its parameters ahead itself. With heavy ball of momentum μ and s = μ this is Nesterov's method.
    steps : float, default 1
        s.
    **hyperparameters
        Of the base; and ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, base: Base = Adam, steps: float = 1.0, **hyperparameters: Any) -> None:
        check_nonnegative("steps", steps, "1 is typical")
        self.steps = float(steps)
        super().__init__(params, base, hyperparameters, move=Held())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "steps": self.steps}

    def check_base(self) -> None:
        super().check_base()
        parts, name = self.base.sentence, type(self.base).__name__
        why = ""
        if parts.step_size is not None:
            why = "its step size depends on the gradient to come"
        elif parts.average is not None or has_solution(self.base.direction) or isinstance(parts.move, Replace):
            why = "its parameters are not its weights already"
        elif self.reevaluates:
            why = "it compares gradients at its own points"
        if why:
            raise _unpredictable(name, why)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        for p in group["params"]:
            if type(self.rule.move_for(p, group)).carry is not Move.carry:
                raise _unpredictable(type(self.base).__name__, "its state belongs to the point")

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return Predicted(self.rule.direction_for(p, group), self.rule.move_for(p, group), self.steps)

    def move_for(self, p: Tensor, group: Mapping[str, Any]) -> Move:
        return self.sentence.move


def _unpredictable(name: str, why: str) -> TypeError:
    return TypeError(f"XGrad cannot predict the weights of {name}: {why}; use a base such as Adam, Momentum or Lion")
