"""Clustering with a Laplacian regulariser by bounds that all points minimise at once; with a few labels, transductive classification.

    min over rows s_p of the simplex and prototypes m_k of   E = Σ s_pk log s_pk + Σ s_pk a_pk − (λ/2) Σ w_pq s_pᵀ s_q
    a_pk = β d(x_p, m_k);   labelled rows are fixed to their labels
    sweep:       S ← softmax(−a + λ W S), row by row
    prototypes:  mean, d = ‖x − m‖²:  m_k ← Σ_p s_pk x_p / Σ_p s_pk;   mode, d = −exp(−‖x − m‖²/2σ²): a few steps of mean shift

The term with W is what (λ/4) Σ w_pq ‖s_p − s_q‖² is on one-hot rows, up to a constant. For W symmetric and positive semidefinite it
is concave, a sweep minimises the bound that linearises it, and E never rises; so do both prototype steps. A block of sweeps ends after
``iters``, or where E changes by 10⁻⁶ of itself; the run ends where no point changes its cluster from one block to the next.

Ziko, Boudiaf, Dolz, Granger, Ben Ayed: Transductive few-shot learning: clustering is all you need?, arXiv 2106.09516; LaplacianShot,
ICML 2020, arXiv 2006.15486 (the sweeps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.driver import solve
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.result import Result
from fallline.core.space import Range
from fallline.core.warning import warn
from fallline.graphs.neighbors import neighbor_graph

SWEEPS = 10_000


@dataclass(frozen=True)
class MeanPrototype:
    """d = ‖x − m‖², for which the weighted mean is best."""

    def distances(self, X: Tensor, prototypes: Tensor) -> Tensor:
        """Return d of every point to every prototype, ``(n, k)``."""
        return squared_distances(X, prototypes)

    def update(self, X: Tensor, S: Tensor, prototypes: Tensor) -> Tensor:
        """Return better prototypes for assignments ``(n, k)``; one without any weight stays where it is."""
        return _weighted_means(X, S, prototypes)


@dataclass(frozen=True)
class ModePrototype:
    """d = −exp(−‖x − m‖²/2σ²), for which the weighted mode is best: it looks at points within a few σ.

    Parameters
    ----------
    sigma : float, default 1
    steps : int, default 5
        Of mean shift, m ← Σ s g x / Σ s g with g = exp(−‖x − m‖²/2σ²).
    """

    sigma: float = 1.0
    steps: int = 5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be a positive number, got {self.sigma!r}")
        check_count("steps", self.steps, "5 is the default")

    def distances(self, X: Tensor, prototypes: Tensor) -> Tensor:
        """Return d of every point to every prototype, ``(n, k)``."""
        return squared_distances(X, prototypes).div_(-2 * self.sigma**2).exp_().neg_()

    def update(self, X: Tensor, S: Tensor, prototypes: Tensor) -> Tensor:
        """Return better prototypes for assignments ``(n, k)``; one without any weight stays where it is."""
        for _ in range(self.steps):
            prototypes = _weighted_means(X, self.distances(X, prototypes).mul_(S).neg_(), prototypes)
        return prototypes


PROTOTYPES: dict[str, MeanPrototype | ModePrototype] = {"mean": MeanPrototype(), "mode": ModePrototype()}


def squared_distances(X: Tensor, prototypes: Tensor) -> Tensor:
    """Return ‖x_p − m_k‖², ``(n, k)``."""
    products = torch.addmm(prototypes.square().sum(1), X, prototypes.T, alpha=-2)
    return products.add_(X.square().sum(1, keepdim=True)).clamp_(min=0)


def _weighted_means(X: Tensor, weights: Tensor, otherwise: Tensor) -> Tensor:
    totals = weights.sum(0)[:, None]
    empty = totals <= torch.finfo(X.dtype).tiny
    return torch.where(empty, otherwise, weights.T @ X / torch.where(empty, 1, totals))


def RegularizedClustering(X: Tensor, k: int, *, W: Tensor | None = None, lam: float = 1.0, scale: float = 1.0,
                          prototype: MeanPrototype | ModePrototype | None = None, labels: Tensor | None = None,
                          **options: Any) -> Problem:
    """min E(S, m) over assignments ``(n, k)`` and prototypes ``(k, d)``, the variables ``{"assignments", "prototypes"}``.

    Parameters
    ----------
    X : Tensor (n, d)
    k : int
    W : Tensor (n, n), dense or sparse, optional
        Without one λ has no effect.
    lam : float, default 1
        λ ≥ 0.
    scale : float, default 1
        β > 0: large ones make assignments hard.
    prototype : MeanPrototype (default) or ModePrototype
    labels : Tensor (n,) of int, optional
        A label below k, or −1 for none.
    **options
        ``name``, ``budget`` of ``Problem``.
    """
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be a finite number >= 0, got {lam!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    check_count("k", k, "give the number of clusters")
    if k > len(X):
        raise ValueError(f"k must be at most the {len(X)} points, got {k}")
    rule = prototype or MeanPrototype()
    given = torch.full((len(X),), -1, device=X.device) if labels is None else labels
    oracles = {"distances": lambda prototypes: rule.distances(X, prototypes).mul_(scale),
               "affinities": lambda S: torch.zeros_like(S) if W is None or lam == 0 else (W @ S).mul_(lam)}

    def value(x: Mapping[str, Tensor]) -> Tensor:
        S = x["assignments"]
        return energy(S, oracles["distances"](x["prototypes"]), oracles["affinities"](S))

    x0 = {"assignments": _clamped(X.new_full((len(X), k), 1 / k), given), "prototypes": X.mean(0).repeat(k, 1)}
    return Problem(x0, {**oracles, "value": value},
                   **{"kind": "clustering", "name": f"{len(X):,} points", "differentiable": False,
                      "given": {"points": X, "prototype": rule, "labels": given}, **options})


def energy(S: Tensor, distances: Tensor, affinities: Tensor) -> Tensor:
    """Return E of assignments, a = β d and λWS, all ``(n, k)``."""
    return torch.xlogy(S, S).sum() + torch.dot(S.flatten(), distances.flatten()) - torch.dot(S.flatten(), affinities.flatten()) / 2


def _clamped(S: Tensor, labels: Tensor) -> Tensor:
    """The rows of labelled points set to one-hot, in place."""
    known = (labels >= 0).nonzero().flatten()
    S[known] = 0
    S[known, labels[known]] = 1
    return S


@dataclass(frozen=True)
class BoundUpdates(Method):
    """A sweep over all assignments a step; prototypes follow where a block of sweeps ends.

    Parameters
    ----------
    iters : int, default 20
        Sweeps a block at most.
    tol : float, default 1e-6
        The relative change of E that ends a block.

    Notes
    -----
    Starts at the means of the labelled points, and for clusters without one at points chosen as k-means++ does; from softmax(−a).
    A block goes on from the assignments of the one before. Counts ``distances`` and ``affinities``. Memory O(n k).
    """

    iters: int = 20
    tol: float = 1e-6

    needs: ClassVar[tuple[str, ...]] = ("distances", "affinities", "points")
    kinds: ClassVar[tuple[str, ...]] = ("clustering",)
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        check_count("iters", self.iters, "20 is the default")
        if not self.tol >= 0:
            raise ValueError(f"tol must be at least 0, got {self.tol!r}")

    def init(self, problem: Problem, key: Key) -> State:
        prototypes = starting_prototypes(problem.points, problem.labels, len(problem.x0["prototypes"]), key)
        distances = problem.distances(prototypes)
        S = _clamped(torch.softmax(-distances, dim=1), problem.labels)
        affinities = problem.affinities(S)
        return {"S": S, "prototypes": prototypes, "distances": distances, "affinities": affinities, "sweep": 0, "done": False,
                "energy": energy(S, distances, affinities), "clusters": torch.full((len(S),), -1, device=S.device)}

    def step(self, problem: Problem, state: State) -> State:
        S = _clamped(torch.softmax(state["affinities"].sub_(state["distances"]), dim=1), problem.labels)
        affinities = problem.affinities(S)
        before, after = state["energy"], energy(S, state["distances"], affinities)
        state = {**state, "S": S, "affinities": affinities, "energy": after, "sweep": state["sweep"] + 1}
        still = abs(float(before - after)) <= self.tol * abs(float(before))
        return self._block_ended(problem, state) if still or state["sweep"] == self.iters else state

    def _block_ended(self, problem: Problem, state: State) -> State:
        S, clusters = state["S"], state["S"].argmax(1)
        prototypes = problem.prototype.update(problem.points, S, state["prototypes"])
        distances = problem.distances(prototypes)
        return {**state, "prototypes": prototypes, "distances": distances, "energy": energy(S, distances, state["affinities"]),
                "sweep": 0, "clusters": clusters, "done": torch.equal(clusters, state["clusters"])}

    def report(self, problem: Problem, state: State) -> Report:
        report = Report({"assignments": state["S"], "prototypes": state["prototypes"]}, value=state["energy"])
        if state["done"]:
            report.status, report.message = "converged", "no point changes its cluster any more"
        return report


def starting_prototypes(X: Tensor, labels: Tensor, k: int, key: Key) -> Tensor:
    """Return the means of labelled points, and for clusters without any points chosen with probability ∝ their squared distance to
    what is chosen (k-means++; D. Arthur and S. Vassilvitskii, SODA 2007), ``(k, d)``."""
    generator = key.fold("k-means++").generator()
    prototypes = X.new_zeros(k, X.shape[1])
    held = torch.bincount(labels[labels >= 0], minlength=k) > 0
    for cluster in held.nonzero().flatten().tolist():
        prototypes[cluster] = X[labels == cluster].mean(0)
    for cluster in (~held).nonzero().flatten().tolist():
        odds = squared_distances(X, prototypes[held]).amin(1) if bool(held.any()) else X.new_ones(len(X))
        total = odds.double().cumsum(0).cpu()
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64)) * float(total[-1])
        prototypes[cluster] = X[min(int(torch.searchsorted(total, drawn, right=True)), len(X) - 1)]
        held[cluster] = True
    return prototypes


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
