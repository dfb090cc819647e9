"""Convex problems: logistic regression and least squares."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fallline.core.budget import Budget
from fallline.core.constructors import Composite, FiniteSum
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.terms import L1
from fallline.problems.extras import data_package

PENALTY = 1e-3


def breast_cancer() -> tuple[Tensor, Tensor]:
    data = data_package("sklearn.datasets", "scikit-learn").load_breast_cancer()
    features = torch.tensor(data.data, dtype=torch.float64)
    features = (features - features.mean(0)) / features.std(0, unbiased=False)
    return torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1), 2.0 * torch.tensor(data.target) - 1


def _loss(w: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    return softplus(-labels * (features @ w)).mean()


def _reference(features: Tensor, labels: Tensor) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The mean loss and its gradient in NumPy, for SciPy to find least values with."""
    rows = (labels[:, None] * features).numpy()

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = rows @ w
        return np.logaddexp(0, -margins).mean(), -rows.T @ (0.5 - 0.5 * np.tanh(margins / 2)) / len(rows)

    return loss


def logistic(seed: int = 0, penalty: float = PENALTY) -> Problem:
    """Breast cancer, logistic regression with (penalty/2)‖w‖².

    569 rows of 30 standardised features and a constant, float64; batches of 8; starts at 0 whatever the seed; the least value is in
    ``facts["best_value"]``; 2,000 steps.
    """
    features, labels = breast_cancer()

    loss = _reference(features, labels)

    def value(w: Tensor, a: Tensor, y: Tensor) -> Tensor:
        return _loss(w, a, y) + penalty / 2 * (w @ w)

    def reference(w: np.ndarray) -> tuple[float, np.ndarray]:
        mean, gradient = loss(w)
        return mean + penalty / 2 * w @ w, gradient + penalty * w

    best = scipy.optimize.minimize(reference, np.zeros(31), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    facts = {"best_value": float(best.fun), "mu": penalty,
             "L": float(torch.linalg.matrix_norm(features, 2)) ** 2 / (4 * len(features)) + penalty}
    return FiniteSum(value, (features, labels), torch.zeros(31, dtype=torch.float64), batch_size=8, name="logistic", facts=facts,
                     budget=Budget(steps=2_000))


def logistic_l1(seed: int = 0, penalty: float = 1e-2) -> Problem:
    """Breast cancer, logistic regression with penalty·‖w‖₁: a ``Composite``.

    Data, batches and start as in ``logistic``; the least value is in ``facts["best_value"]``; 2,000 steps of a proximal method.
    """
    features, labels = breast_cancer()
    smooth = FiniteSum(_loss, (features, labels), torch.zeros(31, dtype=torch.float64), batch_size=8)
    return Composite(smooth, L1(penalty), name="logistic-l1", facts={"best_value": _least_l1(penalty)}, budget=Budget(steps=2_000))


@functools.cache
def _least_l1(penalty: float) -> float:
    """The least value of ``logistic_l1``, over w = u − v with u, v ≥ 0, where the penalty is linear."""
    loss = _reference(*breast_cancer())

    def split(parts: np.ndarray) -> tuple[float, np.ndarray]:
        mean, gradient = loss(parts[:31] - parts[31:])
        return mean + penalty * parts.sum(), np.concatenate([gradient, -gradient]) + penalty

    best = scipy.optimize.minimize(split, np.zeros(62), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 62,
                                   options={"ftol": 1e-16, "gtol": 1e-12})
    return float(best.fun)


def least_squares(seed: int = 0, condition: float = 1e3, n: int = 200, d: int = 50, noise: float = 0.1) -> Problem:
    """½ mean (aᵢᵀw − bᵢ)² with a chosen condition number of the Hessian.

    Gaussian rows, singular values spread evenly in logarithm so that κ(AᵀA/n) = ``condition`` and L = 1; noise in b; float64; batches
    of 10; ``facts`` hold L, mu, best_value and the solution; 2,000 steps.
    """
    if not (math.isfinite(condition) and condition >= 1):
        raise ValueError(f"condition must be a number of at least 1, got {condition}")
    generator = Key(seed).fold("least squares").generator()
    u, _, v = torch.linalg.svd(torch.randn(n, d, dtype=torch.float64, generator=generator), full_matrices=False)
    singular = math.sqrt(n) * torch.logspace(0, -0.5 * math.log10(condition), d, dtype=torch.float64)
    rows = u * singular @ v
    target = rows @ torch.randn(d, dtype=torch.float64, generator=generator)
    target = target + noise * torch.randn(n, dtype=torch.float64, generator=generator)
    solution = v.T @ (u.T @ target / singular)

    def value(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return 0.5 * ((a @ w - b) ** 2).mean()

    facts = {"L": 1.0, "mu": 1 / condition, "solution": solution, "best_value": float(value(solution, rows, target))}
    return FiniteSum(value, (rows, target), torch.zeros(d, dtype=torch.float64), batch_size=10, name="least-squares", facts=facts,
                     budget=Budget(steps=2_000))
