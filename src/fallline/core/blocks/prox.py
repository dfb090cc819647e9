"""Proximal steps in the metric of a small matrix, and what separable terms say of single variables.

    argmin_u ⟨g, u − x⟩ + ½ (u − x)ᵀ H (u − x) + r(u),    r(u) = Σ_i r_i(u_i) convex

by semismooth Newton on R(u) = u − prox_{r/D}(u − q'(u)/D), diag(D) ⪰ H: the entries at which the proximal map is flat stay where it
puts them, and the others solve a linear system, damped where its solution is worse than a proximal gradient step. For r = λ‖·‖₁ and
bounds this is Newton on the support, found in a few rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.terms import Term

ROUNDS = 200
DAMPINGS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of a Newton step, in units of D: the first that does well is taken


def slopes(term: Term, v: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return prox_{step r}(v) and its derivative, entry by entry: 0 where the term holds a variable at a kink or a bound."""
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        u = term.prox(v, step)
        slope = torch.autograd.grad(u.sum(), v)[0] if u.requires_grad else torch.zeros_like(v)
    return u.detach(), slope


def scaled_prox(term: Term, x: Tensor, g: Tensor, H: Tensor) -> Tensor:
    """Return argmin_u ⟨g, u − x⟩ + ½ (u − x)ᵀ H (u − x) + r(u), for a positive semidefinite H (k, k) and a separable, convex r."""
    D = H.abs().sum(1)
    D = torch.where(D > 0, D, 1.0)
    precision = torch.finfo(x.dtype).eps
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)

    def value(u: Tensor) -> Tensor:
        return (u - x) @ (g + H @ (u - x) / 2) + term.entries(u).sum()

    u = term.prox(x, 0.0)
    for _ in range(ROUNDS):
        derivative = g + H @ (u - x)
        image, slope = slopes(term, u - derivative / D, 1 / D)
        rest = u - image
        if not bool(torch.linalg.vector_norm(D * rest) > 8 * precision * torch.linalg.vector_norm(D * u.abs() + g.abs())):
            return image
        jacobian = identity - slope[:, None] * (identity - H / D[:, None])
        least = value(image)
        least = least + 8 * precision * least.abs()
        moves = (torch.linalg.solve_ex(jacobian + damping * slope.diag(), rest)[0] for damping in DAMPINGS)
        trials = (term.prox(u - move, 0.0) for move in moves)
        u = next((trial for trial in trials if bool(value(trial) <= least)), image)
    return u


def separable_decrease(term: Term | None, x: Tensor, g: Tensor, D: Tensor) -> Tensor:
    """Return twice the decrease of ⟨g, d⟩ + ½ Σ D_i d_i² + r(x + d) − r(x) at its minimum, variable by variable: g²/D without r."""
    if term is None:
        return g * g / D
    d = term.prox(x - g / D, 1 / D) - x
    # It is at least D d², and equal where r is linear from x to x + d; that has digits where the difference of r has none left.
    certain, here, there = D * d * d, term.entries(x), term.entries(x + d)
    decrease = -2 * (g * d + certain / 2 + there - here)
    rounding = 64 * torch.finfo(x.dtype).eps * ((g * d).abs() + here.abs() + there.abs())
    return torch.where(decrease > certain + rounding, decrease, certain)


def prox_gradient(term: Term | None, x: Tensor, g: Tensor, D: Tensor) -> Tensor:
    """Return D ∘ (x − prox_{r/D}(x − g/D)), zero at solutions alone; g without r."""
    return g if term is None else D * (x - term.prox(x - g / D, 1 / D))
