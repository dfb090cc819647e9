"""Families of conic programs: instances as rows of numbers, dual bounds for all of them at once, and exact optima.

    multi-knapsack          max pᵀx,  W x ≤ b,  0 ≤ x ≤ 1;         bᵀy + Σ_j max(p_j − (Wᵀy)_j, 0)  for every y ≥ 0
    production planning     min Σ_j d_j x_j + f_j/x_j,  rᵀx ≤ b;    b y + 2 Σ_j √f_j √(d_j − r_j y)   for every y ≤ 0

The second is L(y) with the duals of the rotated cones eliminated: min over x_j > 0 of (d_j − r_j y) x_j + f_j/x_j.

M. Tanneau, P. Van Hentenryck: Dual Lagrangian learning for conic optimization, NeurIPS 2024, arXiv 2402.03086.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.nn import functional as F

from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key
from fallline.core.sets import NonNegative, Set
from fallline.solvers.dual_completion import box_bound, check_bounds

BISECTIONS = 100


class ConicFamily(abc.ABC):
    """Conic programs of one structure; an instance is a row of ``inputs`` numbers. What is computed from it is so in float64.

    Attributes
    ----------
    inputs, duals : int
        Numbers of an instance, and multipliers y to be predicted.
    sense : {"min", "max"}
        Whether a bound is one from below or from above.
    """

    inputs: int
    duals: int
    sense: ClassVar[Literal["min", "max"]] = "min"

    @abc.abstractmethod
    def to_cone(self, raw: Tensor) -> Tensor:
        """Return multipliers in the dual cone for any numbers, shape (…, duals)."""

    @abc.abstractmethod
    def bound(self, y: Tensor, instances: Tensor) -> Tensor:
        """Return the bound of multipliers in the dual cone, (…, duals) and (…, inputs) to (…); differentiable in y.

        In float64 whatever is given, for in float32 the rounding of sums would make tight bounds invalid.
        """

    @abc.abstractmethod
    def sample(self, count: int, key: Key | int) -> Tensor:
        """Return random instances, shape (count, inputs)."""

    @abc.abstractmethod
    def optimum(self, instances: Tensor) -> Tensor:
        """Return the optimal values, (count, inputs) to (count,), by an exact method."""

    def gap(self, bounds: Tensor, optima: Tensor) -> Tensor:
        """Return how far bounds are from optima, relative to |optimum|; negative only where a bound is none."""
        return (optima - bounds if self.sense == "min" else bounds - optima) / optima.abs()

    def _check(self, instances: Tensor) -> Tensor:
        if instances.shape[-1] != self.inputs:
            raise ValueError(f"instances of {self!r} must be rows of {self.inputs} numbers, got shape {tuple(instances.shape)}")
        return instances.double()


class BoxConic(ConicFamily):
    """min cᵀx subject to A x ⪰_K b, low ≤ x ≤ high; subclasses say what an instance's c, A, b are.

    Parameters
    ----------
    low, high : Tensor (n,)
        Finite.
    cone : Set, default ``NonNegative()``
        The dual cone K*, by its projection.
    """

    def __init__(self, low: Tensor, high: Tensor, cone: Set | None = None) -> None:
        check_bounds(low, high)
        self.low, self.high, self.cone = low.double(), high.double(), NonNegative() if cone is None else cone

    @abc.abstractmethod
    def data(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c (…, n), A (…, m, n) and b (…, m)."""

    def to_cone(self, raw: Tensor) -> Tensor:
        return self.cone.project(raw)

    def bound(self, y: Tensor, instances: Tensor) -> Tensor:
        lower = box_bound(y.double(), *self.data(self._check(instances)), self.low.to(y.device), self.high.to(y.device))
        return lower if self.sense == "min" else -lower


