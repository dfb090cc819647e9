"""Any rule with another step size.

    θ ← move(θ, −η τ u),   u the base's direction,  τ the step size's, from statistics of all gradients and directions
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from fallline.core import registry
from fallline.core.space import Range
from fallline.optim.engine.over import Base, Over
from fallline.optim.engine.parts import Direction, Displace, Move, Replace, Search, StepSize


class WithStepSize(Over):
    """The base's directions, with lengths by a step size: ``WithStepSize(params, base="adam", step_size=Polyak())``.

    Step sizes that need the loss take it from ``opt.step(closure)`` or ``opt.step(objective(x, y))``, and it must be that of the
    gradient's own batch; where several processes share a model it must be the same in all, the mean over them.

    Parameters
    ----------
    params : iterable of Tensor or dict
    base : str or class
        Any rule of the library that steps by ``lr`` times a direction.
    step_size : StepSize
        A part of ``fallline.optim.step_sizes``: ``DistanceOverGradients()``, ``Polyak()``, ``ArmijoSearch()``, …
    lr : float, default 1
        Multiplies τ.
    **hyperparameters
        Of the base and of the step size (a name that both have is one number); ``compile``, ``nonfinite``, ``maximize``, ``storage``.

    Raises
    ------
    TypeError
        If the base has a step size already, keeps ``lr`` in its state, or its parameters are not its weights.
    """

    space: ClassVar[Mapping[str, Range]] = {}

    def __init__(self, params: Any, base: Base, step_size: StepSize, lr: float = 1.0, **hyperparameters: Any) -> None:
        if not isinstance(step_size, StepSize):
            raise TypeError(f"step_size must be a StepSize such as Polyak() or DistanceOverGradients(), got {step_size!r}")
        self.step_size = step_size
        known = inspect.signature(registry.lookup(base) if isinstance(base, str) else base).parameters if base else {}
        own = {n: hyperparameters.pop(n, x) if n not in known else hyperparameters.get(n, x) for n, x in step_size.defaults.items()}
        super().__init__(params, base, {"lr": lr, **hyperparameters}, step_size=step_size, **own)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "step_size": self.step_size}

    def check_base(self) -> None:
        super().check_base()
        parts, why = self.base.sentence, ""
        if parts.step_size is not None:
            why = f"it has {type(parts.step_size).__name__} already"
        elif isinstance(parts.move, Displace | Replace) or self.base.direction.uses_rate:
            why = "it keeps lr inside its state, or its parameters ahead of its weights"
        elif isinstance(self.step_size, Search) and parts.average is not None:
            why = "every trial would join its average"
        elif self.base.has("evaluate"):
            why = "it evaluates the loss itself"
        if why:
            raise self._refusal(why)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        for p in group["params"] if isinstance(self.step_size, Search) else ():
            if type(self.rule.move_for(p, group)).carry is not Move.carry:
                raise self._refusal("its state moves with the point, and would with every trial")

    def _refusal(self, why: str) -> TypeError:
        return TypeError(f"{type(self.step_size).__name__} cannot multiply the steps of {type(self.base).__name__}: {why}; use a base "
                         "such as SGD, Adam or Lion")

    def coefficients(self, direction: Direction, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return {**super().coefficients(direction, group, t), **self.step_size.coefficients(group, t)}
