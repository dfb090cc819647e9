"""Names of methods: what ``solve``, ``minimize``, ``compare`` and the command line look up.

A room registers a class with ``@register("lion")``. Importing the room makes the name known; a name that is not known yet
imports every room before it is refused, so that ``import fallline`` need not.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from fallline.core.errors import UnknownName
from fallline.core.method import Method, Train
from fallline.core.space import Range

NOT_ROOMS = {"core", "problems", "claims", "study"}

T = TypeVar("T", bound=type)
_classes: dict[str, type[Any]] = {}


def register(name: str) -> Callable[[T], T]:
    """Make a torch optimizer class or a Method class known under ``name``."""

    def keep(cls: T) -> T:
        if name in _classes and _classes[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"the name {name!r} already belongs to {_classes[name].__qualname__}")
        _classes[name] = cls
        return cls

    return keep


def _import_rooms() -> None:
    package = importlib.import_module(__name__.partition(".")[0])
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg and module.name not in NOT_ROOMS:
            importlib.import_module(f"{package.__name__}.{module.name}")


def names() -> list[str]:
    """Return every registered name, sorted."""
    _import_rooms()
    return sorted(_classes)


def rooms() -> dict[str, list[str]]:
    """Return the registered names of each room, sorted; a user's own have none."""
    found: dict[str, list[str]] = {}
    for name in names():
        package, _, rest = _classes[name].__module__.partition(".")
        if package == __name__.partition(".")[0]:
            found.setdefault(rest.partition(".")[0], []).append(name)
    return dict(sorted(found.items()))


def lookup(name: str) -> type[Any]:
    """Return the class behind a name; an unknown name raises ``UnknownName`` with suggestions."""
    if name not in _classes:
        _import_rooms()
    if name not in _classes:
        raise UnknownName("method", name, _classes)
    return _classes[name]


def is_optimizer(name: str) -> bool:
    """Return whether the name belongs to a torch optimizer class (and not to a Method)."""
    return issubclass(lookup(name), torch.optim.Optimizer)


def space(name: str) -> Mapping[str, Range]:
    """Return what to tune of the method, with ranges; empty if there is nothing."""
    return dict(getattr(lookup(name), "space", {}))


def order(name: str) -> int:
    """Return the highest derivatives the method asks for: 0 values, 1 gradients, 2 curvature."""
    cls = lookup(name)
    if issubclass(cls, torch.optim.Optimizer):
        return int(getattr(cls, "derivatives", 1))
    if {"hvp", "hessian"} & set(cls.needs):
        return 2
    return int(any("gradient" in need for need in cls.needs))


def method(name: str, **hyperparameters: Any) -> Method:
    """Return the Method of that name; an optimizer comes wrapped in ``Train``."""
    cls = lookup(name)
    if issubclass(cls, torch.optim.Optimizer):
        return Train(cls, **hyperparameters)
    made: Method = cls(**hyperparameters)
    return made
