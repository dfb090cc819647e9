"""The path of log-determinants, CoLiDE and DAGMA: against formulas and an independent loop, the guard, ends, bad input."""

import math

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.graphs import (
    DAGMA,
    CoLiDE,
    EqualVarianceScore,
    LeastSquaresScore,
    LogDetPath,
    StructureLearning,
    UnequalVarianceScore,
    erdos_renyi,
    is_acyclic,
)

SHORT = LogDetPath(lr=1e-2, iterations=400, last_iterations=1_000)


def data(d=6, n=400, seed=0, variances=1.0):
    return erdos_renyi(d, min(2 * d, d * (d - 1) // 2), seed).sample(n, seed, variances=variances)


SIGMAS = torch.linspace(0.05, 20, 20_001, dtype=torch.float64)


@pytest.mark.parametrize(("score", "formula"), [
    (EqualVarianceScore(), lambda q: (q.sum() / (2 * SIGMAS) + len(q) * SIGMAS / 2).min()),
    (UnequalVarianceScore(), lambda q: (q / (2 * SIGMAS[:, None]) + SIGMAS[:, None] / 2).amin(0).sum()),
], ids=["equal", "unequal"])
def test_concomitant_scores_are_at_their_best_noise(score, formula):
    X = data()
    problem = StructureLearning(X, score)
    W = 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    residuals = (X - X.mean(0)) @ (torch.eye(6, dtype=torch.float64) - W)
    q = residuals.square().mean(0)
    assert float(problem.value(W) - 0.05 * W.abs().sum()) == pytest.approx(float(formula(q)), rel=1e-6)
    V = W.clone().requires_grad_()
    remainder = ((X - X.mean(0)) @ (torch.eye(6, dtype=torch.float64) - V)).square().mean(0)
    loss = (6 * remainder.sum()).sqrt() if isinstance(score, EqualVarianceScore) else remainder.sqrt().sum()
    torch.testing.assert_close(problem.smooth.gradient(W), torch.autograd.grad(loss, V)[0])
    expected = q.mean().sqrt().expand(6) if isinstance(score, EqualVarianceScore) else q.sqrt()
    torch.testing.assert_close(score.noise(problem.data, W), expected)


@pytest.mark.parametrize("score", [EqualVarianceScore(), UnequalVarianceScore()])
def test_below_its_bound_the_noise_stays_and_nothing_breaks(score):
    X = data(4, 100)
    X[:, 3] = X[:, 0] + X[:, 1]  # W below leaves nothing of it
    problem = StructureLearning(X, score)
    W = torch.zeros(4, 4, dtype=torch.float64)
    W[0, 3] = W[1, 3] = 1.0
    assert bool(torch.isfinite(problem.smooth.gradient(W)).all()) and math.isfinite(float(problem.value(W)))
    V = torch.zeros_like(W)
    V[:3, :3] = torch.eye(3)  # nothing is left of anything
    V[:, 3] = W[:, 3]
    floor = 1e-2 * float(((X - X.mean(0)) ** 2).mean().sqrt())
    assert float(problem.value(V) - 0.05 * V.abs().sum()) == pytest.approx(4 * floor / 2, rel=1e-6)


def by_hand(X, score, path, steps):
    """The rule in NumPy, without the guard."""
    X = X.numpy() - X.numpy().mean(0)
    C, d = X.T @ X / len(X), X.shape[1]
    W, stage, t = np.zeros((d, d)), 0, 0
    m = v = np.zeros((d, d))
    for _ in range(steps):
        mu, s = 0.1**stage, path.s[stage]
        M = np.linalg.inv(s * np.eye(d) - W * W)
        assert M.min() > -1e-6
        q = np.diag((np.eye(d) - W).T @ C @ (np.eye(d) - W))
        sigma = np.sqrt(q.mean()) if isinstance(score, EqualVarianceScore) else \
            np.sqrt(q) if isinstance(score, UnequalVarianceScore) else 1.0
        g = mu * (-C @ (np.eye(d) - W) / sigma + score.lam * np.sign(W)) + 2 * W * M.T
        t += 1
        m, v = 0.99 * m + 0.01 * g, 0.999 * v + 0.001 * g**2
        W = W - path.lr * (m / (1 - 0.99**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        if t == path.iterations:
            stage, t = stage + 1, 0
            m = v = np.zeros((d, d))
    return torch.tensor(W)


@pytest.mark.parametrize("score", [EqualVarianceScore(), UnequalVarianceScore(0.1), LeastSquaresScore(0.02)], ids=str)
def test_it_follows_the_rule_through_stages(score):
    path = LogDetPath(lr=2e-3, iterations=120, last_iterations=100)
    problem = StructureLearning(data(), score)
    state = path.init(problem, fl.Key(0))
    taken = 0
    while taken < 300:
        before = (state["stage"], state["t"])
        state = path.step(problem, state)
        taken += (state["stage"], state["t"]) > before and state["t"] > 0
    torch.testing.assert_close(state["W"], by_hand(data(), score, path, 300), rtol=1e-7, atol=1e-9)


def test_the_defaults_are_the_papers():
    assert LogDetPath() == LogDetPath(3e-4, (1.0, 0.9, 0.8, 0.7), 0.1, 20_000, 70_000, 1_000, 1e-6, (0.99, 0.999))
    assert CoLiDE().score == EqualVarianceScore(0.05) and CoLiDE("unequal", 0.1).score == UnequalVarianceScore(0.1)
    assert DAGMA().path == LogDetPath(s=(1, 0.9, 0.8, 0.7, 0.6), iterations=30_000, last_iterations=60_000)
    assert DAGMA().score == LeastSquaresScore(0.03)


def outside(state):
    """Weights whose square closes a cycle of more than s."""
    W = torch.zeros_like(state["W"])
    W[0, 1] = W[1, 0] = 1.2
    return W


def test_outside_the_domain_the_last_step_is_halved():
    problem, path = StructureLearning(data(), EqualVarianceScore()), LogDetPath(lr=1e-2)
    state = path.init(problem, fl.Key(0))
    for _ in range(3):
        state = path.step(problem, state)
    state["W"] = outside(state)
    W, lr, move = state["W"].clone(), state["lr"], state["move"]
    state = path.step(problem, state)
    torch.testing.assert_close(state["W"], W + lr / 2 * move)
    assert state["lr"] == lr / 2 and state["t"] == 3 and state["first_lr"] == lr


def test_a_stage_that_starts_outside_or_is_late_begins_again_in_a_larger_domain():
    problem, path = StructureLearning(data(), EqualVarianceScore()), LogDetPath(lr=1e-2, s=(0.8, 0.7))
    state = path.init(problem, fl.Key(0))
    for _ in range(3):
        state = path.step(problem, state)
    start = state["start"].clone()
    state = path.step(problem, {**state, "W": outside(state)})
    assert state["s"] == pytest.approx(0.9) and state["lr"] == 5e-3 and state["t"] == 0 and torch.equal(state["W"], start)
    wide = LogDetPath(lr=1e-2)
    state = wide.init(problem, fl.Key(0))
    state["W"] = state["start"] = outside(state)
    for k in range(1, 6):  # only s helps: the cycle's weight is 1.44² in W∘W
        state = wide.step(problem, state)
        assert state["lr"] == pytest.approx(1e-2 / 2**min(k, 5))
    assert state["s"] == pytest.approx(1.5) and wide.step(problem, state)["t"] == 1


def test_a_stage_ends_where_the_objective_stands_still():
    problem = StructureLearning(data(), EqualVarianceScore(50.0))  # W = 0 is best
    result = fl.solve(problem, LogDetPath(lr=1e-12, check_every=10), fl.Budget(steps=1_000))
    assert result.success and result.nit < 100 and "all 4 stages" in result.message
    assert result.certificate["mu"] == pytest.approx(1e-3) and abs(result.certificate["h"]) < 1e-9


@pytest.mark.parametrize("learner", [CoLiDE(path=SHORT), CoLiDE("unequal", path=SHORT), DAGMA(LeastSquaresScore(0.05), SHORT)], ids=str)
def test_they_find_an_easy_graph_and_its_noise(learner):
    true = erdos_renyi(6, 6, 3)
    dag = learner.fit(true.sample(1_000, 1, variances=4.0))
    assert dag.compare(true)["shd"] <= 1 and learner.result_.success and is_acyclic(dag.weights)
    assert float((dag.noise - 2).abs().max()) < 0.3
    assert torch.equal(learner.to_dag(0.3).weights if isinstance(learner, CoLiDE) else dag.weights, dag.weights)
    assert not is_acyclic(learner.W_) or learner.W_.count_nonzero() < 30


def test_sigma_is_one_number_or_one_a_node():
    X = data(5, 300)
    equal, unequal = CoLiDE(path=SHORT), CoLiDE("unequal", path=SHORT)
    equal.fit(X)
    unequal.fit(X)
    assert equal.sigma_.shape == () and unequal.sigma_.shape == (5,)
    assert equal.fit(X + 100).weights.shape == (5, 5)  # means do not matter


def test_fewer_rows_than_nodes_have_an_answer():
    dag = CoLiDE("unequal", path=SHORT).fit(data(8, 6))
    assert bool(torch.isfinite(dag.weights).all())


def test_runs_go_on_from_checkpoints(tmp_path):
    problem = StructureLearning(data(), EqualVarianceScore())
    path = LogDetPath(lr=1e-2, iterations=30, last_iterations=50)
    whole = fl.solve(problem, path)
    fl.solve(problem, path, fl.Budget(steps=70), checkpoint=tmp_path / "c")
    rest = fl.solve(problem, path, checkpoint=tmp_path / "c")
    assert torch.equal(whole.x, rest.x) and whole.nit == rest.nit and whole.counts == rest.counts and whole.success
    with pytest.warns(UserWarning, match="has not converged"):
        CoLiDE(path=path).fit(data(), budget=fl.Budget(steps=20))


def test_bad_settings_are_refused_at_the_door():
    for settings, said in (({"lr": 0.0}, "lr must be"), ({"s": ()}, "s must be"), ({"s": (1.0, -1.0)}, "s must be"),
                           ({"factor": 1.0}, "factor must"), ({"iterations": 0}, "iterations must"), ({"tol": -1.0}, "tol must"),
                           ({"betas": (1.0, 0.9)}, "betas must")):
        with pytest.raises(ValueError, match=said):
            LogDetPath(**settings)
    with pytest.raises(ValueError, match="variance must be 'equal' or 'unequal'"):
        CoLiDE("both")
    with pytest.raises(ValueError, match="lam must be"):
        CoLiDE(lam=-1.0)


def test_a_step_leaves_the_state_before_as_it_was():
    problem, path = StructureLearning(data(), EqualVarianceScore()), LogDetPath(lr=1e-2)
    state = path.step(problem, path.init(problem, fl.Key(0)))
    for before in (state, {**state, "W": 3 + state["W"]}):  # an ordinary step, and one back into the domain
        kept = {name: value.clone() for name, value in before.items() if isinstance(value, torch.Tensor)}
        path.step(problem, before)
        assert all(torch.equal(before[name], value) for name, value in kept.items())
