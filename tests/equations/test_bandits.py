import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import fallline as fl
from fallline.equations import ChebCB, TsallisINF, TunedSolver, sor_solve

ARMS = [1.0, 1.3, 1.6, 1.9]


def told(bandit, costs, contexts=None):
    """The arms and costs of a run in which arm a costs ``costs(a, context)``."""
    log = []
    for context in contexts if contexts is not None else [None] * 40:
        arm = bandit.predict(context)
        log.append((bandit.arms.index(arm), costs(arm, context)))
        bandit.update(log[-1][1])
    return log


def test_tsallis_inf_solves_its_own_minimisation():
    """p minimises ⟨p, K/s⟩ − (4/η) Σ (√p_i − p_i/2) over the simplex, with η = 2/√t and importance-weighted K."""
    bandit, K, total = TsallisINF(ARMS, 3), np.zeros(4), 0.0
    for t in range(1, 60):
        p, cost = bandit.probabilities(), None
        assert p.sum() == pytest.approx(1) and (p > 0).all()
        if t in (1, 2, 7, 30, 59):
            scale = (total - (t - 1)) / (t - 1) if t > 1 else 1.0
            eta = 2 / math.sqrt(t)
            z = (K / scale - 2 / (eta * np.sqrt(p)))
            assert np.ptp(z) < 1e-6 * (1 + np.abs(z).max())  # one multiplier for all arms
            objective = lambda q, K=K / scale, eta=eta: q @ K - 4 / eta * (np.sqrt(q) - q / 2).sum()
            for other in np.random.default_rng(t).dirichlet(np.ones(4), 50):
                assert objective(p) <= objective(0.9 * p + 0.1 * other) + 1e-12
        arm = bandit.arms.index(bandit.predict())
        cost = [90, 70, 30, 60][arm]
        K[arm] += (cost - 1) / p[arm]
        total += cost
        bandit.update(cost)
    np.testing.assert_allclose(bandit.state["K"], K, rtol=1e-9)


def test_the_best_arm_is_found_and_pulled_mostly():
    log = told(TsallisINF(ARMS, 0), lambda a, c: {1.0: 90, 1.3: 70, 1.6: 30, 1.9: 60}[a], [None] * 800)
    assert np.mean([arm == 2 for arm, _ in log[-200:]]) > 0.8


def test_chebcb_fits_each_arm_within_its_bounds():
    contexts = np.random.default_rng(0).uniform(0, 2, 150)
    truth = lambda a, c: 20 + 100 * abs(a - 1.2 - 0.3 * c)
    bandit = ChebCB(ARMS, 4, 0.0, 2.0, 1)
    log = told(bandit, truth, contexts)
    arms, costs = np.array(log, dtype=float).T
    largest, least = costs.max(), costs.min()
    N = 2 + 4 * (largest - least) / largest * (1 + math.log(4))
    S = largest * N
    bounds = np.array([1 / N, *(2 * (largest - least) / S / np.arange(1, 4))])
    phi = np.stack([np.polynomial.chebyshev.chebval(contexts - 1, np.eye(4)[j]) for j in range(4)], 1)
    for arm in range(4):
        chosen = arms == arm
        loss = lambda theta, chosen=chosen: ((phi[chosen] @ theta - (costs[chosen] - 1) / S) ** 2).sum()
        theta = bandit.state["theta"][arm]
        assert (np.abs(theta) <= bounds * (1 + 1e-9)).all()
        best = minimize(loss, np.zeros(4), bounds=list(zip(-bounds, bounds, strict=True)), tol=1e-14).fun
        assert loss(theta) <= best * (1 + 1e-4) + 1e-9
    residuals = sum(((phi[arms == a] @ bandit.state["theta"][a] - (costs[arms == a] - 1) / S) ** 2).sum() for a in range(4))
    assert bandit._residuals(S) == pytest.approx(residuals, abs=1e-9)
    assert costs[-50:].mean() < 40 < costs[:20].mean()


def test_chebcb_weights_arms_by_their_gaps():
    bandit = ChebCB(ARMS, 3, 0.0, 1.0)
    np.testing.assert_allclose(bandit._probabilities(0.3), 0.25)
    bandit.state.update(theta=np.array([[0.3, 0, 0], [0.1, 0.1, 0], [0.2, 0, 0], [0.1, 0, 0.0]]), eta=10.0, scale=100.0)
    p = bandit._probabilities(1.0)  # predictions 0.3, 0.2, 0.2, 0.1
    np.testing.assert_allclose(p, [1 / 6, 1 / 5, 1 / 5, 1 - 1 / 6 - 2 / 5])
    np.testing.assert_allclose(bandit.costs(1.0), [31, 21, 21, 11])


