"""Integrands of the sums and maxima that step sizes may ask for, by name.

``g`` is the gradient, ``u`` the direction, ``p`` the point before the step, ``s`` the state before the step and ``c`` the coefficients,
with the learning rate of the parameter's group before any multiplier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .reduction import How

Integrand = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor], Any], Tensor]

STATISTICS: dict[str, Integrand] = {
    "gradient_norm_squared": lambda g, u, p, s, c: g * g,
    "direction_norm_squared": lambda g, u, p, s, c: u * u,
    "parameter_norm_squared": lambda g, u, p, s, c: p * p,
    "direction_dot_gradient": lambda g, u, p, s, c: u * g,
    "scaled_move_squared": lambda g, u, p, s, c: (p - s["previous_point"]) ** 2 * _scaling(s, c),
    "scaled_gradient_change_squared": lambda g, u, p, s, c: ((g - s["previous_gradient"]) * c.known) ** 2 / _scaling(s, c),
    "step_dot_gradient": lambda g, u, p, s, c: c.lr * u * g,
    "largest_relative_decrease": lambda g, u, p, s, c: torch.where(p > 0, c.lr * u / torch.where(p > 0, p, 1.0), 0.0).clamp(min=0),
    "distance_squared": lambda g, u, p, s, c: (p - s["start"]) ** 2,
    "gradient_change_squared": lambda g, u, p, s, c: (g - s["previous_gradient"]) ** 2,
    "anchor_distance_squared": lambda g, u, p, s, c: (s["anchor"] - s["start"]) ** 2,
    "anchor_distance_dot_gradient_step": lambda g, u, p, s, c: (s["anchor"] - s["start"]) * (c.lr * g),
    "gradient_step_squared": lambda g, u, p, s, c: (c.lr * g) ** 2,
}

OF_DIRECTION = frozenset({"direction_norm_squared", "direction_dot_gradient", "step_dot_gradient", "largest_relative_decrease"})
"""Those that need the direction; the others are known before it."""

MAXIMA = frozenset({"largest_relative_decrease"})
"""Of these, which are nowhere negative, the maximum is taken and not the sum."""


def how(name: str) -> How:
    """How a statistic comes from its integrand."""
    return "max" if name in MAXIMA else "sum"


def of_direction(names: Iterable[str]) -> bool:
    """Whether any of them needs the direction."""
    return not OF_DIRECTION.isdisjoint(names)


def _scaling(s: Mapping[str, Tensor], c: Any) -> Tensor:
    return s["curvature"].abs().clamp(min=c.alpha)
