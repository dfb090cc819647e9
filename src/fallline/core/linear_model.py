"""Linear models: losses of the products of a matrix with the variables.

    f(x) = Σ_i w_i ℓ(a_iᵀx, y_i) + (ridge/2) ‖x‖²
    ∇f(x) = Aᵀ(w ∘ ℓ'(Ax)) + ridge x,   ∇²f(x) = Aᵀ diag(w ∘ ℓ''(Ax)) A + ridge I

    "squared"     ½ (z − y)²                          ℓ'' = 1
    "logistic"    log(1 + exp(−y z)),  y = ±1         ℓ'' ≤ 1/4
    "sigmoid"     1 / (1 + exp(y z)),  y = ±1         ℓ'' ≤ √3/18, not convex: a smooth count of errors
    "log"         −log z               on z > 0       (portfolios: y is not looked at)
    "kl"          z − y log z,  y ≥ 0  on z > 0       (Poisson likelihood, Kullback-Leibler divergence)

A value costs one product with A, a gradient two, a Hessian-vector product two; nothing larger than A is ever formed unless the dense
Hessian is asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fallline.core.checks import check_matrix, check_vector
from fallline.core.keys import Key
from fallline.core.operators.columns import DenseColumns, SparseColumns, columns_of
from fallline.core.operators.linear import LinearOperator
from fallline.core.operators.spectra import top_eigenvalues
from fallline.core.problem import Problem
from fallline.core.samples import batch_indices


@dataclass(frozen=True)
class PointLoss:
    """ℓ(z, y) of single predictions z, with its derivatives in z, entry by entry.

    Attributes
    ----------
    value, slope, curvature : functions of two tensors of one shape
        ℓ, ℓ' and ℓ''; outside the domain of ℓ the value is infinite.
    largest_curvature : float
        sup ℓ'', infinite where there is no bound.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor, Tensor], Tensor]
    largest_curvature: float

    def __repr__(self) -> str:
        return f"PointLoss({self.name})"