@pytest.mark.parametrize("make", [lambda: TsallisINF(ARMS, 5), lambda: ChebCB(ARMS, 3, 0.0, 1.0, 5)])
def test_a_bandit_goes_on_from_its_state_and_asks_the_same_until_told(make):
    costs, contexts = lambda a, c: 10 + 50 * a * c, list(np.linspace(0, 1, 30))
    whole, half = make(), make()
    first = told(whole, costs, contexts)
    assert told(half, costs, contexts[:12]) == first[:12]
    assert half.predict(0.5) == half.predict(0.9)
    rest = make()
    half = make()
    told(half, costs, contexts[:12])
    rest.load_state_dict(half.state_dict())
    assert told(rest, costs, contexts[12:]) == first[12:]
    assert all(isinstance(value, torch.Tensor | int | float | None) for value in rest.state_dict().values())
    assert "4 arms from 1 to 1.9, t=31" in repr(rest)
    with pytest.raises(ValueError, match="state must be that of"):
        rest.load_state_dict({"t": 1})


def test_bandits_refuse_what_they_cannot_use():
    with pytest.raises(ValueError, match="at least two finite numbers"):
        TsallisINF([1.0])
    with pytest.raises(ValueError, match="call predict first"):
        TsallisINF(ARMS).update(3)
    bandit = ChebCB(ARMS, 3, 0.0, 1.0)
    for context in (None, 1.2, float("nan")):
        with pytest.raises(ValueError, match="context must be a number from 0 to 1"):
            bandit.predict(context)
    bandit.predict(0.5)
    for cost in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite number of iterations"):
            bandit.update(cost)
    with pytest.raises(ValueError, match="lo and hi"):
        ChebCB(ARMS, 3, 1.0, 1.0)
    with pytest.raises(ValueError, match="degree"):
        ChebCB(ARMS, 0, 0.0, 1.0)


def test_costs_of_one_iteration_and_huge_costs_leave_probabilities():
    bandit = TsallisINF(ARMS)
    told(bandit, lambda a, c: 1)
    np.testing.assert_allclose(bandit.probabilities(), 0.25)
    told(bandit, lambda a, c: 10_000 if a > 1.5 else 2, [None] * 500)
    assert np.isfinite(bandit.probabilities()).all() and bandit.probabilities().sum() == pytest.approx(1)


def test_a_tuned_solver_solves_and_learns():
    T = 2 * torch.eye(12) - torch.diag(torch.ones(11), 1) - torch.diag(torch.ones(11), -1)
    A, b = T.double(), torch.ones(12).double()
    tuned = TunedSolver(sor_solve, TsallisINF(ARMS, 2))
    for _ in range(60):
        result = tuned.solve(A, b)
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-6)
    assert len(tuned.costs) == 60 and tuned.costs[-1] == result.nit == sor_solve(A, b, tuned.parameters[-1]).nit
    assert sum(tuned.costs[-20:]) < sum(tuned.costs[:20]) and "60 systems solved" in repr(tuned)
    assert sor_solve(A, b, 1.0, max_iterations=3).status == "budget"


def test_a_tuned_solver_learns_nothing_from_a_system_that_no_parameter_solves():
    tuned = TunedSolver(sor_solve, TsallisINF(ARMS))
    with pytest.raises(ValueError, match=r"the solver failed with the parameter .* positive definite"):
        tuned.solve(torch.tensor([[1.0, 2], [2, 1]]).double(), torch.tensor([1.0, 0.5]).double())
    assert tuned.bandit.state["t"] == 1 and not tuned.costs
    with pytest.raises(TypeError, match="solver must be a function"):
        TunedSolver("sor", TsallisINF(ARMS))
    counted = TunedSolver(lambda A, b, omega: 7, ChebCB(ARMS, 2, 0.0, 1.0))
    assert counted.solve(None, None, context=0.5) == 7 and counted.costs == [7.0]


def test_the_global_generators_are_left_alone():
    before = torch.random.get_rng_state()
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    told(TsallisINF(ARMS, fl.Key(1)), lambda a, c: 5)
    assert torch.equal(before, torch.random.get_rng_state()) and np.random.rand() == expected
