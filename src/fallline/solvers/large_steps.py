"""Logistic regression with huge steps: gradient descent that separates, and the perceptrons it becomes.

    z_i = y_i a_i,   p_i = 1/(1 + exp(z_iᵀx))
    gradient descent   x ← x + (γ/n) Σ p_i z_i              → as γ → ∞, x/γ:  x ← x + (1/n) Σ_{z_iᵀx < 0} z_i   (batch perceptron)
    normalised         x ← x + γ Σ p_i z_i / Σ p_i          → as γ → ∞, x/γ:  x ← x + the mean of the misclassified z_i

Both stop at the first x with min z_iᵀx > 0. Large steps raise the loss and separate sooner: the loss is no measure of progress here.
With R = max ‖a_i‖ and a margin μ, gradient descent of any large γ takes O(nR²/μ²) steps, in which the n is real, the normalised form
O(R²/μ²). An exact zero counts half in the limits, as p_i = ½ says.

Tyurin: From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes, AAAI 2025,
arXiv 2412.08424.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.driver import Moment, solve
from fallline.core.errors import WrongProblem
from fallline.core.keys import Key
from fallline.core.linear_model import LinearModel
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range


@dataclass(frozen=True)
class _LargeSteps(Method):
    step_size: float

    needs: ClassVar[tuple[str, ...]] = ("gradient", "linear_model")
    kinds: ClassVar[tuple[str, ...]] = ("finite-sum",)
    space: ClassVar[Mapping[str, Range]] = {"step_size": LogUniform(1e-2, 1e6)}

    def __post_init__(self) -> None:
        if not self.step_size > 0:
            raise ValueError(f"step_size must be > 0 (math.inf is the perceptron limit), got {self.step_size}")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        model = problem.linear_model
        if model.loss.name != "logistic" or model.ridge:
            raise WrongProblem(f"{type(self).__name__} separates data: it needs LinearModel(A, y, 'logistic') without a ridge, "
                               f"got the {model.loss.name!r} loss and ridge={model.ridge:g}")
        if not bool((model.weights * len(model.weights) - 1).abs().max() < 1e-6):
            raise WrongProblem(f"{type(self).__name__} counts all data points alike, and the model has weights of its own; "
                               "leave them out")

    def init(self, problem: Problem, key: Key) -> State:
        return self._seen(problem, problem.x0.clone())

    def _seen(self, problem: Problem, x: Tensor) -> State:
        model = problem.linear_model
        problem.counts.add("matvecs")
        problem.counts.add("samples", len(model.targets))
        margins = model.targets * model.operator.matvec(x)
        return {"x": x, "margins": margins, "loss": -logsigmoid(margins).mean()}

    def step(self, problem: Problem, state: State) -> State:
        margins = state["margins"]
        if bool((margins > 0).all()):
            return state
        model = problem.linear_model
        problem.counts.add("matvecs")
        problem.counts.add("gradients")
        direction = model.operator.adjoint(model.targets * self._shares(margins))
        return self._seen(problem, state["x"] + (1.0 if math.isinf(self.step_size) else self.step_size) * direction)

    def _shares(self, margins: Tensor) -> Tensor:
        """The weights of the z_i in a step of size 1."""
        raise NotImplementedError(f"{type(self).__name__} must define _shares")

    def _misclassified(self, margins: Tensor) -> Tensor:
        return (margins < 0).to(margins.dtype) + (margins == 0).to(margins.dtype) / 2

    def report(self, problem: Problem, state: State) -> Report:
        margins = state["margins"]
        wrong = (margins <= 0).to(margins.dtype).mean()
        report = Report(state["x"], value=state["loss"], gap=wrong)
        if not bool(wrong) and bool(torch.isfinite(margins).all()):
            length = torch.linalg.vector_norm(state["x"])
            report.status, report.message = "converged", "every data point is on its side"
            report.certificate = float(margins.min() / length)
        return report


@register("large-step-gd")
@dataclass(frozen=True)
class LargeStepGD(_LargeSteps):
    """x ← x + (γ/n) Σ p_i z_i until min z_iᵀx > 0.

    Parameters
    ----------
    step_size : float, default 1e6
        γ; ``math.inf`` is the batch perceptron, in units of γ.

    Notes
    -----
    For ``LinearModel(A, y, "logistic")`` without a ridge, whose rows should include a constant where the classes are not separated by a
    plane through the origin. The gap is the share of data points that are not on their side, the certificate the margin
    min z_iᵀx/‖x‖. Data that are not separable end with the budget.
    """

    step_size: float = 1e6

    def _shares(self, margins: Tensor) -> Tensor:
        p = self._misclassified(margins) if math.isinf(self.step_size) else torch.sigmoid(-margins)
        return p / len(margins)


@register("normalized-large-step-gd")
@dataclass(frozen=True)
class NormalizedLargeStepGD(_LargeSteps):
    """x ← x + γ Σ p_i z_i / Σ p_i until min z_iᵀx > 0: steps γ / mean p, so that few misclassified points count as much as many.

    Parameters
    ----------
    step_size : float, default 1e6
        γ; ``math.inf`` is its perceptron limit, in units of γ.

    Notes
    -----
    As ``LargeStepGD``, in O(R²/μ²) steps whatever n. The normalisation is that of the link to the perceptron.
    """

    step_size: float = 1e6

    def _shares(self, margins: Tensor) -> Tensor:
        if math.isinf(self.step_size):
            wrong = self._misclassified(margins)
            return wrong / wrong.sum()
        return torch.softmax(logsigmoid(-margins), 0)  # Σ p may underflow, its logarithm does not


class SeparationTime(NamedTuple):
    """What ``separation_time`` found for one step size; ``iterations`` is infinite where the limit was too small."""

    step_size: float
    iterations: float
    peak_loss: float
    last_loss: float


def separation_time(X: Tensor, y: Tensor, step_sizes: Sequence[float], *, normalized: bool = False,
                    max_iter: int = 100_000) -> list[SeparationTime]:
    """Return for every step size how many steps separate the data, and what the logistic loss does meanwhile.

    Parameters
    ----------
    X : Tensor (n, d)
        With a constant column where one is needed.
    y : Tensor (n,)
        ±1.
    step_sizes : sequence of float
    normalized : bool, default False
    max_iter : int, default 100,000
    """
    check_count("max_iter", max_iter, "100,000 is typical")
    problem = LinearModel(X, y, "logistic")
    found = []
    for step_size in step_sizes:
        losses: list[float] = []

        def see(moment: Moment, losses: list[float] = losses) -> None:
            losses.append(float(moment.report.value))  # type: ignore[arg-type]

        method = (NormalizedLargeStepGD if normalized else LargeStepGD)(step_size)
        result = solve(problem, method, Budget(steps=max_iter), callback=see)
        losses.append(float(result.fun))  # type: ignore[arg-type]
        found.append(SeparationTime(step_size, result.nit if result.success else math.inf, max(losses), losses[-1]))
    return found


class LogRegGD:
    """A linear classifier that stops when it separates: ``fit(X, y)``, ``predict(X)``.

    Parameters
    ----------
    step : float, default 1e6
        γ of gradient descent.
    normalized : bool, default True
        Which of ``NormalizedLargeStepGD`` and ``LargeStepGD`` runs.
    fit_intercept : bool, default True
        Adds a constant column.
    max_iter : int, default 10,000
        Data that are not separable never stop: a warning says so.

    Attributes
    ----------
    classes_ : tuple of the two labels
    coef_ : Tensor (d,)
    intercept_ : float
    n_iter_ : int
    margin_ : float or None
        min z_iᵀx/‖x‖, the constant included; None where the data are not separated.
    """

    def __init__(self, step: float = 1e6, normalized: bool = True, fit_intercept: bool = True, max_iter: int = 10_000) -> None:
        self.step, self.normalized, self.fit_intercept, self.max_iter = step, normalized, fit_intercept, max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows X (n, d) and labels y (n,) of two kinds."""
        check_count("max_iter", self.max_iter, "10,000 is typical")
        rows = torch.as_tensor(X, dtype=torch.float64)
        labels = torch.as_tensor(y)
        kinds = labels.unique()
        if rows.ndim != 2 or labels.shape != (len(rows),):
            raise ValueError(f"X must be rows (n, d) and y n labels, got shapes {tuple(rows.shape)} and {tuple(labels.shape)}")
        if len(kinds) != 2:
            raise ValueError(f"y must have two kinds of labels, got {kinds.tolist()[:5]}")
        signs = torch.where(labels == kinds[1], 1.0, -1.0).to(rows.dtype)
        design = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1) if self.fit_intercept else rows
        method = (NormalizedLargeStepGD if self.normalized else LargeStepGD)(self.step)
        result = solve(LinearModel(design, signs, "logistic"), method, Budget(steps=self.max_iter))
        if not result.success:
            warnings.warn(f"{result.gap:.3g} of the data are not on their side after {self.max_iter} steps: they may not be separable",
                          stacklevel=2)
        self.classes_ = tuple(kinds.tolist())
        self.coef_ = result.x[: rows.shape[1]]
        self.intercept_ = float(result.x[-1]) if self.fit_intercept else 0.0
        self.n_iter_, self.margin_ = result.nit, result.certificate
        return self

    def decision_function(self, X: Any) -> Tensor:
        """Return the signed scores (n,)."""
        if not hasattr(self, "coef_"):
            raise ValueError("fit(X, y) comes first: there is nothing to predict with")
        return torch.as_tensor(X, dtype=self.coef_.dtype) @ self.coef_ + self.intercept_

    def predict(self, X: Any) -> Tensor:
        """Return the labels (n,)."""
        scores = self.decision_function(X)
        return torch.where(scores > 0, torch.tensor(self.classes_[1]), torch.tensor(self.classes_[0]))

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy."""
        return float((self.predict(X) == torch.as_tensor(y)).double().mean())

    def __repr__(self) -> str:
        return (f"LogRegGD(step={self.step:g}, normalized={self.normalized}, fit_intercept={self.fit_intercept}, "
                f"max_iter={self.max_iter})")
