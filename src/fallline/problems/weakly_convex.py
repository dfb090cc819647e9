"""Weakly convex problems: the absolute value of a linear, quadratic or bilinear measurement's error.

    absolute regression      (1/m) Σ |⟨a_i, x⟩ − b_i|
    robust phase retrieval   (1/m) Σ |⟨a_i, x⟩² − b_i|
    blind deconvolution      (1/m) Σ |⟨u_i, x⟩ ⟨v_i, y⟩ − b_i|

One sample's proximal point moves along its measurement vectors only, and is the best of a few candidates: the stationary points where
the error is positive, where it is negative, and those where it is zero. Davis, Drusvyatskiy: Stochastic model-based minimization of
weakly convex functions, SIAM J. Optim. 2019, arXiv 1803.06523.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.composite_loss import CompositeLoss
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.tree import Tree


def linear_proximal_point(x: Tensor, step: float | Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return argmin_y |⟨a, y⟩ − b| + ‖y − x‖²/(2 step) = x + t a, t = (b − ⟨a, x⟩)/‖a‖² brought into [−step, step].

    Shapes are those of ``phase_proximal_point``.
    """
    missing, squared = b - (a * x).sum(-1), (a * a).sum(-1)
    t, reach = torch.where(squared == 0, 0.0, missing / torch.where(squared == 0, 1.0, squared)), torch.as_tensor(step, dtype=x.dtype)
    return x + t.clamp(-reach, reach)[..., None] * a


