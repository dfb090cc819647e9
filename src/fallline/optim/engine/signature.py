"""What of the parameter groups a plan depends on: which parameters share hyperparameters, and what selects a rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

Group = Mapping[str, Any]


def hyperparameters(group: Group, names: Iterable[str]) -> tuple[Any, ...]:
    """All of a group's, hashable; and the rate that a schedule started from, from which state may start."""
    return tuple(tuple(v) if isinstance(v, list) else v for v in (group.get(name) for name in (*names, "initial_lr")))


def signature(groups: Sequence[Group], names: Iterable[str]) -> Any:
    """What must stay the same for a plan to hold; rates may change as long as those that are equal stay so."""
    names = tuple(names)
    marks = [[_switches(group.get(name)) for name in names] for group in groups]
    if len(groups) == 1:
        return marks
    seen: dict[Any, int] = {}
    return marks, [seen.setdefault(hyperparameters(group, names), len(seen)) for group in groups]


def _switches(value: Any) -> Any:
    """What of a hyperparameter may select another rule or kernel: whether it is None, 0 or True."""
    if isinstance(value, tuple | list):
        return [_switches(each) for each in value]
    return value if value is None or isinstance(value, bool) else not isinstance(value, Tensor) and value == 0
