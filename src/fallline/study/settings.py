"""What is compared, as plain data: contenders, entrants, budgets and trials.

A *trial* is one method with one setting of its hyperparameters on one problem, one budget, one seed. Its identity is a hash
of those inputs, of the side's label and of the library's version, so that a stored trial is found again and never run twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fallline import __version__
from fallline.core import registry
from fallline.core.budget import Budget
from fallline.core.method import Method, Train
from fallline.core.objective import Training
from fallline.core.problem import Problem
from fallline.core.space import LogUniform, Range
from fallline.study.identity import digest, fingerprint
from fallline.study.locating import Location, location
from fallline.study.numbers import code_text
from fallline.study.pruning import Rivals
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
        What is tuned, with ranges; None takes the method's own ``space`` less what is fixed, and the learning rate from 1e-5 to 1
        of a torch optimizer that states none.
    label
        How the side is called in tables; the name by default.
    factory
        A Method or torch optimizer class (or a function returning a Method), when it is not registered. It must be
        importable from a module to run in several processes.
    location
        Where such a class lies, instead of the class itself.
    """

    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Range] | None = None
    label: str = ""
    factory: Callable[..., Any] | None = None
    location: Location | None = None

    @property
    def title(self) -> str:
        """How the side is called in tables."""
        return self.label or self.name

    @property
    def made_by(self) -> Callable[..., Any]:
        """The factory, what lies at the location, or the registered class."""
        if self.factory is not None:
            return self.factory
        return self.location.found() if self.location is not None else registry.lookup(self.name)

    @property
    def ranges(self) -> dict[str, Range]:
        """What is tuned."""
        own = self.space if self.space is not None else getattr(self.made_by, "space", None)
        own = _usual_space(self.made_by) if own is None else own
        return {name: range_ for name, range_ in own.items() if name not in self.fixed}

    def method(self, setting: Mapping[str, Any]) -> Method:
        """The Method at one setting of its hyperparameters."""
        values, make = {**self.fixed, **setting}, self.made_by
        if isinstance(make, type) and issubclass(make, torch.optim.Optimizer):
            return Train(make, **values)
        made = make(**values)
        if not isinstance(made, Method):
            raise StudyError(f"factory of {self.title!r} must return a Method, got {type(made).__name__}")
        return made

    @property
    def identity(self) -> str:
        """The method as text: a hash of what makes it."""
        return fingerprint(self.made_by)

    def entrant(self, problem: Problem) -> Entrant:
        """The side as plain data."""
        made, form = self.made_by, "method"
        if isinstance(made, type) and issubclass(made, torch.optim.Optimizer):
            training = "for_model" if hasattr(made, "for_model") else "parameters"
            form = training if isinstance(problem, Training) else "train"
        return Entrant(self.title, _public(made), form, dict(self.fixed), dict(self.ranges))


@dataclass(frozen=True)
class Entrant:
    """What tables, reports and stored studies know of a side: nothing that runs.

    ``constructor`` is how a user writes the class, ``fl.optim.Lion``; ``form`` what its code looks like: an optimizer of a network's
    ``"parameters"`` or ``"for_model"``, one that ``"train"`` makes a method, or a ``"method"``.
    """

    title: str
    constructor: str
    form: str
    fixed: Mapping[str, Any]
    space: Mapping[str, Range]

    def code(self, setting: Mapping[str, Any], limits: Mapping[str, float]) -> str:
        """One setting as Python."""
        given = "".join(f", {name}={code_text(value)}" for name, value in {**self.fixed, **setting}.items())
        if self.form == "parameters":
            return f"{self.constructor}(model.parameters(){given})"
        if self.form == "for_model":
            return f"{self.constructor}.for_model(model{given})"
        method = f"fl.Train({self.constructor}{given})" if self.form == "train" else f"{self.constructor}({given[2:]})"
        budget = ", ".join(f"{limit}={int(value) if value == int(value) else value}" for limit, value in limits.items())
        return f"fl.solve(problem, {method}, fl.Budget({budget}))"


def _usual_space(made: Any) -> dict[str, Range]:
    """What is tuned of a class that does not say: others are tuned, and it should not be the only one that is not."""
    optimizer = isinstance(made, type) and issubclass(made, torch.optim.Optimizer)
    return {"lr": LogUniform(1e-5, 1.0)} if optimizer and "lr" in inspect.signature(made).parameters else {}


def _public(made: Any) -> str:
    module, name = made.__module__, getattr(made, "__qualname__", repr(made))
    parts = module.split(".")
    if parts[0] == "fallline" and len(parts) > 1:
        return f"fl.{parts[1]}.{name}"
    return f"torch.optim.{name}" if module.startswith("torch.optim") else name


def contender(method: str | Contender | type) -> Contender:
    """Accept a registered name, where a class lies (``module:Class`` or ``file.py:Class``), a Contender, or a class."""
    if isinstance(method, Contender):
        return method
    if isinstance(method, str) and ":" in method:
        place = location(method)
        place.found()
        return Contender(place.name.lower(), location=place)
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

    ``rivals`` are the trials that a pruner holds this one against.
    """

    problem: ProblemSpec
    contender: Contender
    method: str
    setting: Mapping[str, Any]
    limits: Mapping[str, float]
    seed: int
    metric: str | None = None
    rivals: Rivals | None = None
    id: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given = {name: fingerprint(value) for name, value in self.hyperparameters.items()}
        inputs = [self.problem.name, self.problem.identity, self.contender.title, self.method, given]
        pruned = [] if self.rivals is None else [self.rivals.identity]
        object.__setattr__(self, "id", digest([*inputs, dict(self.limits), self.seed, self.metric, __version__, *pruned]))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters that are given, tuned or fixed."""
        return {**self.contender.fixed, **self.setting}

    @property
    def processes(self) -> int:
        """How many processes the method runs in; 1 if it cannot be made, which is then what the trial reports."""
        try:
            return self.contender.method(self.setting).processes
        except Exception:
            return 1

    @property
    def budget(self) -> Budget:
        """The limits as a Budget."""
        limits: dict[str, Any] = {name: int(v) if name == "steps" else v for name, v in self.limits.items()}
        return Budget(**limits)
