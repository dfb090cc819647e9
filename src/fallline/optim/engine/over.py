"""Optimizers made from another optimizer's rule.

The base is never stepped: it is asked for its parts, its coefficients and its estimates, with the groups and the state of the optimizer
around it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fallline.core import registry

from .door import EngineOptions
from .hooks import First
from .optimizer import Optimizer
from .parts import Average, Direction, Move, StepSize, View
from .storage import Storage

Base = str | Callable[..., torch.optim.Optimizer]


class Over(Optimizer):
    """An optimizer that takes its steps by the rule of ``base``.

    Parameters
    ----------
    params : iterable of Tensor or dict
    base : str or class
        An optimizer of this library, by name or class.
    settings : dict
        Hyperparameters of the base, and ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    move, step_size : parts, optional
        In place of the base's.
    **further
        Hyperparameters of those, for the groups.
    """

    def __init__(self, params: Any, base: Base, settings: dict[str, Any], *, move: Move | None = None,
                 step_size: StepSize | None = None, **further: Any) -> None:
        options: EngineOptions = {n: x for n, x in settings.items() if n in EngineOptions.__annotations__}  # type: ignore[assignment]
        hyperparameters = {name: value for name, value in settings.items() if name not in options}
        self.base = _made(type(self).__name__, base, hyperparameters)
        storage = options.get("storage")
        if storage is not None:
            self.base.sentence = replace(self.base.sentence, storage=storage)
        self.check_base()
        parts = self.base.sentence
        average: Average | None = parts.average
        # The group has what the base has made of its defaults.
        defaults = {name: self.base.param_groups[0][name] for name in self.base.defaults if name != "maximize"}
        super().__init__(params, self.base.direction, {**further, **defaults}, move=move or parts.move,
                         step_size=step_size or parts.step_size, average=average, **options)

    def check_base(self) -> None:
        """Refuse a base whose rule cannot be used this way."""
        if self.base.rearranges:
            raise TypeError(f"{type(self).__name__} cannot go over {type(self.base).__name__}, which rearranges its parameters between "
                            "steps")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base}

    @property
    def rule(self) -> Optimizer:
        """The base, with this optimizer's groups and state."""
        self.base.param_groups, self.base.state = self.param_groups, self.state
        return self.base

    @property
    def positive(self) -> Mapping[str, str]:  # type: ignore[override]
        """Those of the base."""
        return self.base.positive

    @property
    def lengths(self) -> Mapping[str, int]:
        return self.base.lengths

    @property
    def optional(self) -> frozenset[str]:
        return self.base.optional

    @property
    def reevaluations(self) -> Mapping[str, str]:  # type: ignore[override]
        """Those of the base."""
        return self.base.reevaluations

    @property
    def reevaluates(self) -> bool:
        """Whether the base compares gradients at points of its own."""
        return bool(set(self.base.direction.probe(2, self.base.param_groups[0])) & set(self.base.reevaluations))

    def has(self, hook: str) -> bool:
        return self.base.has(hook) or getattr(type(self), hook) is not getattr(Over, hook)

    def check_group(self, group: Mapping[str, Any]) -> None:
        self.rule.check_group(group)

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        return self.rule.evaluate(closure)

    def watching(self, closure: Callable[[], Any] | None) -> AbstractContextManager[Any]:
        return self.rule.watching(closure)

    def before_step(self) -> None:
        self.rule.before_step()

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return self.rule.direction_for(p, group)

    def move_for(self, p: Tensor, group: Mapping[str, Any]) -> Move:
        return self.rule.move_for(p, group)

    def storage_for(self, p: Tensor, group: Mapping[str, Any]) -> Storage:
        return self.rule.storage_for(p, group)

    def coefficients(self, direction: Direction, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return self.rule.coefficients(direction, group, t)

    def measure(self, firsts: Sequence[First], states: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, float]]:
        return self.rule.measure(firsts, states)

    def share(self, views: Sequence[View], loss: Any) -> dict[str, Any]:
        return self.rule.share(views, loss)

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        return self.rule.estimate(oracle, realisation, t)


def _made(name: str, base: Base, hyperparameters: dict[str, Any]) -> Optimizer:
    make = registry.lookup(base) if isinstance(base, str) else base
    if not callable(make):
        raise TypeError(f"base must be an optimizer of this library, by name or class, got {base!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the groups around it will warn
        made = make([torch.nn.Parameter(torch.zeros(1))], **hyperparameters)
    if not isinstance(made, Optimizer) or isinstance(made, Over):
        raise TypeError(f"{name} goes over a rule of this library, such as fl.optim.AdamW, and {type(made).__name__} has none to take; "
                        "its update must be written out of place, as a Direction")
    return made
