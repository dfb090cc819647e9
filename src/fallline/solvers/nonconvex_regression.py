"""Sparse linear and logistic regression with SCAD or MCP: estimators in scikit-learn's habits over ``NonconvexAcceleratedGradient``.

    min over (b, β):   (1/N) Σ_i ℓ(b + x_iᵀβ, y_i) + Σ_j p_λ(β_j),   columns standardised, ℓ half the square or the logistic loss
    start:        β_j = −∂_j / h_j at β = 0 and the best b, h_j the curvature along j: the fit of each column alone for the square
    λ_max:        max_j |∂_j| there, from which on β = 0 is stationary
    strong rule:  from λ' to λ < λ', columns with β_j = 0 and |∂_j| < 2λ − λ' are left out, and put back where |∂_j| > λ afterwards

Yang, Asgharian, Bhatnagar: arXiv 2009.10629; R. Tibshirani et al., J. R. Stat. Soc. B 74 (2012) 245 (strong rules).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.constructors import Composite
from fallline.core.driver import solve
from fallline.core.linear_model import LinearModel
from fallline.core.problem import Problem
from fallline.core.result import Result
from fallline.core.terms import MCP, SCAD, SkipFirst, Term
from fallline.core.warning import warn
from fallline.solvers.nonconvex_ag import NonconvexAcceleratedGradient


@dataclass(eq=False)
class NonconvexAG:
    """Sparse regression: ``fit(X, y)``, ``predict(X)``, ``path(X, y)``.

    Parameters
    ----------
    lam : float
        λ ≥ 0, on the scale of standardised columns; ``path`` goes through its own.
    penalty : {"scad", "mcp"}, default "scad"
    loss : {"squared", "logistic"}, default "squared"
        "logistic" takes labels of any two values.
    a : float, default 3.7
        Of SCAD, > 2.
    gamma : float, default 2
        Of MCP, > 1.
    standardize : bool, default True
        Fit on columns of mean 0 and variance 1 (population; columns that do not vary get 0). Coefficients are those of X itself.
    tol : float, default 1e-6
        On the norm of the generalised gradient, for standardised columns.
    max_iter : int, default 10,000

    Attributes
    ----------
    coef_ : Tensor (p,)
    intercept_ : float
        Not penalised.
    n_iter_ : int
    classes_ : Tensor (2,)
        The labels of "logistic", the second of which has the probability σ(b + xᵀβ).
    result_ : Result
        Of the standardised problem, the intercept first.

    Notes
    -----
    X is a dense or sparse tensor, or anything ``torch.as_tensor`` takes, ``(N, p)``; y ``(N,)``; all is done in float64. A sparse X is
    scaled and not centred, so that it stays sparse: the free intercept makes both the same problem. Where the penalty's concavity
    exceeds the loss's curvature there are several stationary points, and the start decides which is found.
    """

    lam: float
    penalty: str = "scad"
    loss: str = "squared"
    a: float = 3.7
    gamma: float = 2.0
    standardize: bool = True
    tol: float = 1e-6
    max_iter: int = 10_000

    def __post_init__(self) -> None:
        if self.penalty not in ("scad", "mcp"):
            raise ValueError(f"penalty must be 'scad' or 'mcp', got {self.penalty!r}")
        if self.loss not in ("squared", "logistic"):
            raise ValueError(f"loss must be 'squared' or 'logistic', got {self.loss!r}")
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"lam must be a finite number >= 0, got {self.lam!r}")
        if not (math.isfinite(self.tol) and self.tol > 0):
            raise ValueError(f"tol must be a finite number > 0, got {self.tol!r}")
        check_count("max_iter", self.max_iter, "the default is 10,000")
        self._term(self.lam)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyperparameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Set hyperparameters by name."""
        unknown = sorted(params.keys() - self.get_params().keys())
        if unknown:
            raise ValueError(f"params must be among {sorted(self.get_params())}, got {unknown}")
        for name, value in params.items():
            setattr(self, name, value)
        self.__post_init__()
        return self

    def fit(self, X: Any, y: Any) -> Self:
        """Fit at ``lam``, from the fits of single columns."""
        design = _Design(X, y, self.loss, self.standardize)
        start = design.null.clone()
        bounds = design.problem.linear_model.column_curvatures()[1:]
        start[1:] = torch.where(bounds > 0, -design.null_gradient[1:] / torch.where(bounds > 0, bounds, 1.0), 0.0)
        self.result_ = self._solved(design.at(start), self.lam, None)
        self.coef_, intercept = design.unscaled(self.result_.x)
        self.intercept_, self.n_iter_ = float(intercept), self.result_.nit
        if self.loss == "logistic":
            self.classes_ = design.classes
        return self

    def predict(self, X: Any) -> Tensor:
        """Return predictions, or for "logistic" labels, ``(N,)``."""
        scores = self._scores(X)
        return self.classes_[(scores > 0).long()] if self.loss == "logistic" else scores

    def predict_proba(self, X: Any) -> Tensor:
        """Return the probabilities of both labels, ``(N, 2)``; for "logistic"."""
        if self.loss != "logistic":
            raise ValueError(f"predict_proba is for loss='logistic', got {self.loss!r}")
        scores = self._scores(X)
        return torch.stack([torch.sigmoid(-scores), torch.sigmoid(scores)], dim=1)

    def path(self, X: Any, y: Any, n_lambdas: int = 50, *, lambdas: Sequence[float] | None = None, least: float = 0.05,
             strong_rule: bool = True) -> RegularizationPath:
        """Fit at falling λ, each from the solution before, the first from β = 0; ``lam`` is not looked at.

        Parameters
        ----------
        n_lambdas : int, default 50
            From λ_max to ``least`` λ_max, evenly in logarithm.
        lambdas : sequence of float, optional
            Falling values instead.
        least : float, default 0.05
            In (0, 1).
        strong_rule : bool, default True
            Leave out columns that the strong rule discards; the conditions of stationarity of all are checked after every fit.
        """
        design = _Design(X, y, self.loss, self.standardize)
        values = design.falling(n_lambdas, least) if lambdas is None else [float(each) for each in lambdas]
        if not values or any(later >= earlier for earlier, later in pairwise(values)):
            raise ValueError(f"lambdas must fall, got {values}")
        L = design.problem.linear_model.largest_curvature()
        x, gradient, before = design.null, design.null_gradient, max(design.largest, values[0])
        rows = []
        for lam in values:
            kept = x != 0
            kept[0] = True
            kept |= gradient.abs() >= 2 * lam - before if strong_rule else True
            steps = 0
            while True:
                result = self._solved(design.at(x, kept), lam, L)
                steps += result.nit
                x = torch.zeros_like(x).masked_scatter(kept, result.x)
                gradient = design.problem.gradient(x)
                missed = ~kept & (gradient.abs() > lam)
                if not bool(missed.any()):
                    break
                kept |= missed
            rows.append((*design.unscaled(x), steps, int(kept.sum()) - 1))
            before = lam
        coefs, intercepts, steps_taken, kept_columns = zip(*rows, strict=True)
        return RegularizationPath(values, torch.stack(coefs), torch.stack(intercepts), list(steps_taken), list(kept_columns))

    def _term(self, lam: float) -> Term:
        return SCAD(lam, self.a) if self.penalty == "scad" else MCP(lam, self.gamma)

    def _solved(self, problem: Problem, lam: float, L: float | None) -> Result:
        penalised = Composite(problem, SkipFirst(self._term(lam)))
        result = solve(penalised, NonconvexAcceleratedGradient(L), Budget(steps=self.max_iter), tol=self.tol)
        if not result.success:
            warn(f"{self!r} has not converged at lam = {lam:g}: {result.message}, at a gap of {result.gap:.3g}; raise max_iter or tol")
        return result

    def _scores(self, X: Any) -> Tensor:
        if not hasattr(self, "coef_"):
            raise ValueError(f"{self!r} is not fitted: call fit(X, y) first")
        A = _matrix(X)
        if A.shape[1] != len(self.coef_):
            raise ValueError(f"X must have the {len(self.coef_)} columns it was fitted on, got {A.shape[1]}")
        return A @ self.coef_ + self.intercept_