def _logistic_curvature(z: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(z)
    return p * torch.sigmoid(-z)  # not p (1 − p), which is 0 from z = 37 on


def _sigmoid_curvature(z: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(y * z / 2) * _logistic_curvature(z, y)


def _inside(z: Tensor, value: Tensor) -> Tensor:
    return torch.where(z > 0, value, math.inf)


LOSSES = {loss.name: loss for loss in (
    PointLoss("squared", lambda z, y: (z - y) ** 2 / 2, lambda z, y: z - y, lambda z, y: torch.ones_like(z), 1.0),
    PointLoss("logistic", lambda z, y: -logsigmoid(y * z), lambda z, y: -y * torch.sigmoid(-y * z), _logistic_curvature, 0.25),
    PointLoss("sigmoid", lambda z, y: torch.sigmoid(-y * z), lambda z, y: -y * _logistic_curvature(z, y), _sigmoid_curvature,
              3**0.5 / 18),
    PointLoss("log", lambda z, y: _inside(z, -z.log()), lambda z, y: -1 / z, lambda z, y: z**-2, math.inf),
    PointLoss("kl", lambda z, y: _inside(z, z - torch.xlogy(y, z)), lambda z, y: 1 - y / z, lambda z, y: y / z**2, math.inf),
)}


@dataclass(frozen=True)
class LinearParts:
    """What a linear model is made of, for methods that want more than gradients.

    Attributes
    ----------
    A : Tensor (n, d)
        Dense, or sparse in any layout.
    operator : LinearOperator
        A, with fast products by A and Aᵀ.
    targets, weights : Tensor (n,)
    loss : PointLoss
    ridge : float
    """

    A: Tensor
    operator: LinearOperator
    targets: Tensor
    weights: Tensor
    loss: PointLoss
    ridge: float

    @functools.cached_property
    def columns(self) -> DenseColumns | SparseColumns:
        """A by columns, for methods that move few variables at a time: a copy, made when first asked for."""
        return columns_of(self.A)

    @functools.cached_property
    def bound_columns(self) -> DenseColumns | SparseColumns:
        """sup ℓ'' Aᵀ diag(w) A + ridge I by columns, a bound on the Hessian; sparse where A is, and then made on the CPU."""
        weights, (n, d) = self.loss.largest_curvature * self.weights, self.A.shape
        if self.A.layout is torch.strided:
            gram = self.A.mT @ (weights[:, None] * self.A)
            return columns_of(gram + self.ridge * torch.eye(d, dtype=gram.dtype, device=gram.device))
        entries = self.A.to_sparse_coo().coalesce().cpu()
        rows = scipy.sparse.csr_array((entries.values().numpy(), tuple(entries.indices().numpy())), shape=(n, d))
        bound = scipy.sparse.coo_array(rows.T @ (weights.cpu().numpy()[:, None] * rows) + self.ridge * scipy.sparse.eye_array(d))
        places, values = torch.as_tensor(np.stack(bound.coords)), torch.as_tensor(bound.data)
        return columns_of(torch.sparse_coo_tensor(places, values, (d, d)).to(self.A.device))

    def column_curvatures(self) -> Tensor:
        """Return bounds on the second derivative along each coordinate, shape (d,): Σ_i w_i sup ℓ'' a_ij² + ridge."""
        if self.A.layout is torch.strided:
            squares = self.weights @ self.A**2
        else:
            rows = self.A.to_sparse_coo().coalesce()
            row, column = rows.indices()
            squares = torch.zeros(self.A.shape[1], dtype=self.A.dtype, device=self.A.device)
            squares.index_add_(0, column, self.weights[row] * rows.values() ** 2)
        return self.loss.largest_curvature * squares + self.ridge

    def largest_curvature(self) -> float:
        """Return a bound on ‖∇²f‖, the Lipschitz constant of ∇f: sup ℓ'' λ_max(Aᵀ diag(w) A) + ridge, to six digits, by Lanczos."""
        d = self.A.shape[1]
        gram = LinearOperator((d, d), lambda v: self.operator.adjoint(self.weights * self.operator.matvec(v)), dtype=self.A.dtype,
                              device=self.A.device)
        # A seed of its own keeps the bound a function of A; the residual bounds the error of the eigenvalue.
        top = top_eigenvalues(gram, tol=1e-6, generator=torch.Generator().manual_seed(0)).values[0]
        return float(self.loss.largest_curvature * (1 + 1e-6) * top + self.ridge)


def LinearModel(A: Tensor, targets: Tensor | None = None, loss: str = "squared", *, ridge: float = 0.0,
                weights: Tensor | None = None, x0: Tensor | None = None, batch_size: int = 1, **options: Any) -> Problem:
    """min Σ_i w_i ℓ(a_iᵀx, y_i) + (ridge/2)‖x‖²: least squares, logistic regression, portfolios, Poisson regression.

    Parameters
    ----------
    A : Tensor (n, d)
        Rows are data points; dense, or sparse in any layout, of which two copies by rows are kept.
    targets : Tensor (n,), optional
        y: numbers, ±1 for "logistic" and "sigmoid", not negative for "kl"; not needed for "log".
    loss : {"squared", "logistic", "sigmoid", "log", "kl"}, default "squared"
    ridge : float, default 0
        The penalty added once, not per row.
    weights : Tensor (n,), optional
        w, not negative; 1/n each by default (a mean). Ones make a sum.
    x0 : Tensor (d,), optional
        Zero by default, which "log" and "kl" do not allow.
    batch_size : int, default 1
        Rows of a realisation, drawn uniformly and weighted so that its value is unbiased; for a dense A.
    **options
        ``name``, ``facts``, ``budget``, ``observer`` of ``Problem``.

    Returns
    -------
    Problem
        A finite sum with closed-form derivatives; ``problem.linear_model`` holds the parts (see ``LinearParts``).

    Raises
    ------
    ValueError
        An unknown loss, shapes that do not fit, labels that are not ±1, a negative weight, ridge or count; an A of whole numbers,
        weights or an x0 of another dtype than A's; an entry that is not finite.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
    if A.ndim != 2:
        raise ValueError(f"A must be a matrix (n, d), got shape {tuple(A.shape)}")
    check_matrix("A", A)
    n, d = A.shape
    y = _targets(A, targets, loss)
    w = torch.full((n,), 1 / n, dtype=A.dtype, device=A.device) if weights is None else weights
    if w.shape != (n,) or not bool((w >= 0).all()):
        raise ValueError(f"weights must be {n} numbers that are not negative, got shape {tuple(w.shape)}"
                         + (f" with the least {float(w.min()):g}" if w.numel() else ""))
    check_vector("weights", w, "A", A)
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a finite number of at least 0, got {ridge}")
    start = A.new_zeros(d, layout=torch.strided) if x0 is None else x0
    if start.shape != (d,):
        raise ValueError(f"x0 must have {d} numbers, one for each column of A, got shape {tuple(start.shape)}")
    check_vector("x0", start, "A", A)
    parts = LinearParts(A, LinearOperator.from_tensor(A), y, w, LOSSES[loss], float(ridge))

    def sample(problem: Problem, key: Key, size: int | None, indices: Tensor | None, at: Any) -> Problem:
        if A.layout is not torch.strided:
            raise ValueError("mini-batches need a dense A, whose rows can be taken; got a sparse one: use methods of whole gradients")
        chosen = batch_indices(n, key, size, indices, batch_size).to(A.device)
        share = n / len(chosen)
        drawn = LinearModel(A[chosen], y[chosen], loss, ridge=ridge, weights=w[chosen] * share, x0=start)
        return Problem(problem.x0, drawn._oracles, kind=problem.kind, name=problem.name, samples=len(chosen), given=drawn._given)

    settings = {"kind": "finite-sum", "name": f"{loss} linear model", "samples": n, "parts": n if A.layout is torch.strided else (),
                **options}
    return Problem(start, _oracles(parts), **settings, sampler=sample, given={"linear_model": parts})


def _targets(A: Tensor, targets: Tensor | None, loss: str) -> Tensor:
    if targets is None:
        if loss != "log":
            raise ValueError(f"loss={loss!r} needs targets, one for each of the {len(A)} rows of A")
        return torch.ones(len(A), dtype=A.dtype, device=A.device)
    if targets.shape != (len(A),):
        raise ValueError(f"targets must be {len(A)} numbers, one for each row of A, got shape {tuple(targets.shape)}")
    if loss in ("logistic", "sigmoid") and not bool((targets.abs() == 1).all()):
        raise ValueError(f"targets of {loss!r} must be -1 or 1, got values such as {float(targets[targets.abs() != 1][0]):g}; "
                         "2 * y - 1 makes them of 0 and 1")
    if loss == "kl" and not bool((targets >= 0).all()):
        raise ValueError(f"targets of 'kl' must not be negative, got {float(targets.min()):g}")
    if not bool(targets.isfinite().all()):
        raise ValueError("targets must be finite, and has NaN or infinite entries")
    return targets.to(A.dtype)


def _oracles(parts: LinearParts) -> dict[str, Callable[..., Any]]:
    apply, transpose = parts.operator.matvec, parts.operator.adjoint
    y, w, loss, ridge = parts.targets, parts.weights, parts.loss, parts.ridge

    def of_predictions(z: Tensor, x: Tensor) -> Tensor:
        return (w * loss.value(z, y)).sum() + ridge / 2 * (x @ x)

    def value_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach()
        z = apply(x)
        return of_predictions(z, x), transpose(w * loss.slope(z, y)) + ridge * x

    def linearized_gradient(x: Tensor) -> Callable[[Tensor], Tensor]:
        curvature = w * loss.curvature(apply(x.detach()), y)
        return lambda v: transpose(curvature * apply(v)) + ridge * v

    def jvp(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach()
        z = apply(x)
        return of_predictions(z, x), (w * loss.slope(z, y)) @ apply(v) + ridge * (x @ v)

    def hessian(x: Tensor) -> Tensor:
        A = parts.A.to_dense()
        curved = A * (w * loss.curvature(apply(x.detach()), y))[:, None]
        return A.mT @ curved + ridge * torch.eye(A.shape[1], dtype=A.dtype, device=A.device)

    def per_sample_gradients(x: Tensor) -> Tensor:
        # Rows average to the gradient when w are 1/n, as those of a FiniteSum do.
        A, z = parts.A.to_dense(), apply(x.detach())
        return (len(A) * w * loss.slope(z, y))[:, None] * A + ridge * x.detach()

    return {"value": lambda x: of_predictions(apply(x), x), "value_and_gradient": value_and_gradient,
            "linearized_gradient": linearized_gradient, "jvp": jvp, "hessian": hessian, "per_sample_gradients": per_sample_gradients}
