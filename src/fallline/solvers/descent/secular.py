"""Quadratic models with a bounded or a penalised length, solved in an eigenbasis.

    argmin_s cᵀs + ½ sᵀΘs   with ‖s‖ ≤ Δ,    or   + (M/6)‖s‖³:
    s = −(Θ + λI)⁻¹ c   with λ ≥ max(0, −θ₁) such that ‖s‖ = Δ (or λ = 0 inside), or ‖s‖ = 2λ/M

Where c has no part along the lowest eigenvector and θ₁ < 0, the solution may need one: the "hard case", in which s goes along that
vector. So saddle points are left, with c = 0 as well.

Source: A. R. Conn, N. I. M. Gould, P. L. Toint, *Trust-Region Methods*, section 7.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from fallline.core.errors import NonFiniteError


def secular_step(values: Tensor, coefficients: Tensor, radius: Callable[[float], float]) -> tuple[Tensor, float]:
    """Return s and λ with ‖s‖ = radius(λ), or λ = 0 and ‖s‖ <= radius(0).

    Parameters
    ----------
    values : Tensor (k,)
        Θ, ascending.
    coefficients : Tensor (k,)
        c.
    radius : callable ``λ -> length``
        Not decreasing.
    """
    theta, c = (v.detach().double().cpu().numpy() for v in (values, coefficients))
    if not (np.isfinite(theta).all() and np.isfinite(c).all()):
        raise NonFiniteError("the gradient or the curvature has NaN or infinite entries")
    floor = max(0.0, -theta[0])

    def step(shift: float) -> np.ndarray:
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(c == 0, 0.0, -c / (theta + shift))

    def spare(shift: float) -> float:
        """How much longer the radius is than the step: almost linear in the shift, and finite where the step is not."""
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(step(shift)))
        return radius(shift) / length - 1 if length else math.inf

    least = floor if theta[0] > 0 else floor * (1 + 1e-12) + 1e-300
    if spare(least) >= 0:
        return _tensor(_hard_case(theta, step(least), radius(floor)) if theta[0] < 0 else step(least), values), floor
    excess = 1e-12 * max(1.0, floor)
    while spare(floor + excess) < 0:
        excess *= 2
    # By the logarithm of what is above the floor, which may be anything from 1e-300 on.
    above = lambda u: spare(floor + math.exp(u))
    shift = floor + math.exp(scipy.optimize.brentq(above, math.log(1e-300), math.log(excess), xtol=1e-14))
    return _tensor(step(shift), values), shift


def _hard_case(theta: np.ndarray, step: np.ndarray, radius: float) -> np.ndarray:
    rest = np.where(theta - theta[0] > 1e-12 * abs(theta[0]), step, 0.0)
    rest[0] = math.sqrt(max(0.0, radius**2 - float(rest @ rest)))
    return rest


def _tensor(step: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(step, dtype=like.dtype, device=like.device)
