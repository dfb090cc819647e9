"""What is compared, as plain data: contenders, budgets and trials.

A *trial* is one method with one setting of its hyperparameters on one problem, one budget, one seed. Its identity is a hash
of those inputs, of the side's label and of the library's version, so that a stored trial is found again and never run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fallline import __version__
from fallline.core import registry
from fallline.core.budget import Budget
from fallline.core.method import Method, Train
from fallline.core.problem import Problem
from fallline.core.space import Range
from fallline.study.identity import digest, fingerprint
from fallline.study.sources import ProblemSpec, StudyError


@dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Parameters
    ----------
    name
        A registered method, or, with `factory`, any label.
    fixed
        Hyperparameters that are given and not tuned.
    space
        What is tuned, with ranges; None takes the method's own ``space`` less what is fixed.
    label
        How the side is called in tables; the name by default.
    factory
        A Method or torch optimizer class (or a function returning a Method), when it is not registered. It must be
        importable from a module to run in several processes.
    """

    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Range] | None = None
    label: str = ""
    factory: Callable[..., Any] | None = None

    @property
    def title(self) -> str:
        """How the side is called in tables."""
        return self.label or self.name

    @property
    def ranges(self) -> dict[str, Range]:
        """What is tuned."""
        if self.space is not None:
            own = self.space
        else:
            own = getattr(self.factory, "space", {}) if self.factory is not None else registry.space(self.name)
        return {name: range_ for name, range_ in own.items() if name not in self.fixed}

    def method(self, setting: Mapping[str, Any]) -> Method:
        """The Method at one setting of its hyperparameters."""
        values = {**self.fixed, **setting}
        if self.factory is None:
            return registry.method(self.name, **values)
        if isinstance(self.factory, type) and issubclass(self.factory, torch.optim.Optimizer):
            return Train(self.factory, **values)
        made = self.factory(**values)
        if not isinstance(made, Method):
            raise StudyError(f"factory of {self.title!r} must return a Method, got {type(made).__name__}")
        return made

    @property
    def identity(self) -> str:
        """The method as text: a hash of the factory, or of the registered class."""
        return fingerprint(registry.lookup(self.name) if self.factory is None else self.factory)


def contender(method: str | Contender | type) -> Contender:
    """Accept a registered name, a Contender, or a Method or torch optimizer class."""
    if isinstance(method, Contender):
        return method
    if isinstance(method, str):
        registry.lookup(method)
        return Contender(method)
    if isinstance(method, type):
        return Contender(method.__name__.lower(), factory=method)
    raise StudyError(f"methods must hold names, classes or Contenders, got {method!r}; wrap settings in Contender(...)")


def checked_budget(budget: Budget | None, problem: Problem) -> Budget:
    """The budget given, or the problem's own; refused when there is neither."""
    if budget is not None and not isinstance(budget, Budget):
        raise StudyError(f"budget must be a Budget, got {budget!r}; give Budget(steps=500), or another limit by its name")
    chosen: Budget | None = budget if budget is not None else problem.budget
    if chosen is None:
        raise StudyError(f"problem {problem.name!r} has no budget of its own; give Budget(steps=500), or --budget steps=500")
    return chosen


@dataclass(frozen=True)
class Trial:
    """One run to be made: everything that determines its outcome.

    ``method`` is the contender's identity, and ``id`` the hash of all inputs: two trials with one id are the same run. Both are
    found where the trial is planned and travel with it: in a worker the same code may lie under another module's name, and what
    a function reads in its module may have changed.
    """

    problem: ProblemSpec
    contender: Contender
    method: str
    setting: Mapping[str, Any]
    limits: Mapping[str, float]
    seed: int
    metric: str | None = None
    id: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given = {name: fingerprint(value) for name, value in self.hyperparameters.items()}
        inputs = [self.problem.name, self.problem.identity, self.contender.title, self.method, given]
        object.__setattr__(self, "id", digest([*inputs, dict(self.limits), self.seed, self.metric, __version__]))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters that are given, tuned or fixed."""
        return {**self.contender.fixed, **self.setting}

    @property
    def budget(self) -> Budget:
        """The limits as a Budget."""
        limits: dict[str, Any] = {name: int(v) if name == "steps" else v for name, v in self.limits.items()}
        return Budget(**limits)
