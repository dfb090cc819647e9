"""Semi-supervised classification: labels spread over a graph of neighbours by minimising the Ginzburg-Landau energy.

    w_ij = exp(−‖x_i − x_j‖² / (σ_i σ_j)) for j among the k nearest of i, or i of j;   σ_i the distance to the k-th
    L = (D − W) / mean degree
    two labels:   min E(u), the sign of u_i;   more: one u per label against the rest, the largest u_i

Akande, Dondl, Gupta, Onwunta, Wojtowytsch: arXiv 2501.00389; L. Zelnik-Manor and P. Perona, NIPS 2004 (local scales).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.driver import solve
from fallline.core.result import Result
from fallline.core.warning import warn
from fallline.solvers.ginzburg_landau import GinzburgLandau
from fallline.solvers.momentum_splitting import MomentumSplitting


@dataclass(frozen=True, repr=False)
class GraphLabels:
    """What ``graph_ssl`` found."""

    labels: Tensor
    """``(n,)``, for every point; given ones may be overruled."""
    field: Tensor
    """u, ``(n, fields)``: one against the rest for each label, or of two labels the second alone."""
    results: list[Result]
    """The run of each field."""

    def __repr__(self) -> str:
        steps = ", ".join(str(result.nit) for result in self.results)
        return f"GraphLabels({len(self.labels)} points, {len(self.labels.unique())} labels found; steps {steps})"


def neighbor_laplacian(X: Any, neighbors: int = 10) -> scipy.sparse.csc_array:
    """Return L = (D − W) / mean degree of the graph of ``neighbors`` nearest neighbours of points ``(n, d)``."""
    points = np.asarray(torch.as_tensor(X).detach().double().cpu())
    check_count("neighbors", neighbors, "10 is typical")
    if points.ndim != 2 or len(points) <= neighbors:
        raise ValueError(f"X must be (n, d) with more points than the {neighbors} neighbours, got shape {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("X must be finite, and has NaN or infinite entries")
    distances, nearest = (each[:, 1:] for each in cKDTree(points).query(points, neighbors + 1))
    scales = np.maximum(distances[:, -1], np.finfo(float).tiny ** 0.25)  # equal points are at distance 0, of weight 1
    weights = np.exp(-((distances / scales[:, None]) * (distances / scales[nearest])))
    rows = np.repeat(np.arange(len(points)), neighbors)
    one_way = scipy.sparse.csr_array((weights.ravel(), (rows, nearest.ravel())), shape=(len(points), len(points)))
    W = one_way.maximum(one_way.T)
    W.setdiag(0)
    degrees = np.asarray(W.sum(axis=1))
    return scipy.sparse.csc_array((scipy.sparse.diags_array(degrees) - W) / degrees.mean())


def graph_ssl(X: Any, y_partial: Any, *, neighbors: int = 10, eps: float = 1.0, fidelity: float = 1.0, tau: float = 1.0,
              momentum: str | float | None = "fista", unlabelled: int = -1, tol: float = 1e-6, max_iter: int = 1_000) -> GraphLabels:
    """Label all points from a few labels.

    Parameters
    ----------
    X : array or tensor (n, d)
    y_partial : integers (n,)
        Labels, and ``unlabelled`` where there is none.
    neighbors : int, default 10
    eps : float, default 1
        ε: smaller sharpens phases, larger smooths.
    fidelity : float, default 1
        ω: how firmly given labels are held.
    tau, momentum
        Of ``MomentumSplitting``.
    unlabelled : int, default -1
        As in scikit-learn.
    tol : float, default 1e-6
        On the gap, relative to √n.
    max_iter : int, default 1,000

    Raises
    ------
    ValueError
        Fewer than two labels, or shapes that do not fit.

    Warns
    -----
    UserWarning
        A component of the graph has no label; a run has not converged.
    """
    y = torch.as_tensor(y_partial).cpu()
    if y.ndim != 1 or len(y) != len(X) or y.is_floating_point():
        raise ValueError(f"y_partial must be one integer for each of the {len(X)} points, got {y.dtype} of shape {tuple(y.shape)}")
    classes = y[y != unlabelled].unique()
    if len(classes) < 2:
        raise ValueError(f"y_partial must have two labels or more beside {unlabelled} for none, got {classes.tolist()}")
    laplacian = neighbor_laplacian(X, neighbors)
    results: list[Result] = []
    factors: dict[float, Any] = {}
    for positive in classes[1:] if len(classes) == 2 else classes:
        signs = torch.where(y == unlabelled, 0.0, torch.where(y == positive, 1.0, -1.0)).double()
        problem = GinzburgLandau(laplacian=laplacian, eps=eps, labels=signs, fidelity=fidelity)
        problem.term.factors = factors  # all have one matrix, as the labels are at the same nodes
        result = solve(problem, MomentumSplitting(tau, momentum), Budget(steps=max_iter), tol=tol * len(y) ** 0.5)
        if not result.success:
            warn(f"the field of label {int(positive)} has not converged: {result.message}; raise max_iter, or tau")
        results.append(result)
    field = torch.stack([result.x for result in results], dim=1)
    chosen = (field[:, 0] > 0).long() if len(classes) == 2 else field.argmax(dim=1)
    return GraphLabels(classes[chosen], field, results)
