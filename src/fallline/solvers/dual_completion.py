"""Bounds from duals: whatever the multipliers of some constraints, the best of the others completes them to a bound.

    p* = min φ(x)  subject to  A x ⪰_K b,  x ∈ X            L(y) = bᵀy + min_{x ∈ X} φ(x) − yᵀA x  ≤  p*   for every y ∈ K*

    X = [l, u], φ = cᵀx:   L(y) = bᵀy + lᵀz_l − uᵀz_u,   z_l = max(r, 0),  z_u = max(−r, 0),  r = c − Aᵀy
    anything else:         x̂ minimises φ(x) − yᵀA x over X by a conic solver;   ∇L(y) = b − A x̂   (the envelope theorem)

M. Tanneau, P. Van Hentenryck: Dual Lagrangian learning for conic optimization, NeurIPS 2024, arXiv 2402.03086.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Minimizer = Callable[[Tensor], tuple[Tensor, Tensor]]


def box_bound(y: Tensor, c: Tensor, A: Tensor, b: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return L(y) for min cᵀx subject to A x ⪰_K b, low ≤ x ≤ high: a lower bound for every y in K*, best in z_l, z_u.

    Parameters
    ----------
    y : Tensor (…, m)
        In the dual cone, which is not looked at.
    c : Tensor (…, n)
    A : Tensor (…, m, n)
    b : Tensor (…, m)
    low, high : Tensor (…, n)

    Returns
    -------
    Tensor (…)

    Raises
    ------
    ValueError
        Bounds are not finite, or not ordered (``check_bounds``).
    """
    check_bounds(low, high)
    r = c - (A.mT @ y.unsqueeze(-1)).squeeze(-1)
    return (b * y).sum(-1) + (low * r.clamp(min=0) - high * (-r).clamp(min=0)).sum(-1)


def check_bounds(low: Tensor, high: Tensor) -> None:
    """Raise ``ValueError`` unless bounds are finite and ordered: without a finite bound the completion is no bound."""
    for name, bound in (("low", low), ("high", high)):
        if not bool(torch.isfinite(bound).all()):
            raise ValueError(f"{name} must be finite, got {bound[~torch.isfinite(bound)][0]:g} in it: reduced costs of the wrong sign "
                             "have no completion then; give every variable bounds that it need not exceed")
    if not bool((low <= high).all()):
        raise ValueError(f"low must be <= high everywhere, got low={low}, high={high}")


def envelope_bound(y: Tensor, A: Tensor, b: Tensor, minimize: Minimizer) -> Tensor:
    """Return L(y), with ∇L(y) = b − A x̂ as its derivative.

    Parameters
    ----------
    y : Tensor (…, m)
        In the dual cone.
    A : Tensor (…, m, n)
    b : Tensor (…, m)
    minimize : callable ``q (…, n) -> (x̂ (…, n), value (…))``
        Minimises φ(x) − qᵀx over X: ``ConicMinimizer``, or a formula.

    Returns
    -------
    Tensor (…)
        As valid a bound as the value of ``minimize`` is exact.
    """
    bound: Tensor = _Envelope.apply(y, A, b, minimize)
    return bound


class _Envelope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, A: Tensor, b: Tensor, minimize: Minimizer) -> Tensor:
        x, least = minimize((A.mT @ y.unsqueeze(-1)).squeeze(-1))
        ctx.save_for_backward(b - (A @ x.unsqueeze(-1)).squeeze(-1))
        return (b * y).sum(-1) + least

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream.unsqueeze(-1) * ctx.saved_tensors[0], None, None, None


class ConicMinimizer:
    """argmin_{x ∈ X} φ(x) − qᵀx by cvxpy, which ``pip install 'fallline[conic]'`` brings.

    Parameters
    ----------
    n : int
        Variables.
    build : callable ``cvxpy.Variable (n,) -> (expression, list of constraints)``
        φ, convex, and X.
    solver : str, default "CLARABEL"

    Notes
    -----
    Values are as exact as the solver's tolerance, about 1e-8: so are bounds made of them.
    """

    def __init__(self, n: int, build: Callable[[Any], tuple[Any, Sequence[Any]]], solver: str = "CLARABEL") -> None:
        try:
            import cvxpy
        except ImportError as error:
            raise ImportError("ConicMinimizer solves by cvxpy: pip install 'fallline[conic]'") from error
        self.x, self.q, self.solver = cvxpy.Variable(n), cvxpy.Parameter(n), solver
        objective, constraints = build(self.x)
        self.program = cvxpy.Problem(cvxpy.Minimize(objective - self.q @ self.x), list(constraints))

    def __call__(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂ (…, n) and the least values (…), one program after the other on the CPU.

        Raises
        ------
        ValueError
            A program has no minimum: the multipliers behind q have no completion.
        """
        points, values = [], []
        for row in q.detach().double().cpu().reshape(-1, q.shape[-1]).numpy():
            self.q.value = row
            value = self.program.solve(solver=self.solver)
            if self.program.status != "optimal":
                raise ValueError(f"min φ(x) − qᵀx over X is {self.program.status}, so that L(y) is no bound; X must have a point, and "
                                 "be bounded where φ does not grow")
            points.append(torch.as_tensor(self.x.value))
            values.append(value)
        return torch.stack(points).to(q).reshape(q.shape), torch.tensor(values).to(q).reshape(q.shape[:-1])

    def __repr__(self) -> str:
        return f"ConicMinimizer(n={self.x.size}, solver={self.solver!r})"
