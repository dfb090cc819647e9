"""A linear network with diagonal layers: which of many interpolators a method finds shows its bias.

    f(x) = ⟨β, x⟩,  β = u ∘ u − v ∘ v;   L = Σ (⟨β, x_i⟩ − y_i)² / (4 n);   u₀ = v₀ = α

Gradient flow keeps u ∘ v: small α leads to sparse β, large α to β of least norm. Woodworth et al.: Kernel and Rich Regimes in
Overparametrized Models, COLT 2020, arXiv 2002.09277.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.constructors import Smooth
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.tree import Tree


def sparse_regression(seed: int = 0, d: int = 100, n: int = 50, k: int = 5, mean: float = 5.0,
                      variance: float = 5.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs ``(n, d)`` of Gaussian entries, answers ``(n,)`` without noise, and β* with its first k entries 1/√k."""
    if not 1 <= k <= d:
        raise ValueError(f"k must be between 1 and d = {d}, got {k}")
    solution = torch.zeros(d, dtype=torch.float64)
    solution[:k] = k**-0.5
    normal = torch.randn(n, d, dtype=torch.float64, generator=Key(seed).fold("sparse regression").generator())
    inputs = mean + variance**0.5 * normal
    return inputs, inputs @ solution, solution


def diagonal_linear_net(seed: int = 0, d: int = 100, n: int = 50, k: int = 5, alpha: float = 0.1) -> Problem:
    """(1/4n) Σ (⟨u² − v², x_i⟩ − y_i)² over u and v: a sparse vector from half as many Gaussian measurements as it has entries.

    Inputs of mean and variance 5, no noise, least value 0; float64; all data at once; metric ‖u² − v² − β*‖²; starts at α, whatever
    the seed; 2,000 steps. The largest curvature at the start is near 126, which bounds learning rates.
    """
    inputs, answers, solution = sparse_regression(seed, d, n, k)

    def value(x: Tree) -> Tensor:
        return ((inputs @ (x["u"] ** 2 - x["v"] ** 2) - answers) ** 2).mean() / 4

    def observer(problem: Problem, x: Tree) -> dict[str, float]:
        error = (x["u"] ** 2 - x["v"] ** 2 - solution).square().sum()
        return {"value": float(problem.value(x)), "squared_error": float(error)}

    start = {name: torch.full((d,), alpha, dtype=torch.float64) for name in ("u", "v")}
    return Smooth(value, start, name="diagonal-linear-net", facts={"best_value": 0.0, "solution": solution}, observer=observer,
                  metric="squared_error", budget=Budget(steps=2_000))
