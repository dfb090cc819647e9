import math
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import splu

import fallline as fl
from fallline.core.errors import WrongProblem
from fallline.solvers import GinzburgLandau, MomentumSplitting, ginzburg_landau, graph_ssl, neighbor_laplacian, plot_phases
from fallline.solvers.ginzburg_landau import GraphQuadratic, PeriodicQuadratic

EPS = 0.3


def draw(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=fl.Key(seed).generator()) * 2 - 1


def ring(n=12):
    """A path closed to a ring, with a chord."""
    W = np.zeros((n, n))
    for i in range(n):
        W[i, (i + 1) % n] = W[(i + 1) % n, i] = 1.0
    W[0, 5] = W[5, 0] = 0.5
    return np.diag(W.sum(1)) - W


def normalised_star(leaves=100):
    """I − D^(-1/2) W D^(-1/2) of a star, whose middle row sums to 1 − √leaves."""
    L = np.eye(leaves + 1)
    L[0, 1:] = L[1:, 0] = -(leaves**-0.5)
    return L


def some_labels(n=12):
    y = torch.zeros(n, dtype=torch.float64)
    y[0], y[6] = 1.0, -1.0
    return y


def circle(n=64, eps=4 / 64, radius=0.35):
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    return torch.tanh((radius - torch.sqrt(x[:, None] ** 2 + x**2)) / (math.sqrt(2) * eps))


def energies(problem, method, steps):
    values = []
    fl.solve(problem, method, fl.Budget(steps=steps), callback=lambda m: values.append(problem.observe(m.report.resolve())["value"]))
    return np.array(values)


@pytest.mark.parametrize("shape", [(16,), (7, 8), (8, 7), (8, 10, 9)])
def test_the_energy_of_a_grid_is_its_definition(shape):
    u = draw(*shape)
    cell = 1 / math.prod(shape)
    differences = sum((((u.roll(-1, axis) - u) * n) ** 2).sum() for axis, n in enumerate(shape))
    expected = cell * (EPS / 2 * differences + ((u**2 - 1) ** 2 / 4).sum() / EPS)
    problem = GinzburgLandau(shape, eps=EPS, x0=u)
    assert float(problem.value(u)) == pytest.approx(float(expected), rel=1e-12) and problem.facts["cell"] == cell
    moving = u.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.smooth._oracles["value"](moving), moving)
    torch.testing.assert_close(problem.smooth.gradient(u), gradient)


