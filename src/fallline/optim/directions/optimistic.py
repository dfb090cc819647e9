"""AMSGrad with a prediction of the gradient to come.

    θ ← β₁ θ + (1 − β₁) g;   v ← β₂ v + (1 − β₂) g²;   v̂ ← max(v̂, v);   w ← w − η θ / √v̂
    m = Σ c_i g_i over the last r + 1 gradients;   point = w − η (β₁ θ + (1 − β₁) m) / √v̂

g is the gradient at the point. The coefficients c come from regularised minimal polynomial extrapolation: with U the differences of
successive gradients and M = UᵀU / ‖UᵀU‖, they are z / Σ z for (M + ρ I) z = 1, each for the later gradient of its difference.

Wang, Li, Karimi, Li: An Optimistic Acceleration of AMSGrad for Nonconvex Optimization, ACML 2021, arXiv 1903.01435.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.optim.directions.averages import Undebiased
from fallline.optim.directions.scalings import average_of_squares
from fallline.optim.engine.arithmetic import add_scaled, blend, over
from fallline.optim.engine.parts import Direction, Scalars, Tensors, View
from fallline.optim.engine.state import State, like, working_dtype

Weights = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Optimistic(Direction):
    """The next point; ``r`` past gradients are kept in a ring, ``eps`` is where v and v̂ start."""

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    r: int = 5
    eps: float = 1e-8
    average: Undebiased = field(default_factory=Undebiased)

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1, beta2 = group["betas"]
        return {"new1": 1 - beta1, "keep2": beta2, "new2": 1 - beta2, "t": float(t)}

    def init(self, p: Tensor) -> dict[str, State]:
        second = like(p, nonnegative=True, initial=self.eps)
        half = like(p, precision=working_dtype(p.dtype), initial="parameter")  # the weights, which must not be rounded
        return {**self.average.init(p), "exp_avg_sq": second, "max_exp_avg_sq": second, "half": half,
                "history": State((self.r, *p.shape))}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        average, new = self.average(g, s, c)
        v = average_of_squares(s["exp_avg_sq"], g, c)
        largest = torch.maximum(s["max_exp_avg_sq"], v, out=over(s["max_exp_avg_sq"]))
        rate = c.lr / largest.sqrt()
        half = s["half"] - rate * average
        t = int(c.t)
        predicted = g
        if t > self.r and hasattr(c, "weights"):
            weights = c.weights.to(g)[self.places(t)]
            predicted = add_scaled(weights[:-1] @ s["history"], weights[-1], g)
        history = s["history"] if over(g) is not None else s["history"].clone()
        history[:, (t - 1) % self.r] = g
        point = half - rate * blend(average, predicted, c.new1)
        return point, {**new, "exp_avg_sq": v, "max_exp_avg_sq": largest, "half": half, "history": history}

    def places(self, t: int) -> list[int]:
        """Where the gradients in the ring's slots, and the newest, come in the order of time, oldest first, at step ``t``."""
        return [(slot - (t - 1)) % self.r for slot in range(self.r)] + [self.r]

    def weights(self, views: Sequence[View], predictor: Weights) -> Tensor:
        """The coefficients of the last r + 1 gradients, from their products over all parameters that have had as many."""
        home = views[0].gradient
        products = torch.zeros(self.r + 1, self.r + 1, dtype=torch.float64, device=home.device)
        for g, state, t in (view for view in views if view.t > self.r):
            gradients, own = state["history"], torch.empty_like(products)
            own[:-1, :-1] = (gradients @ gradients.mT).sum(0)
            own[:-1, -1] = own[-1, :-1] = (gradients @ g.unsqueeze(-1)).sum(0).squeeze(-1)
            own[-1, -1] = (g * g).sum()
            places = self.places(t)
            order = sorted(range(len(places)), key=places.__getitem__)
            products += own[order][:, order]
        found = predictor(products)
        if not isinstance(found, Tensor) or found.shape != (self.r + 1,):
            raise ValueError(f"predictor must return a tensor of {self.r + 1} coefficients, one for each gradient, got {found!r}")
        return found


def extrapolation_weights(products: Tensor, reg: float) -> Tensor:
    """Coefficients by regularised minimal polynomial extrapolation, from the gradients' Gram matrix, oldest first; the first is 0."""
    r = len(products) - 1
    differences = torch.diff(torch.eye(r + 1, dtype=products.dtype, device=products.device), dim=0)
    gram = differences @ products @ differences.mT
    size = torch.linalg.matrix_norm(gram, 2)
    gram = torch.where(size > 0, gram / torch.where(size > 0, size, 1.0), 0.0)
    ones = torch.ones(r, dtype=gram.dtype, device=gram.device)
    z = torch.linalg.solve_ex(gram + reg * torch.diag(ones), ones)[0]
    return torch.cat([z.new_zeros(1), z / z.sum()])


def last_weights(products: Tensor) -> Tensor:
    """The newest gradient alone."""
    weights = torch.zeros(len(products), dtype=products.dtype, device=products.device)
    weights[-1] = 1.0
    return weights
