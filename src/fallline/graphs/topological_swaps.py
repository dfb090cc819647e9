"""Structure learning by swaps in a topological order: every node is regressed on its predecessors, and the order is improved.

    W(π): w_·j = the best regression of x_j on its predecessors in π, for every j;   F(π) = F(W(π))
    candidates: the pairs (i, j), j before i in π, with the smallest [∇h(W)]_ij, those of the larger |[∇F(W)]_ij| first among equals
    round: for every candidate swap i and j in π and take F; in order of F apply every swap that improves F and whose interval of
           positions [place of j, place of i] is disjoint from those applied; if none improves, once look at more candidates

∇h(W)_ij is the weight of all walks from j to i (``structure.h``): where it is small, an edge i → j would close little of a cycle.
A swap changes the regressions between its two positions only, so that disjoint swaps lower F by the sum of what each lowers it by,
and F falls in every round. Where no candidate improves, W is a KKT point of min F(W) subject to h(W) = 0 if the candidates include
all pairs with ∇h_ij = 0.

Deng, Bello, Aragam, Ravikumar: Optimizing NOTEARS objectives via topological swaps, ICML 2023, arXiv 2305.17277.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core.budget import Budget
from fallline.core.checks import check_count
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.space import Range
from fallline.graphs.nodewise_scores import LeastSquaresScore, check_nodewise
from fallline.graphs.scores import Score
from fallline.graphs.structure import KINDS, StructureLearner, StructureLearning
from fallline.graphs.weighted_dag import WeightedDAG, topological_order

ROUNDS = 10_000
IMPROVEMENT = 1e-10
"""Relative to F; a smaller one may be rounding, and rounding could swap for ever."""


@dataclass(frozen=True)
class TopologicalSwaps(Method):
    """A round of swaps a step, from ``problem.order`` or a random order, until no candidate lowers F.

    Parameters
    ----------
    small : int, default 100
        Candidates a round; never more than the d (d − 1) / 2 that the order forbids.
    large : int, default 400
        Candidates where the small set has no improvement.
    large_tries : int, default 1
        How often the large set may help; the next time the small set has no improvement the run ends.

    Notes
    -----
    Takes any ``NodewiseScore``. A round solves a triangular system and, for every candidate, as many regressions as its interval has
    positions; least squares take one Cholesky factor a candidate for all of them. Counts ``regressions``. Deviations from the authors'
    code: ties among candidates are cut by |∇F|, where the code takes all that tie; X is centred.
    """

    small: int = 100
    large: int = 400
    large_tries: int = 1

    needs: ClassVar[tuple[str, ...]] = ("smooth", "score", "data")
    kinds: ClassVar[tuple[str, ...]] = KINDS
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        check_count("small", self.small, "100 is the default")
        check_count("large", self.large, "400 is the default")
        if self.large < self.small:
            raise ValueError(f"large must be at least small, got large={self.large} and small={self.small}")
        if isinstance(self.large_tries, bool) or not isinstance(self.large_tries, int) or self.large_tries < 0:
            raise ValueError(f"large_tries must be a whole number of at least 0, got {self.large_tries!r}")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        check_nodewise(problem.score)

    def init(self, problem: Problem, key: Key) -> State:
        order = problem.order
        if order is None:
            order = torch.randperm(len(problem.x0), generator=key.fold("order").generator()).to(problem.x0.device)
        return self._fitted(problem, {"order": order, "W": problem.x0, "tries": 0, "tried": 0, "done": False, "key": key, "round": 0})

    def step(self, problem: Problem, state: State) -> State:
        state = {**state, "round": state["round"] + 1}
        pairs = self.candidates(problem, state)
        swaps = self._improving(problem, state, pairs[:self.small])
        tried = min(self.small, len(pairs))
        if not swaps and state["tries"] < self.large_tries:
            swaps, tried = self._improving(problem, state, pairs[self.small:self.large]), len(pairs)
            state["tries"] += 1
        if not swaps:
            return {**state, "done": True, "tried": tried}
        order = state["order"].clone()
        free = [True] * len(order)
        for first, last in swaps:
            if all(free[first:last + 1]):
                free[first:last + 1] = [False] * (last + 1 - first)
                order[[first, last]] = order[[last, first]]
        return self._fitted(problem, {**state, "order": order})

    def candidates(self, problem: Problem, state: State) -> Tensor:
        """Return up to ``large`` pairs of positions to swap, the earlier one first, best first, ``(k, 2)``."""
        W, order = state["W"], state["order"]
        identity = torch.eye(len(order), dtype=W.dtype, device=W.device)
        weights = W.abs()[order][:, order]
        walks = torch.linalg.solve_triangular(identity - weights, identity, upper=True, unitriangular=True)  # [j, i]: from j to i
        slopes = problem.smooth.gradient(W).abs()[order][:, order].T  # [j, i]: what an edge i → j would do
        earlier, later = torch.triu_indices(len(order), len(order), 1, device=W.device)
        by_slope = slopes[earlier, later].argsort(descending=True, stable=True)
        best = by_slope[walks[earlier, later][by_slope].argsort(stable=True)]
        return torch.stack([earlier, later], dim=1)[best[:self.large]]

    def _improving(self, problem: Problem, state: State, pairs: Tensor) -> list[list[int]]:
        """The swaps that lower F by more than rounding, the best first."""
        if not len(pairs):
            return []
        orders = state["order"].repeat(len(pairs), 1)
        orders.scatter_(1, pairs, orders.gather(1, pairs.flip(1)))
        problem.counts.add("regressions", problem.score.count_regressions(pairs))
        scores = problem.score.order_scores(problem.data, orders, pairs, state["W"], state["losses"])
        before = state["losses"].sum()
        ranks = scores.argsort()
        better = scores[ranks] < before - max(IMPROVEMENT, 16 * torch.finfo(before.dtype).eps) * before.abs()
        return pairs[ranks[better]].tolist()

    def _fitted(self, problem: Problem, state: State) -> State:
        problem.counts.add("regressions", len(state["order"]))
        W, losses = problem.score.fit_order(problem.data, state["order"], state["W"])
        return {**state, "W": W, "losses": losses}

    def report(self, problem: Problem, state: State) -> Report:
        report = Report(state["W"], value=state["losses"].sum(), certificate={"order": state["order"].tolist()})
        if state["done"]:
            report.status = "converged"
            report.message = f"none of the {state['tried']} likeliest swaps lowers the score"
        return report


@dataclass(eq=False)
class TopoSwap(StructureLearner):
    """``TopologicalSwaps`` from data to graph: ``fit(X)``, or ``refine(W, X)`` for a graph that another method found.

    Parameters
    ----------
    score : NodewiseScore, default ``LeastSquaresScore()``
        With the regression of a node on its predecessors: ordinary least squares, a lasso (λ > 0), ``LogisticScore``, or your own.
    small, large, large_tries : int
        Of ``TopologicalSwaps``.
    threshold : float, default 0
        Weights up to it are left out of the graph that ``fit`` returns. Least squares leave no weight at 0 in an order: look at
        ``dag.threshold(0.3)``.

    Attributes
    ----------
    W_ : Tensor (d, d)
        All weights.
    order_ : list of int
    dag_ : WeightedDAG
    result_ : Result

    Notes
    -----
    Where noise has one variance, the variance of nodes tends to grow along the true order, and that alone finds it ("varsortability",
    Reisach, Seiler, Weichwald, NeurIPS 2021). On standardised columns that is gone: look at both.
    """

    score: Score = field(default_factory=LeastSquaresScore)
    small: int = 100
    large: int = 400
    large_tries: int = 1
    threshold: float = 0.0

    @property
    def method(self) -> TopologicalSwaps:
        return TopologicalSwaps(self.small, self.large, self.large_tries)

    @property
    def budget(self) -> Budget:
        return Budget(steps=ROUNDS)

    @property
    def order_(self) -> list[int]:
        """The order that was found, causes before effects."""
        order: list[int] = self.result_.certificate["order"]
        return order

    def fit(self, X: Any, order: Sequence[int | str] | Tensor | None = None, **options: Any) -> WeightedDAG:
        """Learn a graph from data, from an order (numbers or names, causes before effects), or by ``key`` from a random one."""
        return self._fit(StructureLearning(X, self.score, order=order), options)

    def refine(self, W: Tensor | WeightedDAG, X: Any, **options: Any) -> WeightedDAG:
        """Learn a graph from data, from the order of a graph: its score never gets worse.

        Raises
        ------
        ValueError
            W has a cycle (``to_dag(W)`` breaks them), or is not (d, d).
        """
        weights = W.weights if isinstance(W, WeightedDAG) else torch.as_tensor(W)
        return self.fit(X, topological_order(weights), **options)
