"""Learning a structure as a Problem: min F(W) over weighted graphs (d, d) without cycles.

    h(W) = −log det(I − |W|),   ∇h = (I − |W|)⁻ᵀ : entry (i, j) sums the products of |w| over all walks from j to i

h ≥ 0 is finite where the spectral radius of |W| is below 1, and 0 exactly for graphs without cycles. [∇h]_ij is what an edge i → j
would close: 0 where j does not reach i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.constructors import Smooth
from fallline.core.driver import solve
from fallline.core.method import Method
from fallline.core.problem import Problem
from fallline.core.result import Result
from fallline.core.terms import L1
from fallline.core.warning import warn
from fallline.graphs.nodewise_scores import LeastSquaresScore
from fallline.graphs.scores import Score
from fallline.graphs.weighted_dag import WeightedDAG, to_dag

KINDS = ("structure",)


def StructureLearning(X: Any, score: Score | None = None, *, order: Sequence[int | str] | Tensor | None = None,
                      **options: Any) -> Problem:
    """min F(W) over weighted graphs without cycles, on data.

    Methods take the loss as ``problem.smooth`` (value and gradient), ``problem.term`` = λ‖·‖₁, ``problem.score``, what it looks at as
    ``problem.data``, ``problem.names``, and ``problem.order``, an order to start from or None.

    Parameters
    ----------
    X : Tensor or array (n, d), or pandas frame
        Rows of observations; a frame's column names are kept. Floating-point tensors keep their dtype (float64 is the better one:
        inverses near the edge of h's domain need digits), all else becomes float64.
    score : Score, default ``LeastSquaresScore()``
    order : sequence of d nodes, numbers or names, optional
        Causes before effects.
    **options
        ``x0``, of zeros by default, and ``name``, ``budget`` of ``Problem``.

    Raises
    ------
    ValueError
        X is not (n, d) with n, d ≥ 2, has NaNs or a column that does not vary; the order repeats or misses a node.

    Warns
    -----
    UserWarning
        n ≤ d without a penalty: regressions on n or more nodes leave no residual, and the order cannot be told.
    """
    score = score if score is not None else LeastSquaresScore()
    if not isinstance(score, Score):
        raise TypeError(f"score must be a Score such as LeastSquaresScore(), got {score!r}")
    rows, names = as_rows(X)
    if len(rows) <= rows.shape[1] and score.lam == 0:
        warn(f"X has {len(rows)} rows for {rows.shape[1]} nodes: without a penalty the last nodes of any order are explained wholly; "
             f"give the score lam > 0")
    data = score.condense(rows)
    x0 = options.pop("x0", None)
    x0 = rows.new_zeros(len(names), len(names)) if x0 is None else x0
    smooth = Smooth(lambda W: score.loss(data, W), x0, gradient=lambda W: score.gradient(data, W), name="loss")
    term = L1(score.lam)
    given = {"score": score, "data": data, "term": term, "names": names, "order": checked_order(order, names, rows.device)}
    return Problem(x0, {"value": lambda W: score.loss(data, W) + term.value(W)},
                   **{"kind": "structure", "name": f"{len(names)} nodes", "differentiable": False, "children": {"smooth": smooth},
                      "given": given, **options})


def as_rows(X: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Return data as a floating-point tensor (n, d), and the names of its columns."""
    names = tuple(map(str, X.columns)) if hasattr(X, "columns") else ()
    rows = X.detach() if isinstance(X, Tensor) else torch.tensor(np.asarray(X, dtype=np.float64))
    rows = rows if rows.is_floating_point() else rows.double()
    if rows.ndim != 2 or min(rows.shape) < 2:
        raise ValueError(f"X must be (n, d) with at least 2 rows and 2 columns, got shape {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("X must be finite, and has NaN or infinite entries: leave out or impute such rows")
    names = names or tuple(map(str, range(rows.shape[1])))
    if len(set(names)) != len(names):
        raise ValueError(f"X must have different column names, got {list(names)}")
    constant = (rows == rows[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"X must vary in every column, and {', '.join(names[j] for j in constant)} does not: leave such columns out")
    return rows, names


def checked_order(order: Any, names: tuple[str, ...], device: Any) -> Tensor | None:
    """Return an order of the nodes as their numbers, or None."""
    if order is None:
        return None
    places = {name: place for place, name in enumerate(names)}
    given = order.tolist() if isinstance(order, Tensor) else list(order)
    numbers = [places.get(node, node) if isinstance(node, str) else int(node) for node in given]
    if sorted(map(str, numbers)) != sorted(map(str, range(len(names)))):
        repeated = sorted({str(node) for node in given if given.count(node) > 1})
        raise ValueError(f"order must name each of the {len(names)} nodes once, got {given}"
                         + (f", which repeats {', '.join(repeated)}" if repeated else ""))
    return torch.tensor(numbers, device=device)


def h(W: Tensor) -> Tensor:
    """Return h(W) = −log det(I − |W|), a 0-d tensor: 0 without cycles, larger the more weight lies on them.

    Raises
    ------
    ValueError
        The spectral radius of |W| is 1 or more: h is not defined there.
    """
    inverse, _ = torch.linalg.inv_ex(torch.eye(len(W)).to(W) - W.detach().abs())
    if not bool((inverse >= -1e-6).all()):  # I − |W| has a nonnegative inverse exactly where the spectral radius is below 1
        radius = float(torch.linalg.eigvals(W.detach().abs()).abs().max())
        raise ValueError(f"W must have a spectral radius of |W| below 1 for h, got {radius:.3g}; to_dag(W) leaves out what closes "
                         "cycles")
    return -torch.linalg.slogdet(torch.eye(len(W)).to(W) - W.abs())[1]


class StructureLearner:
    """A front end: ``fit(X)`` gives a ``WeightedDAG``. It stores hyperparameters; what was learned has names that end in ``_``.

    Subclasses are dataclasses with a ``score`` and a ``threshold``, and say what ``method`` and default ``budget`` are.
    """

    score: Score
    threshold: float
    W_: Tensor
    dag_: WeightedDAG
    result_: Result

    @property
    def method(self) -> Method:
        """The Method that ``fit`` runs."""
        raise NotImplementedError(f"{type(self).__name__} must define method")

    @property
    def budget(self) -> Budget:
        """What ``fit`` may spend by default: more than the method's own end takes."""
        raise NotImplementedError(f"{type(self).__name__} must define budget")

    def fit(self, X: Any, **options: Any) -> WeightedDAG:
        """Learn a graph from data; the weights before the threshold are ``W_``, the run is ``result_``.

        Parameters
        ----------
        X : Tensor or array (n, d), or pandas frame
        **options
            Those of ``solve``: ``budget``, ``key``, ``progress``, ``checkpoint`` …

        Warns
        -----
        UserWarning
            The budget ended the run before the method did.
        """
        return self._fit(StructureLearning(X, self.score), options)

    def _fit(self, problem: Problem, options: Mapping[str, Any]) -> WeightedDAG:
        self.result_ = solve(problem, self.method, **{"budget": self.budget, **options})
        if not self.result_.success:
            warn(f"{self!r} has not converged: {self.result_.message}")
        self.W_ = self.result_.x
        noise = self.score.noise(problem.data, self.W_)
        self.dag_ = replace(to_dag(self.W_, self.threshold, problem.names), noise=noise, result=self.result_)
        return self.dag_