def phase_proximal_point(x: Tensor, step: float | Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return argmin_y |⟨a, y⟩² − b| + ‖y − x‖²/(2 step), the best x + t a.

    t is −2αs/(1 + 2α‖a‖²), 2αs/(1 − 2α‖a‖²) or (±√b − s)/‖a‖² with s = ⟨a, x⟩; those that do not exist are left out.

    Parameters
    ----------
    x : tensor (…, d)
    step : float or tensor
    a, b : tensors
        Of shapes that broadcast against (…, d) and, as ``step``, (…).
    """
    s, squared = (a * x).sum(-1), (a * a).sum(-1)
    root = b.sqrt()  # NaN for b < 0, where no point has error 0
    t = torch.stack([-2 * step * s / (1 + 2 * step * squared), 2 * step * s / (1 - 2 * step * squared), (root - s) / squared,
                     (-root - s) / squared])
    objective = ((s + t * squared) ** 2 - b).abs() + t**2 * squared / (2 * step)
    best = torch.where(objective.isfinite(), objective, torch.inf).argmin(0, keepdim=True)
    return x + t.gather(0, best)[0][..., None] * a


def bilinear_proximal_point(z: Tree, step: float, u: Tensor, v: Tensor, b: Tensor) -> Tree:
    """Return argmin |⟨u, x'⟩⟨v, y'⟩ − b| + (‖x' − x‖² + ‖y' − y‖²)/(2 step), the best (x + s u, y + t v).

    Where the error is not 0, s = −η⟨v, y'⟩ and t = −η⟨u, x'⟩ with η = ±step; where it is 0, η is a root of a quartic.
    """
    x, y = z["x"], z["y"]
    p, q, uu, vv, target = (float(number) for number in (u @ x, v @ y, u @ u, v @ v, b))
    both = uu * vv
    roots = np.roots([target * both**2, 0.0, -both * (2 * target + p * q), vv * p**2 + uu * q**2, target - p * q])
    best, least = (0.0, 0.0), abs(p * q - target)
    for eta in (step, -step, *(float(r.real) for r in roots if abs(r.imag) <= 1e-6 * abs(r))):
        if eta**2 * both == 1:
            continue
        left, right = ((p - eta * uu * q) / (1 - eta**2 * both), (q - eta * vv * p) / (1 - eta**2 * both))
        objective = abs(left * right - target) + eta**2 * (uu * right**2 + vv * left**2) / (2 * step)
        if objective < least:
            best, least = (-eta * right, -eta * left), objective
    return {"x": x + best[0] * u, "y": y + best[1] * v}


def _unit(d: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(d, dtype=torch.float64, generator=generator)
    return x / x.norm()


def _disturbed(b: Tensor, noise: float, corrupted: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise on all measurements, and a share of them replaced by squares of Gaussian numbers."""
    for name, value, legal in (("noise", noise, math.isfinite(noise) and noise >= 0), ("corrupted", corrupted, 0 <= corrupted < 1)):
        if not legal:
            wording = "a finite number >= 0" if name == "noise" else "a share in [0, 1)"
            raise ValueError(f"{name} must be {wording}, got {value!r}")
    b = b + noise * torch.randn(len(b), dtype=b.dtype, generator=generator)
    wrong = torch.rand(len(b), dtype=b.dtype, generator=generator) < corrupted
    return torch.where(wrong, torch.randn(len(b), dtype=b.dtype, generator=generator) ** 2, b)


def absolute_regression(seed: int = 0, d: int = 20, m: int = 60, noise: float = 0.0, corrupted: float = 0.0) -> Problem:
    """(1/m) Σ |⟨a_i, x⟩ − b_i|, Gaussian a_i, b_i = ⟨a_i, x*⟩, x* and the start uniform on the unit sphere: convex, not smooth.

    float64; samples of one measurement; metric ‖x − x*‖; least value 0 without noise and corruption; 60 passes. Other parameters as in
    ``robust_phase_retrieval``.
    """
    generator = Key(seed).fold("absolute regression").generator()
    rows, truth, start = torch.randn(m, d, dtype=torch.float64, generator=generator), _unit(d, generator), _unit(d, generator)
    b = _disturbed(rows @ truth, noise, corrupted, generator)

    def observer(problem: Problem, x: Tensor) -> dict[str, float]:
        return {"value": float(problem.value(x)), "error": float((x - truth).norm())}

    facts = {"solution": truth, "weak_convexity": 0.0}
    return CompositeLoss("abs", lambda x, a, y: a @ x - y, (rows, b), start, proximal_point=linear_proximal_point,
                         name="absolute-regression", facts=facts if noise or corrupted else {**facts, "best_value": 0.0},
                         observer=observer, metric="error", budget=Budget(steps=60 * m))


def phase_measurements(seed: int = 0, d: int = 20, m: int = 60, noise: float = 0.0,
                       corrupted: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows a_i ``(m, d)``, measurements b ``(m,)``, solution and start ``(d,)`` of ``robust_phase_retrieval``."""
    generator = Key(seed).fold("phase retrieval").generator()
    rows, truth, start = torch.randn(m, d, dtype=torch.float64, generator=generator), _unit(d, generator), _unit(d, generator)
    return rows, _disturbed((rows @ truth) ** 2, noise, corrupted, generator), truth, start


def robust_phase_retrieval(seed: int = 0, d: int = 20, m: int = 60, noise: float = 0.0, corrupted: float = 0.0) -> Problem:
    """(1/m) Σ |⟨a_i, x⟩² − b_i|, Gaussian a_i, b_i = ⟨a_i, x*⟩², x* and the start uniform on the unit sphere.

    float64; samples of one measurement; metric min ‖x ± x*‖; least value 0 without noise and corruption; 60 passes.

    Parameters
    ----------
    noise : float, default 0
        Deviation of Gaussian noise on every measurement, which may make it negative.
    corrupted : float, default 0
        Share of measurements that say nothing.
    """
    rows, b, truth, start = phase_measurements(seed, d, m, noise, corrupted)

    def observer(problem: Problem, x: Tensor) -> dict[str, float]:
        return {"value": float(problem.value(x)), "error": float(torch.minimum((x - truth).norm(), (x + truth).norm()))}

    # |q − b| for a convex quadratic q of Hessian 2 a aᵀ is 2 a aᵀ away from convex at most.
    facts = {"solution": truth, "weak_convexity": 2 * float(torch.linalg.matrix_norm(rows, 2)) ** 2 / m}
    return CompositeLoss("abs", lambda x, a, y: (a @ x) ** 2 - y, (rows, b), start, proximal_point=phase_proximal_point,
                         name="robust-phase-retrieval", facts=facts if noise or corrupted else {**facts, "best_value": 0.0},
                         observer=observer, metric="error", budget=Budget(steps=60 * m))


def blind_deconvolution(seed: int = 0, d: int = 10, m: int = 80, noise: float = 0.0, corrupted: float = 0.0) -> Problem:
    """(1/m) Σ |⟨u_i, x⟩⟨v_i, y⟩ − b_i|, Gaussian u_i and v_i, both solutions and both starts uniform on the unit sphere.

    Variables ``{"x", "y"}`` of d entries, float64; samples of one measurement; metric the Frobenius error of x yᵀ, whose norm is 1;
    least value 0 without noise and corruption; 60 passes. Other parameters as in ``robust_phase_retrieval``.
    """
    generator = Key(seed).fold("blind deconvolution").generator()
    left, right = (torch.randn(m, d, dtype=torch.float64, generator=generator) for _ in range(2))
    x, y = _unit(d, generator), _unit(d, generator)
    start = {"x": _unit(d, generator), "y": _unit(d, generator)}
    b = _disturbed((left @ x) * (right @ y), noise, corrupted, generator)
    truth = torch.outer(x, y)

    def residual(z: Tree, u: Tensor, v: Tensor, target: Tensor) -> Tensor:
        return (u @ z["x"]) * (v @ z["y"]) - target

    def observer(problem: Problem, z: Tree) -> dict[str, float]:
        return {"value": float(problem.value(z)), "error": float(torch.linalg.matrix_norm(torch.outer(z["x"], z["y"]) - truth))}

    facts = {"weak_convexity": float((left.norm(dim=1) * right.norm(dim=1)).mean())}
    return CompositeLoss("abs", residual, (left, right, b), start, proximal_point=bilinear_proximal_point, name="blind-deconvolution",
                         facts=facts if noise or corrupted else {**facts, "best_value": 0.0}, observer=observer, metric="error",
                         budget=Budget(steps=60 * m))