def test_the_energy_of_a_graph_is_its_definition():
    L, y, u = ring(), some_labels(), draw(12)
    problem = GinzburgLandau(laplacian=torch.tensor(L), eps=EPS, labels=y, fidelity=2.5)
    known = y != 0
    expected = EPS / 2 * u @ torch.tensor(L) @ u + ((u**2 - 1) ** 2 / 4).sum() / EPS + 2.5 / 2 * ((u - y)[known] ** 2).sum()
    assert float(problem.value(u)) == pytest.approx(float(expected), rel=1e-12)
    for given in (scipy.sparse.csr_matrix(L), torch.tensor(L).to_sparse_csr()):
        problem = GinzburgLandau(laplacian=given, eps=EPS, labels=y, fidelity=2.5)
        assert float(problem.value(u)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("term", [PeriodicQuadratic((6, 5), 0.4, 3.0),
                                  GraphQuadratic(scipy.sparse.csc_array(ring()), 0.4, 3.0, some_labels(), 2.0)], ids=repr)
def test_the_proximal_maps_minimise_their_objective(term):
    x = draw(6, 5) if isinstance(term, PeriodicQuadratic) else draw(12)
    for step in (0.1, 20.0, torch.tensor(0.7)):
        z = term.prox(x, step)
        objective = lambda p, x=x, step=step: float(term.value(p) + ((p - x) ** 2).sum() / (2 * step))
        for seed in range(20):
            d = 0.1 * draw(*x.shape, seed=seed)
            assert objective(z + d) >= objective(z) + 0.99 * float((d**2).sum()) / (2 * float(step))


@pytest.mark.parametrize("momentum", ["fista", 0.6, None])
def test_steps_are_their_formula(momentum):
    L, y, c, tau, omega = ring(), some_labels().numpy(), 2.0, 0.8, 1.7
    u = before = draw(12).numpy()
    system = np.eye(12) + tau * (EPS * L + c / EPS * np.eye(12) + omega * np.diag(y != 0))
    for n in range(8):
        beta = {"fista": n / (n + 3), None: 0.0}.get(momentum, momentum)
        v = u + beta * (u - before)
        u, before = np.linalg.solve(system, v - tau / EPS * (v**3 - v - c * v) + tau * omega * y), u
    problem = GinzburgLandau(laplacian=torch.tensor(L), eps=EPS, labels=torch.tensor(y), fidelity=omega, x0=draw(12))
    result = fl.solve(problem, MomentumSplitting(tau, momentum), fl.Budget(steps=8))
    np.testing.assert_allclose(result.x, u, rtol=1e-9, atol=1e-12)
    assert result.counts == {"gradients": 8, "prox": 8} and result.gap == pytest.approx(np.linalg.norm(u - v) / tau, rel=1e-6)


def test_grid_steps_are_those_of_the_gradient_in_l2():
    n, tau = 20, 0.3
    A = sum(n**2 * (2 * np.eye(n) - np.roll(np.eye(n), 1, 0) - np.roll(np.eye(n), -1, 0)) for _ in range(1))
    u = draw(n).numpy()
    problem = GinzburgLandau((n,), eps=EPS, x0=torch.tensor(u))
    expected = np.linalg.solve(np.eye(n) + tau * (EPS * A + 2 / EPS * np.eye(n)), u - tau / EPS * (u**3 - 3 * u))
    result = fl.solve(problem, MomentumSplitting(tau, None), fl.Budget(steps=1))
    np.testing.assert_allclose(result.x, expected, rtol=1e-10)
    assert result.gap == pytest.approx(np.linalg.norm(expected - u) / tau / math.sqrt(n))


@pytest.mark.parametrize("tau", [1e-3, 0.1, 10.0, 1e4])
@pytest.mark.parametrize("kind", ["grid", "graph", "steep"])
def test_without_momentum_the_energy_falls_by_the_move_whatever_tau(tau, kind):
    if kind == "grid":
        problem = GinzburgLandau((16, 16), eps=0.2, x0=draw(16, 16))
    elif kind == "graph":
        problem = GinzburgLandau(laplacian=ring(), eps=0.2, labels=some_labels(), x0=draw(12))
    else:
        problem = GinzburgLandau((16, 16), eps=0.2, x0=3 * draw(16, 16), splitting=26.0)
    cell, method = problem.facts["cell"], MomentumSplitting(tau, None)
    state = method.init(problem, fl.Key(0))
    value = float(problem.value(state["u"]))
    for _ in range(30):
        u = state["u"]
        state = method.step(problem, state)
        after = float(problem.value(state["u"]))
        assert after <= value - cell * float(((state["u"] - u) ** 2).sum()) / tau + 1e-10
        assert float(state["u"].abs().max()) <= max(1.0, float(problem.x0.abs().max())) + 1e-12  # the maximum principle
        value = after


def test_a_circle_has_the_energy_of_its_length_and_momentum_removes_it_sooner():
    problem = GinzburgLandau((64, 64), eps=4 / 64, x0=circle())
    assert float(problem.value(problem.x0)) == pytest.approx(2 * math.sqrt(2) / 3 * 2 * math.pi * 0.35, rel=0.02)
    flow, fast = (energies(problem, MomentumSplitting(0.01, momentum), 150) for momentum in (None, "fista"))
    assert (np.diff(flow) <= 1e-10).all() and np.diff(fast).max() > 1e-3  # FISTA is not monotone
    assert 3 < np.argmax(flow < 0.02) / np.argmax(fast < 0.02) < 4


def test_random_starts_are_small_reproducible_and_labels_start_on_graphs():
    one, two, other = (GinzburgLandau((8, 8), eps=0.3, key=k).x0 for k in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other) and float(one.abs().max()) <= 0.1
    assert torch.equal(GinzburgLandau(laplacian=ring(), eps=1.0, labels=some_labels()).x0, some_labels())


def test_float32_stays_float32():
    problem = GinzburgLandau((16, 16), eps=0.2, x0=circle(16).float())
    assert fl.solve(problem, MomentumSplitting(), fl.Budget(steps=5)).x.dtype == torch.float32
    graph = GinzburgLandau(laplacian=ring(), eps=0.2, labels=some_labels(), x0=some_labels().float())
    assert fl.solve(graph, MomentumSplitting(), fl.Budget(steps=5)).x.dtype == torch.float32


@pytest.mark.parametrize(("arguments", "message"), [
    ({"eps": 1.0}, "give grid, such as"), ({"grid": (8, 8), "laplacian": ring(), "eps": 1.0}, "and not both"),
    ({"grid": (64, 64), "eps": 0.02}, r"eps must be at least two grid spacings, 0.0312, to resolve interfaces, got 0.02.* 100 points"),
    ({"grid": (8, 8, 8, 8), "eps": 1.0}, "grid must be 1 to 3 whole numbers"),
    ({"grid": (8,), "eps": 0.0}, "eps must be a finite number > 0"),
    ({"grid": (8,), "eps": 0.5, "splitting": 1.5}, "splitting must be at least 2 for"),
    ({"grid": (8,), "eps": 0.5, "x0": 2 * torch.ones(8)}, r"splitting must be at least 11 for \|x0\| up to 2"),
    ({"grid": (8,), "eps": 0.5, "x0": torch.ones(7)}, r"x0 must have the shape \(8,\), got \(7,\)"),
    ({"grid": (8,), "eps": 0.5, "labels": torch.ones(8)}, "labels are for graphs"),
    ({"laplacian": np.triu(ring()), "eps": 1.0}, "laplacian must be symmetric"),
    ({"laplacian": -ring(), "eps": 1.0}, "D − W, not W − D"),
    ({"laplacian": np.diag(np.diag(ring())) - ring(), "eps": 1.0}, "no entry above 0 beside the diagonal, and has 1,"),
    ({"laplacian": normalised_star(), "eps": 1.0}, r"rows that sum to 0 or more, and one sums to -9,.* not I − D"),
    ({"grid": (8,), "eps": 0.5, "x0": torch.full((8,), math.nan)}, "x0 must be finite"),
    ({"laplacian": ring()[:5], "eps": 1.0}, "laplacian must be a square matrix"),
    ({"laplacian": ring() * math.nan, "eps": 1.0}, "laplacian must be finite"),
    ({"laplacian": ring(), "eps": 1.0, "labels": torch.ones(5)}, "labels must be 12 numbers"),
    ({"laplacian": ring(), "eps": 1.0, "labels": torch.full((12,), 3.0)}, "labels must be -1, 1, or 0 for none, got 3"),
    ({"laplacian": ring(), "eps": 1.0, "fidelity": -1.0}, "fidelity must be a finite number >= 0"),
])
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        GinzburgLandau(**arguments)


def test_labels_and_start_are_copies():
    labels = some_labels()
    problem = GinzburgLandau(laplacian=ring(), eps=1.0, labels=labels)
    labels.fill_(1.0)
    assert problem.x0.equal(some_labels()) and (problem.term.labels == some_labels().numpy()).all()


def test_a_component_without_a_label_is_warned_of():
    two = scipy.sparse.block_diag([ring(), ring()])
    with pytest.warns(UserWarning, match="1 of the 2 components of the graph have no label"):
        GinzburgLandau(laplacian=two, eps=1.0, labels=torch.cat([some_labels(), torch.zeros(12, dtype=torch.float64)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GinzburgLandau(laplacian=two, eps=1.0, labels=some_labels().repeat(2))
        GinzburgLandau(laplacian=two, eps=1.0)


def test_bad_settings_and_wrong_problems():
    for bad in ({"tau": 0.0}, {"momentum": 1.0}, {"momentum": "nesterov"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MomentumSplitting(**bad)
    with pytest.raises(WrongProblem, match="MomentumSplitting solves convex-splitting problems"):
        fl.solve(fl.Smooth(lambda x: x.sum(), torch.ones(2)), MomentumSplitting())


def test_plots():
    assert plot_phases(draw(8)).data[0].type == "scatter"
    image = plot_phases(torch.eye(4)[:3]).data[0]
    assert image.type == "heatmap" and np.shape(image.z) == (4, 3)
    assert plot_phases(draw(4, 4, 4)).data[0].type == "isosurface"
    with pytest.raises(ValueError, match="1 to 3 dimensions"):
        plot_phases(draw(2, 2, 2, 2))


# ---------------------------------------------------------------- labels on graphs


def clusters(k, per=40, seed=0):
    rng = np.random.default_rng(seed)
    angles = 2 * math.pi * np.arange(k) / k
    centres = 4 * np.stack([np.cos(angles), np.sin(angles)], 1)
    X = np.concatenate([c + rng.standard_normal((per, 2)) for c in centres])
    y = np.repeat(np.arange(k) + 5, per)
    partial = np.full(len(y), -1)
    partial[::8] = y[::8]
    return X, y, partial


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("momentum", ["fista", None])
def test_clusters_get_their_labels(k, momentum):
    X, y, partial = clusters(k)
    found = graph_ssl(X, partial, momentum=momentum)
    assert (found.labels.numpy() == y).mean() > 0.96 and all(r.success for r in found.results)
    assert found.field.shape == (len(y), 1 if k == 2 else k) and f"{k} labels" in repr(found)


def test_one_factor_serves_all_labels(monkeypatch):
    factorised = []
    monkeypatch.setattr(ginzburg_landau, "splu", lambda *args, **options: factorised.append(1) or splu(*args, **options))
    X, _, partial = clusters(4)
    assert len(graph_ssl(X, partial).results) == 4 and len(factorised) == 1


def test_the_graph_of_neighbours():
    X, *_ = clusters(2)
    L = neighbor_laplacian(X, 6).toarray()
    np.testing.assert_allclose(L, L.T)
    np.testing.assert_allclose(L.sum(1), 0, atol=1e-12)
    W = np.diag(np.diag(L)) - L
    d = np.linalg.norm(X[:, None] - X[None], axis=2)
    nearest = np.argsort(d, 1)[:, 1:7]
    scale = np.sort(d, 1)[:, 6]
    near = np.zeros_like(d, dtype=bool)
    np.put_along_axis(near, nearest, True, 1)
    expected = np.where(near | near.T, np.exp(-(d**2) / (scale[:, None] * scale)), 0.0)
    np.testing.assert_allclose(W, expected / expected.sum(1).mean(), atol=1e-12)
    doubled = neighbor_laplacian(np.repeat(X[:5], 10, axis=0), 4)
    assert np.isfinite(doubled.data).all()


def test_bad_data():
    X, y, partial = clusters(2)
    with pytest.raises(ValueError, match="two labels or more beside -1"):
        graph_ssl(X, np.where(partial == 5, 5, -1))
    with pytest.raises(ValueError, match="one integer for each of the 80 points"):
        graph_ssl(X, partial[:5])
    with pytest.raises(ValueError, match="one integer"):
        graph_ssl(X, y.astype(float))
    with pytest.raises(ValueError, match="more points than the 80 neighbours"):
        graph_ssl(X, partial, neighbors=80)
    with pytest.raises(ValueError, match="X must be finite"):
        graph_ssl(X * np.nan, partial)
    with pytest.warns(UserWarning, match="has not converged"):
        graph_ssl(X, partial, max_iter=2)
