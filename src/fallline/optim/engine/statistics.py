"""Integrands of the sums that step sizes may ask for, by name.

``g`` is the gradient, ``u`` the direction, ``p`` the point before the step and ``s`` the state before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

Integrand = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], Tensor]

STATISTICS: dict[str, Integrand] = {
    "gradient_norm_squared": lambda g, u, p, s: g * g,
    "direction_norm_squared": lambda g, u, p, s: u * u,
    "parameter_norm_squared": lambda g, u, p, s: p * p,
    "direction_dot_gradient": lambda g, u, p, s: u * g,
    "distance_squared": lambda g, u, p, s: (p - s["start"]) ** 2,
}
