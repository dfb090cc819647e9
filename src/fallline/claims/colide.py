"""CoLiDE: one λ for every level of noise, and the noise as a by-product; the least-squares score on the same path needs tuning."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.graphs import DAGMA, CoLiDE, LeastSquaresScore, LogDetPath, WeightedDAG, erdos_renyi, structural_hamming_distance
from fallline.graphs.colide import PathLearner

PAPER = Paper(
    slug="colide",
    title="CoLiDE: Concomitant Linear DAG Estimation",
    arxiv="2310.02895",
    year=2024,
    room="graphs",
    methods=("graphs.CoLiDE", "graphs.LogDetPath", "graphs.DAGMA"),
    headline="λ = 0.05 serves all levels of noise; lower and steadier SHD than DAGMA, GOLEM and NOTEARS, most for large graphs and "
    "unequal variances; the noise's variances are estimated as well",
)
VARIANCES, SEEDS = (0.1, 1.0, 10.0), 3
SHORT = LogDetPath(lr=1e-2, iterations=500, last_iterations=1_250)


def setting(scale: Scale, seed: int) -> tuple[WeightedDAG, int, LogDetPath]:
    """The graph, the rows, the path."""
    if scale is Scale.FULL:
        return erdos_renyi(200, 400, seed), 1_000, LogDetPath()
    return erdos_renyi(10, 20, seed), 500, SHORT


def distance(learner: PathLearner, X: Tensor, true: WeightedDAG) -> int:
    """The structural Hamming distance of what it learns."""
    return structural_hamming_distance(learner.fit(X).weights, true.weights)


@claim("with λ = 0.05 its worst mean SHD over noise of variance 0.1, 1 and 10 is at most 0.6 times that of least squares, for which "
       "λ = 0.2 is no better; σ comes out within 10 % at variances of 1 and 10")
def one_penalty(scale: Scale, seed: int) -> Evidence:
    sides = {"CoLiDE, λ = 0.05": lambda path: CoLiDE(lam=0.05, path=path),
             "least squares, λ = 0.05": lambda path: DAGMA(LeastSquaresScore(0.05), path),
             "least squares, λ = 0.2": lambda path: DAGMA(LeastSquaresScore(0.2), path)}
    distances: dict[str, dict[float, list[int]]] = {side: {v: [] for v in VARIANCES} for side in sides}
    errors = []
    for s in range(seed, seed + SEEDS):
        true, n, path = setting(scale, s)
        for variance in VARIANCES:
            X = true.sample(n, s, variances=variance)
            for side, make in sides.items():
                learner = make(path)
                distances[side][variance].append(distance(learner, X, true))
                if isinstance(learner, CoLiDE) and variance >= 1:
                    errors.append(abs(float(learner.sigma_) / variance**0.5 - 1))
    worst = {side: max(statistics.mean(each) for each in found.values()) for side, found in distances.items()}
    ours, same, retuned = worst.values()
    return Evidence([at_most("worst mean SHD, CoLiDE / least squares, λ = 0.05", ours / max(same, 1e-9), 0.6),
                     at_least("worst mean SHD, least squares, λ = 0.2 − λ = 0.05", retuned - same, 0.0),
                     at_most("relative error of σ", errors, 0.1),
                     *(recorded(f"SHD at variance {variance:g}, {side}", found)
                       for side, by_variance in distances.items() for variance, found in by_variance.items())],
                    notes=["Erdős-Rényi graphs of 10 nodes and 20 edges, n = 500, |w| > 0.3, 3 seeds, the same rows but for their "
                           "scale; both scores on the same path, shortened for time: lr = 0.01, stages of 500 and 1,250 iterations. "
                           "With lr = 0.003 and 1,500 and 4,000 the verdicts are the same: worst mean SHD 5, 13 and 17.3. Full: 200 "
                           "nodes, the defaults."])


@claim("with variances drawn from [0.5, 10] the estimate for unequal ones is within 15 % and no worse in SHD by more than 0.5")
def unequal_variances(scale: Scale, seed: int) -> Evidence:
    errors, unequal, equal = [], [], []
    for s in range(seed, seed + SEEDS):
        true, n, path = setting(scale, s)
        variances = 0.5 + 9.5 * torch.rand(len(true.names), generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        X = true.sample(n, s, variances=variances)
        learner = CoLiDE("unequal", path=path)
        unequal.append(distance(learner, X, true))
        equal.append(distance(CoLiDE(path=path), X, true))
        errors.append(float((learner.sigma_ / variances.sqrt() - 1).abs().max()))
    return Evidence([at_most("largest relative error of σ_j", errors, 0.15),
                     at_most("mean SHD, unequal − equal", statistics.mean(unequal) - statistics.mean(equal), 0.5),
                     recorded("SHD, unequal", unequal), recorded("SHD, equal", equal)],
                    notes=["As above. On these data the authors' code for unequal variances gives the same weights to 1e-11, and so "
                           "the same distances; with their own schedule of 130,000 iterations the second graph's is 5. With "
                           "lr = 0.003 and stages of 1,500 and 4,000 iterations unequal − equal is +5."])
