"""Distances between graphs: by hand, and the intervention distance against effects from regressions on populations."""

import pytest
import torch

from fallline.graphs import (
    WeightedDAG,
    erdos_renyi,
    false_discovery_rate,
    structural_hamming_distance,
    structural_intervention_distance,
    true_positive_rate,
)


def graph(d, *edges):
    W = torch.zeros(d, d, dtype=torch.float64)
    for i, j in edges:
        W[i, j] = 1.0
    return W


def test_missing_extra_and_reversed_edges_count_one_each():
    true, estimated = graph(4, (0, 1), (1, 2), (2, 3)), graph(4, (1, 0), (1, 2), (0, 3))
    assert structural_hamming_distance(estimated, true) == 3 and structural_hamming_distance(true, estimated) == 3
    assert true_positive_rate(estimated, true) == pytest.approx(1 / 3) and false_discovery_rate(estimated, true) == pytest.approx(2 / 3)
    empty = graph(4)
    assert true_positive_rate(true, empty) == 1 and false_discovery_rate(empty, true) == 0
    assert structural_hamming_distance(empty, true) == 3
    with pytest.raises(ValueError, match="square matrices of one size"):
        structural_hamming_distance(graph(3), graph(4))


@pytest.mark.parametrize(("estimated", "distance"), [
    (graph(2, (0, 1)), 0),
    (graph(2, (1, 0)), 2),  # 0 has an effect on 1, and 1 has none on 0
    (graph(2), 1),  # without adjustment the effect of 0 is right, and 1 seems to have one
])
def test_two_nodes_by_hand(estimated, distance):
    assert structural_intervention_distance(estimated, graph(2, (0, 1))) == distance


def test_further_cases_by_hand():
    confounded = graph(3, (0, 1), (0, 2), (1, 2))
    assert structural_intervention_distance(graph(3, (0, 1), (1, 2)), confounded) == 1
    # 1 adjusts for 0: right. 2 adjusts for 1 only: 0 → 2 stays open backwards, so 2 seems to act on 0; 0 is right throughout.
    collider = graph(3, (0, 2), (1, 2))
    assert structural_intervention_distance(graph(3, (0, 2), (1, 2), (0, 1)), collider) == 0  # a superset with the same order
    assert structural_intervention_distance(graph(3, (2, 0), (1, 2)), collider) > 0


def test_a_superset_that_keeps_the_order_has_distance_0():
    for seed in range(5):
        true = erdos_renyi(7, 9, seed)
        places = torch.argsort(true.order)
        full = (places[:, None] < places[None, :]).double()
        assert structural_intervention_distance(full, true.weights) == 0
        assert true.compare(true) == {"shd": 0, "sid": 0, "tpr": 1.0, "fdr": 0.0}


def wrong_effects(estimated, true):
    """Pairs whose effect by regression on the estimated parents is not the total effect; right for weights in general position."""
    d = len(true)
    total = torch.linalg.inv(torch.eye(d, dtype=true.dtype) - true)
    covariance, wrong = total.T @ torch.diag(torch.linspace(0.5, 2, d, dtype=true.dtype)) @ total, 0
    for i in range(d):
        parents = estimated[:, i].nonzero().flatten().tolist()
        used = [i, *parents]
        coefficients = torch.linalg.solve(covariance[used][:, used], covariance[used])
        for j in range(d):
            effect = 0.0 if j in parents else float(coefficients[0, j])
            wrong += i != j and abs(effect - float(total[i, j])) > 1e-8
    return wrong


@pytest.mark.parametrize("seed", range(30))
def test_the_intervention_distance_counts_wrong_effects(seed):
    d = 3 + seed % 5
    pairs = d * (d - 1) // 2
    true, estimated = erdos_renyi(d, pairs * (1 + seed % 3) // 4, seed), erdos_renyi(d, pairs // 2, 100 + seed)
    assert structural_intervention_distance(estimated.weights, true.weights) == wrong_effects(estimated.weights, true.weights)
    assert WeightedDAG(estimated.weights).compare(true)["sid"] == wrong_effects(estimated.weights, true.weights)
