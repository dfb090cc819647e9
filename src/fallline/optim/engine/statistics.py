"""Integrands of the sums and maxima that step sizes may ask for, by name.

``g`` is the gradient, ``u`` the direction, ``p`` the point before the step, ``s`` the state before the step and ``c`` the coefficients,
with the learning rate of the parameter's group before any multiplier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
    "largest_relative_decrease": lambda g, u, p, s, c: (c.lr * u / p).clamp(min=0),
    "distance_squared": lambda g, u, p, s, c: (p - s["start"]) ** 2,
}

MAXIMA = frozenset({"largest_relative_decrease"})
"""Of these, which are nowhere negative, the maximum is taken and not the sum."""


def how(name: str) -> How:
    """How a statistic comes from its integrand."""
    return "max" if name in MAXIMA else "sum"


def _scaling(s: Mapping[str, Tensor], c: Any) -> Tensor:
    return s["curvature"].abs().clamp(min=c.alpha)
