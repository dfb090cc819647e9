"""Clusters of points, or classes from a few labels, by ``BoundUpdates``: ``BoundClustering`` in scikit-learn's habits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.driver import solve
from fallline.core.result import Result
from fallline.core.warning import warn
from fallline.graphs.bound_updates import BoundUpdates, RegularizedClustering
from fallline.graphs.neighbors import neighbor_graph
from fallline.graphs.prototypes import PROTOTYPES, MeanPrototype, ModePrototype

SWEEPS = 10_000


@dataclass(eq=False)
class BoundClustering:
    """Regularised k-means, or with labels of some points transductive classification: ``fit(X)``, ``fit(X, support_idx, support_y)``.

    Parameters
    ----------
    k : int
        Clusters.
    prototype : {"mean", "mode"}, MeanPrototype or ModePrototype, default "mean"
    lam : float, default 1
        λ ≥ 0, on the scale of ``scale`` times the distances; 0 is k-means with soft assignments. The paper chooses it from 0.1 to 1.5,
        on other classes: never by the labels of the points to classify.
    knn : int, default 3
        Neighbours in W, the point itself counted.
    iters : int, default 20
        Sweeps between prototypes.
    scale : float, default 1
        β > 0.
    symmetric : bool, default False
        W symmetrised and made positive semidefinite, so that the energy never rises; the paper's W is neither.

    Attributes
    ----------
    labels_ : Tensor (n,)
    assignments_ : Tensor (n, k)
    prototypes_ : Tensor (k, d)
    energy_ : list of float
        After every sweep.
    result_ : Result

    Notes
    -----
    Features are taken as they are: the paper centres and normalises them. Memory O(n (k + d + knn)); a sweep takes O(n k knn),
    prototypes O(n k d); neighbours are exact, found by a tree in up to 16 dimensions and in O(n² d) above. A cluster that loses all
    weight keeps its prototype. Deviations: the energy has λ/2 where the authors' code prints it with λ, which their sweeps do not
    descend; a block starts from the assignments of the one before it.
    """

    k: int
    prototype: str | MeanPrototype | ModePrototype = "mean"
    lam: float = 1.0
    knn: int = 3
    iters: int = 20
    scale: float = 1.0
    symmetric: bool = False

    labels_: Tensor = field(init=False, repr=False)
    assignments_: Tensor = field(init=False, repr=False)
    prototypes_: Tensor = field(init=False, repr=False)
    energy_: list[float] = field(init=False, repr=False)
    result_: Result = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.prototype, MeanPrototype | ModePrototype) and self.prototype not in PROTOTYPES:
            raise ValueError(f"prototype must be 'mean', 'mode', a MeanPrototype or a ModePrototype, got {self.prototype!r}")
        check_count("k", self.k, "give the number of clusters")
        BoundUpdates(self.iters)  # which checks iters

    @property
    def method(self) -> BoundUpdates:
        """The Method that ``fit`` runs."""
        return BoundUpdates(self.iters)

    def fit(self, X: Any, support_idx: Any = None, support_y: Any = None, **options: Any) -> Self:
        """Cluster points, or classify them from the labels of a few.

        Parameters
        ----------
        X : Tensor or array (n, d)
            All points, labelled ones among them.
        support_idx : integers (m,), optional
            Which points are labelled.
        support_y : integers (m,), optional
            Their labels, from 0 to k − 1.
        **options
            Those of ``solve``: ``budget``, ``key`` (for k-means++), ``progress`` …

        Warns
        -----
        UserWarning
            The budget ended the run before assignments froze.
        """
        points = X.detach() if isinstance(X, Tensor) else torch.tensor(np.asarray(X, dtype=np.float64))
        points = points if points.is_floating_point() else points.double()
        if points.ndim != 2 or not len(points) or not bool(torch.isfinite(points).all()):
            raise ValueError(f"X must be finite and of shape (n, d), got shape {tuple(points.shape)}")
        W = neighbor_graph(points, self.knn, symmetric=self.symmetric) if self.lam else None
        rule = PROTOTYPES[self.prototype] if isinstance(self.prototype, str) else self.prototype
        problem = RegularizedClustering(points, self.k, W=W, lam=self.lam, scale=self.scale, prototype=rule,
                                        labels=self._labels(len(points), support_idx, support_y).to(points.device))
        self.result_ = solve(problem, self.method, **{"budget": Budget(steps=SWEEPS), "trace": SWEEPS, **options})
        if not self.result_.success:
            warn(f"{self!r} has not converged: {self.result_.message}")
        self.assignments_, self.prototypes_ = self.result_.x["assignments"], self.result_.x["prototypes"]
        self.labels_ = self.assignments_.argmax(1)
        self.energy_ = [row["value"] for row in self.result_.trace]
        return self

    def _labels(self, n: int, support_idx: Any, support_y: Any) -> Tensor:
        labels = torch.full((n,), -1)
        if (support_idx is None) != (support_y is None):
            raise ValueError("support_idx and support_y must be given together")
        if support_idx is None:
            return labels
        places, given = torch.as_tensor(support_idx).long().cpu(), torch.as_tensor(support_y).cpu()
        if places.ndim != 1 or places.shape != given.shape or given.is_floating_point():
            raise ValueError(f"support_idx and support_y must be as many integers, got shapes {tuple(places.shape)} and "
                             f"{tuple(given.shape)}, {given.dtype}")
        if len(places.unique()) != len(places) or not bool(((places >= 0) & (places < n)).all()):
            raise ValueError(f"support_idx must name different points from 0 to {n - 1}, got {places.tolist()[:20]}")
        if not bool(((given >= 0) & (given < self.k)).all()):
            raise ValueError(f"support_y must hold labels from 0 to {self.k - 1}, got {given.unique().tolist()}")
        labels[places] = given.long()
        return labels
