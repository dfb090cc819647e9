"""Weighted graphs: orders, cycles, thresholds, samples, what they say and draw; random graphs."""

import networkx
import pytest
import torch

from fallline.graphs import WeightedDAG, erdos_renyi, is_acyclic, scale_free, to_dag, topological_order

CHAIN = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, -0.5, 0.0]], dtype=torch.float64)  # 0 → 2 → 1


def test_the_order_puts_causes_first_and_a_cycle_is_named():
    assert topological_order(CHAIN).tolist() == [0, 2, 1]
    assert topological_order(torch.zeros(3, 3)).tolist() == [0, 1, 2]
    cyclic = torch.zeros(4, 4)
    cyclic[0, 1] = cyclic[1, 2] = cyclic[2, 1] = cyclic[2, 3] = 1
    with pytest.raises(ValueError, match=r"no cycle, got (1 → 2 → 1|2 → 1 → 2); to_dag"):
        topological_order(cyclic)
    with pytest.raises(ValueError, match="0 → 0"):
        topological_order(torch.eye(2))


@pytest.mark.parametrize("seed", range(5))
def test_every_edge_of_a_random_graph_goes_along_the_order(seed):
    dag = erdos_renyi(12, 30, seed)
    places = torch.argsort(dag.order)
    i, j = dag.weights.nonzero().T
    assert len(i) == 30 and bool((places[i] < places[j]).all())
    sizes = dag.weights[dag.weights != 0].abs()
    assert float(sizes.min()) >= 0.5 and float(sizes.max()) <= 2 and bool((dag.weights < 0).any()) and bool((dag.weights > 0).any())
    assert torch.equal(dag.weights, erdos_renyi(12, 30, seed).weights)
    assert not torch.equal(dag.weights, erdos_renyi(12, 30, seed + 1).weights)


def test_scale_free_graphs_have_hubs():
    degrees = (scale_free(200, 2, 0).weights != 0).long()
    assert int(degrees.sum()) == 2 * 198 and int((degrees.sum(0) + degrees.sum(1)).max()) > 15


def test_the_threshold_is_raised_just_until_no_cycle_is_left():
    W = torch.zeros(4, 4, dtype=torch.float64)
    W[0, 1], W[1, 2], W[2, 0], W[2, 3], W[3, 2] = 0.9, 0.5, -0.4, 1.0, 0.45
    dag = to_dag(W, 0.1)
    assert [(i, j) for i, j, _ in dag.edges] == [("0", "1"), ("1", "2"), ("2", "3")]
    assert to_dag(W, 0.6).weights.count_nonzero() == 2
    assert torch.equal(to_dag(CHAIN, 0.0).weights, CHAIN) and to_dag(CHAIN).threshold(1.0).weights.count_nonzero() == 1
    assert to_dag(torch.ones(3, 3)).weights.count_nonzero() == 0  # only equal weights, which close cycles
    with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
        to_dag(W, -1)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_of_a_random_matrix_is_the_smallest_that_does(seed):
    W = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = to_dag(W, 0.0).weights
    W = W.fill_diagonal_(0)
    smallest = kept[kept != 0].abs().min()
    above = W.abs()[W.abs() < smallest].max()
    assert not is_acyclic(torch.where(W.abs() >= above, W, 0)) and torch.equal(kept, torch.where(W.abs() > above, W, 0))


def test_samples_have_the_covariance_of_the_equations():
    variances = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
    X = WeightedDAG(CHAIN).sample(200_000, 0, variances=variances)
    T = torch.linalg.inv(torch.eye(3, dtype=torch.float64) - CHAIN)
    torch.testing.assert_close(X.T @ X / len(X), T.T @ torch.diag(variances) @ T, atol=0.05, rtol=0.02)
    torch.testing.assert_close(X[:, 2] - 2 * X[:, 0], (X - X @ CHAIN)[:, 2])


def test_its_score_is_half_the_mean_square_of_centred_residuals():
    X = WeightedDAG(CHAIN).sample(50) + 3
    centred = X - X.mean(0)
    assert WeightedDAG(CHAIN).score(X) == pytest.approx(float(((centred - centred @ CHAIN) ** 2).sum() / 100), rel=1e-12)


def test_it_goes_to_networkx_and_says_and_draws_what_it_is():
    dag = WeightedDAG(CHAIN, ("a", "b", "c"))
    graph = dag.to_networkx()
    assert networkx.is_directed_acyclic_graph(graph) and graph["c"]["b"]["weight"] == -0.5 and len(graph) == 3
    assert repr(dag) == "WeightedDAG(3 nodes, 2 edges, |w| from 0.5 to 2; order a, c, b)"
    figure = dag.plot()
    assert list(figure.data[0].x) == [0, 2, 1] and len(figure.layout.annotations) == 2
    assert "0 edges" in repr(WeightedDAG(torch.zeros(9, 9))) and WeightedDAG(torch.zeros(2, 2)).plot() is not None


def test_bad_weights_are_refused_at_the_door():
    with pytest.raises(ValueError, match="square matrix"):
        WeightedDAG(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finite"):
        WeightedDAG(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match="names must be 3 different"):
        WeightedDAG(CHAIN, ("a", "a", "b"))
    with pytest.raises(ValueError, match="no cycle"):
        WeightedDAG(CHAIN + CHAIN.T)
    with pytest.raises(ValueError, match="edges must be between 0 and the 45 pairs"):
        erdos_renyi(10, 46)
    with pytest.raises(ValueError, match="edges_per_node must be below"):
        scale_free(3, 3)


def test_numbers_that_make_no_graph_and_no_sample_are_refused():
    W = CHAIN.clone()
    W[0, 1] = float("nan")
    with pytest.raises(ValueError, match="W must be finite"):
        to_dag(W)
    for variances in (-1.0, float("nan"), torch.tensor([1.0, -1.0, 1.0])):
        with pytest.raises(ValueError, match="variances must be at least 0"):
            WeightedDAG(CHAIN).sample(3, variances=variances)
