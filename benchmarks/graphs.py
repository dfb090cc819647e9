"""Time and accuracy of learning directed acyclic graphs, against gcastle and dagma

    python benchmarks/graphs.py [--repeats 3] [--threads 1] [--only TopoSwap,dagma] [--quick]

Erdős-Rényi graphs with two edges a node, weights ±[0.5, 2], Gaussian noise of variance 1, 1,000 rows, a graph for every repeat and the
same for all. Every learner learns every graph once, at its own defaults but for GOLEM, which gets 20,000 of its 100,000 iterations.
Edges with |w| > 0.3 are compared: SHD is the structural Hamming distance, SID the structural intervention distance, both of the mean
over graphs; "largest SHD" is that of the worst graph. Ratios of time are to gcastle's NOTEARS on the same graph.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from figures import Goal, Row, Table
from harness import Missing, Options, measured, peer, run, tell
from torch import Tensor

from fallline.graphs import (
    DAGMA,
    NOTEARS,
    CoLiDE,
    TopoSwap,
    erdos_renyi,
    structural_hamming_distance,
    structural_intervention_distance,
    to_dag,
)

SIZES, ROWS, EDGES = (10, 20), 1_000, 2
REFERENCE = "gcastle Notears"
Learner = Callable[[Tensor], Tensor]
"""From rows (n, d) to weights (d, d)."""


def castle(name: str, **settings: float) -> Learner:
    """An algorithm of gcastle."""

    def learn(X: Tensor) -> Tensor:
        algorithm = peer("castle.algorithms", name)(**settings)
        algorithm.learn(X.numpy().copy())
        return torch.as_tensor(np.asarray(algorithm.weight_causal_matrix))

    return learn


def dagma(X: Tensor) -> Tensor:
    """DAGMA of its authors."""
    return torch.as_tensor(peer("dagma.linear", "DagmaLinear")("l2").fit(X.numpy().copy()))


LEARNERS: dict[str, Learner] = {
    REFERENCE: castle("Notears"),
    "gcastle GOLEM": castle("GOLEM", num_iter=20_000),
    "dagma": dagma,
    "TopoSwap": lambda X: TopoSwap().fit(X).weights,
    "CoLiDE, equal": lambda X: CoLiDE().fit(X).weights,
    "DAGMA": lambda X: DAGMA().fit(X).weights,
    "NOTEARS": lambda X: NOTEARS().fit(X).weights,
    "NOTEARS, then TopoSwap": lambda X: TopoSwap().refine(NOTEARS().fit(X), X).weights,
}


def learned(learner: Learner, d: int, graphs: int) -> tuple[list[float], dict[str, float | None]]:
    """Seconds for every graph, and how near they come."""
    seconds, shd, sid = [], [], []
    for seed in range(graphs):
        true = erdos_renyi(d, EDGES * d, seed)
        X = true.sample(ROWS, seed)
        start = time.perf_counter()
        weights = learner(X)
        seconds.append(time.perf_counter() - start)
        found = to_dag(weights.double(), 0.3).weights
        shd.append(structural_hamming_distance(found, true.weights))
        sid.append(structural_intervention_distance(found, true.weights))
    return seconds, {"SHD": statistics.mean(shd), "largest SHD": float(max(shd)), "SID": statistics.mean(sid)}


def table(d: int, options: Options) -> Table:
    """All learners on graphs of one size."""
    title = f"{d} nodes, {EDGES * d} edges"
    print(f"{title}, as a ratio to {REFERENCE}")
    names = [name for name in LEARNERS if name == REFERENCE or name in options.chosen(LEARNERS)]
    rows: list[Row] = []
    reference: list[float] | None = None
    for name in names:
        try:
            seconds, figures = learned(LEARNERS[name], d, options.repeats)
            reference = reference or seconds
            rows.append(measured(name, list(zip(reference, seconds, strict=True)), figures=figures))
        except Missing as reason:
            rows.append(Row(name, missing=str(reason)))
        tell(rows[-1])
    goals = [Goal("TopoSwap", "SHD", REFERENCE, "the paper's headline"), Goal("TopoSwap", "ratio", 1.0, "and in less time"),
             Goal("CoLiDE, equal", "SHD", REFERENCE, "the paper's headline"),
             Goal("DAGMA", "SHD", "dagma", "the same rule")]
    return Table(title, REFERENCE, tuple(rows), tuple(goal for goal in goals if goal.row in names))


def tables(options: Options) -> list[Table]:
    """Both sizes."""
    logging.disable(logging.INFO)  # gcastle tells of every step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return [table(d, options) for d in ((5,) if options.quick else SIZES)]
        finally:
            logging.disable(logging.NOTSET)


if __name__ == "__main__":
    run(__file__, __doc__, tables, ("gcastle", "dagma"))
