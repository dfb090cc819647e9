"""CoLiDE and DAGMA: graphs along the path of ``LogDetPath``, by scores that do or do not estimate the noise.

    CoLiDE   √(d Σ_j q_j) + λ‖W‖₁  for noise of one variance,   Σ_j √q_j + λ‖W‖₁  for one of each node,   λ = 0.05
    DAGMA    ½ Σ_j q_j + λ‖W‖₁,   λ = 0.03,   q_j the variance that W leaves of x_j

A score in units of the noise's standard deviation makes one λ right for every level of noise.

Saboksayr, Mateos, Tepper: CoLiDE: Concomitant linear DAG estimation, ICLR 2024, arXiv 2310.02895; Bello, Aragam, Ravikumar: DAGMA:
Learning DAGs via M-matrices and a log-determinant acyclicity characterization, NeurIPS 2022, arXiv 2209.08037.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fallline.core.budget import Budget
from fallline.graphs.log_det_path import LogDetPath
from fallline.graphs.nodewise_scores import LeastSquaresScore
from fallline.graphs.scores import EqualVarianceScore, Score, UnequalVarianceScore
from fallline.graphs.structure import StructureLearner
from fallline.graphs.weighted_dag import WeightedDAG, to_dag

SCORES = {"equal": EqualVarianceScore, "unequal": UnequalVarianceScore}
RESTARTS = 10
"""By so many times the budget exceeds the iterations of the path, for stages that begin again."""


class PathLearner(StructureLearner):
    """What learners along a path share; subclasses are dataclasses with a ``path``."""

    path: LogDetPath

    @property
    def method(self) -> LogDetPath:
        return self.path

    @property
    def budget(self) -> Budget:
        return Budget(steps=RESTARTS * (len(self.path.s) * self.path.iterations + self.path.last_iterations))

    def fit(self, X: Any, **options: Any) -> WeightedDAG:
        """Learn a graph from data; the weights before the threshold are ``W_``, the run is ``result_``.

        Parameters
        ----------
        X : Tensor or array (n, d), or pandas frame
        **options
            Those of ``solve``: ``budget``, ``key``, ``progress``, ``checkpoint`` …; ``every`` is the path's ``check_every``.
        """
        return super().fit(X, **{"every": self.path.check_every, **options})

    def to_dag(self, threshold: float = 0.3) -> WeightedDAG:
        """Return the graph of the weights above a threshold, which is raised while they close cycles."""
        return to_dag(self.W_, threshold, self.dag_.names)


@dataclass(eq=False)
class CoLiDE(PathLearner):
    """Concomitant linear DAG estimation: the graph and the noise.

    Parameters
    ----------
    variance : {"equal", "unequal"}, default "equal"
        Whether the noise of all nodes has one variance.
    lam : float, default 0.05
        λ, whatever the level of noise.
    path : LogDetPath, default ``LogDetPath()``
    threshold : float, default 0.3

    Attributes
    ----------
    W_ : Tensor (d, d)
        Before the threshold, with small weights that close cycles.
    sigma_ : Tensor
        The noise's standard deviation, 0-d for "equal" and (d,) for "unequal".
    dag_ : WeightedDAG
    result_ : Result

    Notes
    -----
    Do not standardise the columns: their scales tell the order. Deviations: σ starts at its best for W = 0, where the authors' code for
    "equal" starts at the least column's, which the first gradient alone sees. With n ≤ d the bound σ ≥ 10⁻² √(tr C/d) keeps the score
    smooth, and sparsity is all that tells graphs apart.
    """

    variance: str = "equal"
    lam: float = 0.05
    path: LogDetPath = field(default_factory=LogDetPath)
    threshold: float = 0.3

    def __post_init__(self) -> None:
        if self.variance not in SCORES:
            raise ValueError(f"variance must be 'equal' or 'unequal', got {self.variance!r}")
        SCORES[self.variance](self.lam)  # which checks lam

    @property
    def score(self) -> Score:  # type: ignore[override]
        """The score that ``variance`` names."""
        return SCORES[self.variance](self.lam)

    @property
    def sigma_(self) -> Tensor:
        """The standard deviation of the noise, at the weights before the threshold."""
        assert self.dag_.noise is not None
        return self.dag_.noise[0] if self.variance == "equal" else self.dag_.noise


@dataclass(eq=False)
class DAGMA(PathLearner):
    """The least-squares score along the same path.

    Parameters
    ----------
    score : Score, default ``LeastSquaresScore(0.03)``
        Or ``LogisticScore``.
    path : LogDetPath, default DAGMA's
        Five stages with s from 1 to 0.6, of 30,000 iterations and the last of 60,000.
    threshold : float, default 0.3

    Attributes
    ----------
    W_ : Tensor (d, d)
        Before the threshold, with small weights that close cycles.
    dag_ : WeightedDAG
    result_ : Result

    Notes
    -----
    λ must grow with the standard deviation of the noise; the default fits about 1.
    """

    score: Score = field(default_factory=lambda: LeastSquaresScore(0.03))
    path: LogDetPath = field(default_factory=lambda: LogDetPath(s=(1.0, 0.9, 0.8, 0.7, 0.6), iterations=30_000, last_iterations=60_000))
    threshold: float = 0.3
