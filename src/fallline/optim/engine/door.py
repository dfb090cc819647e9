"""What an optimizer refuses, and how it names the parameter that is meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from . import hyperparameters
from .parts import Direction
from .storage import Storage

if TYPE_CHECKING:
    from .optimizer import Optimizer

NONFINITE = ("raise", "skip", "ignore")
FOREIGN_KEYS = {"params", "param_names", "name", "role", "initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum",
                "swa_lr"}
"""Parameter-group keys that do not belong to the rule: torch's own, schedulers' and :func:`roles`'s."""


class EngineOptions(TypedDict, total=False):
    """Keyword arguments that every optimizer of the engine takes; see :class:`Optimizer`."""

    compile: bool
    nonfinite: str
    maximize: bool
    storage: Storage | None


def check_options(optimizer: type, options: EngineOptions, unknown: Iterable[str]) -> None:
    """Refuse arguments that nobody knows and engine options of the wrong kind."""
    for name in unknown:
        known = [n for n in inspect.signature(optimizer).parameters if n not in ("params", "options", "hyperparameters")]
        raise TypeError(f"{optimizer.__name__} has no argument {name!r}; {_hint(name, [*known, *EngineOptions.__annotations__])}")
    for name, value in (("compile", options["compile"]), ("maximize", options["maximize"])):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")
    if options["nonfinite"] not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {options['nonfinite']!r}")
    storage = options["storage"]
    if storage is not None and not isinstance(storage, Storage):
        raise ValueError(f"storage must be a Storage such as fl.optim.BFloat16() or fl.optim.Blockwise8bit(), got {storage!r}")


def check_group(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    """Refuse unknown keys and illegal hyperparameters."""
    for key in group:
        if key not in optimizer.defaults and key not in FOREIGN_KEYS:
            raise ValueError(
                f"unknown parameter-group key {key!r} for {type(optimizer).__name__}; {_hint(key, optimizer.defaults)}"
            )
    if not isinstance(group.get("maximize", False), bool):
        raise ValueError(f"maximize must be True or False, got {group['maximize']!r}")
    check_values(optimizer, {**optimizer.defaults, **group})


def check_values(optimizer: Optimizer, values: Mapping[str, Any]) -> None:
    """Refuse illegal hyperparameters of a complete group."""
    hyperparameters.check_group(values, optimizer.lengths, optimizer.optional, optimizer.closed)
    for name, remedy in optimizer.positive.items():
        hyperparameters.check_positive(name, values[name], remedy)


def check_layout(optimizer: Optimizer, index: int, p: Tensor) -> None:
    """Refuse a sparse gradient."""
    if p.grad is not None and p.grad.layout != torch.strided:
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support sparse gradients (parameter {describe(optimizer, p, index)}); "
            "build the embedding with sparse=False"
        )


def check_parameter(optimizer: Optimizer, index: int, p: Tensor, direction: Direction) -> None:
    """Refuse a parameter that the rule or its storage cannot treat."""
    check_layout(optimizer, index, p)
    if p.is_complex() and not (direction.supports_complex and optimizer.storage_for(p, {}).supports_complex):
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support complex parameters (parameter {describe(optimizer, p, index)}); "
            "store real and imaginary parts with torch.view_as_real"
        )


def describe(optimizer: Optimizer, p: Tensor, index: int | None = None) -> str:
    """The name or position of a parameter, and its shape."""
    if index is None:
        everything = [q for group in optimizer.param_groups for q in group["params"]]
        index = next(i for i, q in enumerate(everything) if q is p)
    return f"{_name_of(optimizer, index)} with shape {tuple(p.shape)}"


def _name_of(optimizer: Optimizer, index: int) -> str:
    for group in optimizer.param_groups:
        if index < len(group["params"]):
            names = group.get("param_names")
            return f"{names[index]!r}" if names else f"number {index} of its group"
        index -= len(group["params"])
    raise IndexError(index)


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known := list(known), n=1, cutoff=0.75)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
