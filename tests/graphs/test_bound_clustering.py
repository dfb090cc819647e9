"""Clustering by bounds: sweeps and energies against the formulas, descent, labels, starts, memory, bad input."""

import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.profiler import ProfilerActivity, profile

import fallline as fl
from fallline.graphs import BoundClustering, BoundUpdates, MeanPrototype, ModePrototype, RegularizedClustering, neighbor_graph
from fallline.graphs import neighbors as neighbors_module
from fallline.graphs.bound_updates import starting_prototypes


def blobs(n=120, k=3, d=2, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % k
    return centres[labels] + spread * torch.randn(n, d, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize("d", [3, 20])
def test_the_graph_is_that_of_nearest_neighbours(d, monkeypatch):
    monkeypatch.setattr(neighbors_module, "NUMBERS", 700)  # several chunks
    X = blobs(60, d=d)[0]
    found = NearestNeighbors(n_neighbors=4).fit(X.numpy()).kneighbors(X.numpy(), return_distance=False)[:, 1:]
    expected = torch.zeros(60, 60, dtype=torch.float64)
    expected[torch.arange(60)[:, None], torch.tensor(found)] = 1
    torch.testing.assert_close(neighbor_graph(X, 4).to_dense(), expected)
    symmetric = neighbor_graph(X, 4, symmetric=True).to_dense()
    torch.testing.assert_close(symmetric, (expected + expected.T) / 2 + torch.diag(((expected + expected.T) / 2).sum(1)))
    assert float(torch.linalg.eigvalsh(symmetric)[0]) > -1e-12


def test_equal_points_are_not_their_own_neighbours():
    X = torch.zeros(9, 2, dtype=torch.float64)
    W = neighbor_graph(X, 3).to_dense()
    assert bool((W.diagonal() == 0).all()) and bool((W.sum(1) == 2).all())


def test_a_sweep_is_the_softmax_of_distances_and_neighbours():
    X, y = blobs(40, spread=4.0)
    W = neighbor_graph(X)
    labels = torch.full((40,), -1)
    labels[:3] = y[:3]
    problem = RegularizedClustering(X, 3, W=W, lam=0.7, scale=0.02, labels=labels)
    method = BoundUpdates(tol=0.0)
    state = method.init(problem, fl.Key(0))
    m = state["prototypes"].clone()
    torch.testing.assert_close(m, X[:3])
    a = 0.02 * torch.cdist(X, m) ** 2
    S = torch.softmax(-a, 1)
    S[:3] = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(state["S"], S)
    for _ in range(3):
        S = torch.softmax(-a + 0.7 * W.to_dense() @ S, 1)
        S[:3] = torch.eye(3, dtype=torch.float64)
        state = method.step(problem, state)
        torch.testing.assert_close(state["S"], S)
        expected = torch.special.xlogy(S, S).sum() + (S * a).sum() - 0.35 * (S * (W.to_dense() @ S)).sum()
        assert float(state["energy"]) == pytest.approx(expected.item(), rel=1e-12)
        assert float(problem.value({"assignments": S, "prototypes": m})) == pytest.approx(expected.item(), rel=1e-12)


def test_prototypes_follow_after_so_many_sweeps_and_are_weighted_means():
    X, y = blobs(40, spread=3.0)
    problem = RegularizedClustering(X, 3, W=neighbor_graph(X, 4), scale=0.02, labels=torch.where(torch.arange(40) < 3, y, -1))
    method = BoundUpdates(iters=4, tol=0.0)
    state = method.init(problem, fl.Key(0))
    for sweep in range(1, 4):
        state = method.step(problem, state)
        assert state["sweep"] == sweep and torch.equal(state["prototypes"], X[:3])
    state = method.step(problem, state)
    S = state["S"]
    torch.testing.assert_close(state["prototypes"], torch.stack([(S[:, k:k + 1] * X).sum(0) / S[:, k].sum() for k in range(3)]))
    assert state["sweep"] == 0 and not state["done"]


def test_modes_climb_to_where_points_are_dense():
    X, _ = blobs(60, k=1, spread=0.5)
    far = torch.cat([X, X[:1] + 100])
    ones, start = torch.ones(61, 1, dtype=torch.float64), X[:1] + 0.5
    mode = ModePrototype(sigma=1.0, steps=50).update(far, ones, start)
    assert float((mode - X.mean(0)).norm()) < 0.2 < float((MeanPrototype().update(far, ones, start) - X.mean(0)).norm())
    before = float(ModePrototype().distances(far, start).sum())
    for steps in (1, 2, 3):
        after = float(ModePrototype().distances(far, ModePrototype(steps=steps).update(far, ones, start)).sum())
        assert after < before
        before = after
    torch.testing.assert_close(ModePrototype(2.0).distances(X, start), -torch.exp(-torch.cdist(X, start) ** 2 / 8))


def test_a_cluster_without_weight_keeps_its_prototype():
    X, _ = blobs(10)
    S = torch.zeros(10, 2, dtype=torch.float64)
    S[:, 0] = 1
    kept = torch.full((2, 2), 9.0, dtype=torch.float64)
    assert torch.equal(MeanPrototype().update(X, S, kept)[1], kept[1])


@pytest.mark.parametrize("prototype", ["mean", "mode"])
@pytest.mark.parametrize("seed", range(3))
def test_the_energy_never_rises_on_a_symmetric_semidefinite_graph(prototype, seed):
    X, y = blobs(90, seed=seed, spread=4.0)
    learner = BoundClustering(3, prototype, lam=2.0, knn=5, symmetric=True, scale=0.2 if prototype == "mean" else 5.0)
    energies = learner.fit(X, [0, 1, 2], y[:3]).energy_
    assert len(energies) > 5 and all(b <= a + 1e-12 * abs(a) for a, b in pairwise(energies)) and energies[-1] < energies[0]


def test_labels_are_kept_and_found():
    X, y = blobs(90)
    learner = BoundClustering(3)
    assert learner.fit(X, range(3), y[:3]) is learner
    assert torch.equal(learner.labels_, y) and learner.result_.success and len(learner.energy_) == learner.result_.nit + 1
    torch.testing.assert_close(learner.assignments_.sum(1), torch.ones(90, dtype=torch.float64))
    wrong = BoundClustering(3).fit(X, range(4), [0, 1, 2, 2])  # the fourth is a 0
    assert wrong.labels_[3] == 2 and wrong.assignments_[3].tolist() == [0, 0, 1] and float((wrong.labels_ == y).double().mean()) > 0.9
    assert learner.prototypes_.shape == (3, 2) and "labels_" not in repr(learner)


def test_without_labels_it_starts_as_k_means_does_and_depends_on_the_key_alone():
    X, y = blobs(300, spread=0.3)
    one, two = BoundClustering(3, lam=0.0).fit(X.numpy(), key=1), BoundClustering(3, lam=0.0).fit(X, key=1)
    assert torch.equal(one.assignments_, two.assignments_)
    assert all(len(one.labels_[y == k].unique()) == 1 for k in range(3))
    starts = starting_prototypes(X, torch.full((300,), -1), 3, fl.Key(3))
    assert len({int(torch.cdist(start[None], X).argmin()) % 3 for start in starts}) == 3
    some = starting_prototypes(X, torch.where(torch.arange(300) == 4, 1, -1), 3, fl.Key(3))
    torch.testing.assert_close(some[1], X[4])


def test_k_means_plus_plus_draws_by_squared_distance():
    X = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    labels = torch.tensor([0, -1, -1])
    chosen = np.array([float(starting_prototypes(X, labels, 2, fl.Key(s))[1]) for s in range(600)])
    assert set(chosen.tolist()) == {1.0, 3.0} and abs((chosen == 3.0).mean() - 0.9) < 0.05


def test_runs_go_on_from_checkpoints(tmp_path):
    X, _ = blobs(60, spread=4.0)
    problem = RegularizedClustering(X, 3, W=neighbor_graph(X), scale=0.03)
    whole = fl.solve(problem, BoundUpdates(), key=2)
    fl.solve(problem, BoundUpdates(), fl.Budget(steps=5), key=2, checkpoint=tmp_path / "c")
    rest = fl.solve(problem, BoundUpdates(), key=2, checkpoint=tmp_path / "c")
    assert torch.equal(whole.x["assignments"], rest.x["assignments"]) and whole.nit == rest.nit > 5 and whole.counts == rest.counts
    with pytest.warns(UserWarning, match="has not converged"):
        BoundClustering(3, scale=0.03).fit(X, budget=fl.Budget(steps=2))


def peak_bytes(function):
    """The most that tensors held at once."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        function()
    held = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_memory_grows_linearly_with_the_points():
    def clustered(n):
        X = blobs(n, k=5, spread=2.0)[0].float()
        return peak_bytes(lambda: BoundClustering(5, scale=0.2).fit(X, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], budget=fl.Budget(steps=3)))

    with pytest.warns(UserWarning, match="has not converged"):
        small, large = clustered(50_000), clustered(200_000)
    assert large < 4.2 * small and large < 200_000 * (5 + 2 + 3) * 4 * 15


def test_bad_input_is_refused_at_the_door():
    X, _ = blobs(20)
    for arguments, said in ((([0, 0], [0, 1]), "different points"), (([0, 20], [0, 1]), "from 0 to 19"),
                            (([0, 1], [0, 3]), "from 0 to 2"), (([0, 1], None), "together"), (([0, 1], [0]), "as many integers")):
        with pytest.raises(ValueError, match=said):
            BoundClustering(3).fit(X, *arguments)
    with pytest.raises(ValueError, match="finite"):
        BoundClustering(3).fit(torch.full((4, 2), torch.nan))
    with pytest.raises(ValueError, match="knn must be between 2"):
        BoundClustering(3, knn=30).fit(X)
    with pytest.raises(ValueError, match="k must be at most the 20 points"):
        BoundClustering(30, lam=0.0).fit(X)
    with pytest.raises(ValueError, match="lam must be"):
        BoundClustering(3, lam=-1.0).fit(X)
    with pytest.raises(ValueError, match="scale must be"):
        BoundClustering(3, scale=0.0).fit(X)
    with pytest.raises(ValueError, match="prototype must be"):
        BoundClustering(3, "median")
    with pytest.raises(ValueError, match="iters"):
        BoundClustering(3, iters=0)
    with pytest.raises(ValueError, match="sigma must be"):
        ModePrototype(0.0)


def test_a_step_leaves_the_state_before_as_it_was():
    X, _ = blobs()
    problem, method = RegularizedClustering(X, 3, W=neighbor_graph(X, 3)), BoundUpdates()
    state = method.init(problem, fl.Key(0))
    kept = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    method.step(problem, state)
    assert all(torch.equal(state[name], value) for name, value in kept.items())


@pytest.mark.parametrize(("labels", "message"), [
    (torch.full((120,), 3), r"labels must be from 0 to 2, or −1 for none, got \[3\]"),
    (torch.full((120,), -2), r"got \[-2\]"),
    (torch.zeros(5, dtype=torch.long), r"labels must be 120 integers, one a point, got shape \(5,\)"),
    (torch.zeros(120), "of torch.float32"),
])
def test_labels_that_fit_no_clustering_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        RegularizedClustering(blobs()[0], 3, labels=labels)