class MultiKnapsack(BoxConic):
    """Continuous knapsacks with several resources: max pᵀx subject to W x ≤ b, 0 ≤ x ≤ 1. An instance is (p, W, b).

    Drawn as by Chu and Beasley, in units of the largest weight: W uniform on (0, 1), p_j = mean_i W_ij + q_j/2 with q_j uniform on
    (0, 1), b = α Σ_j W_j; α uniform on (0.25, 0.75) for each instance. Multipliers are made nonnegative by a softplus.

    Parameters
    ----------
    items, resources : int
    """

    sense = "max"

    def __init__(self, items: int, resources: int) -> None:
        check_count("items", items, "there must be something to choose")
        check_count("resources", resources, "without one every item is taken")
        super().__init__(torch.zeros(items), torch.ones(items))
        self.items, self.resources = items, resources
        self.inputs, self.duals = items + resources * items + resources, resources

    def split(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return p (…, n), W (…, m, n) and b (…, m)."""
        p, W, b = self._check(instances).split([self.items, self.resources * self.items, self.resources], -1)
        return p, W.unflatten(-1, (self.resources, self.items)), b

    def data(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, W, b = self.split(instances)
        return -p, -W, -b

    def to_cone(self, raw: Tensor) -> Tensor:
        return F.softplus(raw)

    def sample(self, count: int, key: Key | int) -> Tensor:
        generator = as_key(key).generator()
        W, q, alpha = (torch.rand(count, *shape, dtype=torch.float64, generator=generator)
                       for shape in ((self.resources, self.items), (self.items,), (1,)))
        return torch.cat([W.mean(1) + q / 2, W.flatten(1), (0.25 + alpha / 2) * W.sum(-1)], 1)

    def optimum(self, instances: Tensor) -> Tensor:
        """Return the optimal values, by HiGHS."""
        values = []
        for p, W, b in zip(*(part.cpu().numpy() for part in self.split(instances)), strict=True):
            found = linprog(-p, A_ub=W, b_ub=b, bounds=(0, 1), method="highs")
            if not found.success:
                raise ValueError(f"an instance has no optimum: {found.message}")
            values.append(-found.fun)
        return torch.tensor(np.array(values), device=instances.device)

    def __repr__(self) -> str:
        return f"MultiKnapsack(items={self.items}, resources={self.resources})"


class ProductionPlanning(ConicFamily):
    """min Σ_j d_j x_j + f_j/x_j subject to rᵀx ≤ b, x > 0: holding and set-up costs, one resource. An instance is (d, f, r, b).

    Drawn with d, f and r uniform on (0.5, 1.5), and b a share, uniform on (0.25, 0.75), of what the free optimum √(f/d) would use.
    d, f, r and b must be positive. Multipliers are made nonpositive by a softplus.

    Parameters
    ----------
    products : int
    """

    def __init__(self, products: int) -> None:
        check_count("products", products, "there must be something to make")
        self.products, self.inputs, self.duals = products, 3 * products + 1, 1

    def split(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return d, f and r (…, n) and b (…)."""
        d, f, r, b = self._check(instances).split([self.products] * 3 + [1], -1)
        return d, f, r, b.squeeze(-1)

    def to_cone(self, raw: Tensor) -> Tensor:
        return -F.softplus(raw)

    def bound(self, y: Tensor, instances: Tensor) -> Tensor:
        y, (d, f, r, b) = y.double(), self.split(instances)
        # The product of roots, and not the root of the product, has a derivative where f = 0.
        return b * y.squeeze(-1) + 2 * (f.sqrt() * (d - r * y).sqrt()).sum(-1)

    def sample(self, count: int, key: Key | int) -> Tensor:
        drawn = torch.rand(count, self.inputs, dtype=torch.float64, generator=as_key(key).generator())
        d, f, r = (0.5 + drawn[:, :-1]).chunk(3, 1)
        b = (0.25 + drawn[:, -1:] / 2) * (r * (f / d).sqrt()).sum(1, keepdim=True)
        return torch.cat([d, f, r, b], 1)

    def optimum(self, instances: Tensor) -> Tensor:
        """Return the optimal values, by bisection on y: the objective at x_j = √(f_j/(d_j − r_j y)) that uses b up, but for rounding.

        Taken from the side of rᵀx < b: such a point is feasible, so that its objective owes nothing to ``bound``.
        """
        if not bool((self._check(instances) > 0).all()):
            raise ValueError(f"instances of {self!r} must be positive, got a least entry of {float(instances.min()):g}")
        d, f, r, b = self.split(instances)
        low, high = -torch.ones_like(b), torch.zeros_like(b)

        def too_low(y: Tensor) -> Tensor:  # L still rises
            return b > (r * (f / (d - r * y.unsqueeze(-1))).sqrt()).sum(-1)

        while not bool(too_low(low).all()):
            low = torch.where(too_low(low), low, 2 * low)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            rising = too_low(middle)
            low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
        x = (f / (d - r * low.unsqueeze(-1))).sqrt()
        return (d * x + f / x).sum(-1)

    def __repr__(self) -> str:
        return f"ProductionPlanning(products={self.products})"