@dataclass(frozen=True, repr=False)
class RegularizationPath:
    """Fits at falling λ."""

    lambdas: list[float]
    coefs: Tensor
    """``(n_lambdas, p)``, for X as it was given."""
    intercepts: Tensor
    """``(n_lambdas,)``"""
    steps: list[int]
    """Gradient steps at each λ, over all rounds of the strong rule."""
    kept: list[int]
    """Columns that were looked at, at each λ."""

    def plot(self) -> Any:
        """Return a plotly figure of every coefficient that is ever not 0, against λ."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for j in self.coefs.abs().amax(dim=0).nonzero().flatten().tolist():
            figure.add_scatter(x=self.lambdas, y=self.coefs[:, j].tolist(), mode="lines", name=f"column {j}")
        return figure.update_layout(template="simple_white", xaxis_title="λ", yaxis_title="coefficient", xaxis_type="log",
                                    xaxis_autorange="reversed")

    def __repr__(self) -> str:
        chosen = (self.coefs != 0).sum(dim=1)
        return (f"RegularizationPath({len(self.lambdas)} values of λ from {self.lambdas[0]:.3g} to {self.lambdas[-1]:.3g}, "
                f"{int(chosen[0])} to {int(chosen[-1])} columns of {self.coefs.shape[1]}, {sum(self.steps):,} steps)")


class _Design:
    """The standardised problem: a column of ones first, then the columns of X."""

    def __init__(self, X: Any, y: Any, loss: str, standardize: bool) -> None:
        A, targets = _matrix(X), torch.as_tensor(y)
        if targets.shape != (len(A),) or len(A) < 2:
            raise ValueError(f"y must have one number for each row of X, of which there must be 2 or more, got shapes "
                             f"{tuple(targets.shape)} and {tuple(A.shape)}")
        targets = targets.to(A.device)
        self.loss, self.classes = loss, targets.unique()
        if loss == "logistic":
            if len(self.classes) != 2:
                raise ValueError(f"y must have two labels for loss='logistic', got {len(self.classes)}: {self.classes[:5].tolist()}")
            targets = 2 * (targets == self.classes[1]).double() - 1
        targets = targets.double()
        if not bool(targets.isfinite().all()):
            raise ValueError("y must be finite, and has NaN or infinite entries")
        self.means, self.scales = torch.zeros_like(A[0].to_dense()), torch.ones_like(A[0].to_dense())
        if standardize:
            A = self._standardised(A)
        ones = torch.ones(len(A), 1, dtype=A.dtype, device=A.device)
        self.A, self.targets = torch.cat([ones if A.layout is torch.strided else ones.to_sparse(), A], dim=1), targets
        self.null = torch.zeros(self.A.shape[1], dtype=A.dtype, device=A.device)
        mean = targets.mean()
        self.null[0] = torch.log((1 + mean) / (1 - mean)) if loss == "logistic" else mean
        self.problem = self.at(self.null)
        self.null_gradient = self.problem.gradient(self.null)

    def _standardised(self, A: Tensor) -> Tensor:
        dense = A.layout is torch.strided
        means = A.sum(dim=0).to_dense() / len(A)
        squares = (A * A).sum(dim=0).to_dense() / len(A)
        deviations = (A - means).square().mean(dim=0).sqrt() if dense else (squares - means**2).clamp(min=0).sqrt()
        varies = deviations > 1e-7 * squares.sqrt()  # below, rounding
        self.scales = torch.where(varies, deviations, math.inf)
        if dense:
            self.means = means
            return (A - means) / self.scales
        return torch.sparse_coo_tensor(A.indices(), A.values() / self.scales[A.indices()[1]], A.shape, is_coalesced=True,
                                       check_invariants=False)

    def at(self, x: Tensor, kept: Tensor | None = None) -> Problem:
        """The loss of the kept columns (all by default), started at x there."""
        A = self.A if kept is None else self.A.index_select(1, kept.nonzero().flatten())
        return LinearModel(A, self.targets, self.loss, x0=x if kept is None else x[kept])

    @property
    def largest(self) -> float:
        """λ_max."""
        return float(self.null_gradient[1:].abs().max())

    def falling(self, n_lambdas: int, least: float) -> list[float]:
        """λ_max, …, least λ_max."""
        check_count("n_lambdas", n_lambdas, "the default is 50")
        if not 0 < least < 1:
            raise ValueError(f"least must be in (0, 1), got {least!r}")
        largest = self.largest
        if len(self.classes) == 1 or not largest > 0:
            raise ValueError("y does not vary, or with no column of X: λ_max is 0, and the mean fits at every λ; give lambdas")
        return [largest * least ** (k / max(1, n_lambdas - 1)) for k in range(n_lambdas)]

    def unscaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and intercept for X as it was given."""
        coef = x[1:] / self.scales
        return coef, x[0] - coef @ self.means


def _matrix(X: Any) -> Tensor:
    """X as a float64 matrix, dense or of coordinates."""
    A = torch.as_tensor(X).detach().double()
    if A.ndim != 2:
        raise ValueError(f"X must be a matrix (N, p), got shape {tuple(A.shape)}")
    A = A if A.layout is torch.strided else A.to_sparse_coo().coalesce()
    if not bool((A if A.layout is torch.strided else A.values()).isfinite().all()):
        raise ValueError("X must be finite, and has NaN or infinite entries")
    return A
