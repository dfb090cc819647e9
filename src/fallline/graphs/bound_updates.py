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
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.space import Range
from fallline.graphs.prototypes import MeanPrototype, ModePrototype, squared_distances


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
        A label from 0 to k − 1, or −1 for none.
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
    if given.shape != (len(X),) or given.dtype == torch.bool or given.is_floating_point():
        raise ValueError(f"labels must be {len(X)} integers, one a point, got shape {tuple(given.shape)} of {given.dtype}")
    if not bool(((given >= -1) & (given < k)).all()):
        raise ValueError(f"labels must be from 0 to {k - 1}, or −1 for none, got {given.unique().tolist()[:20]}")
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
        S = _clamped(torch.softmax(state["affinities"] - state["distances"], dim=1), problem.labels)
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
