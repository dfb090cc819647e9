"""Estimates of growth, the advice they lead to, and the exact risk of both methods on linear regression."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fallline as fl
from fallline.optim import Growth, acceleration_advice, asgd_parameters, estimate_growth, risk_report


def regression(n=4000, d=6, noise=0.0):
    generator = fl.Key(3).generator()
    a = torch.randn(n, d, dtype=torch.float64, generator=generator) * torch.linspace(0.5, 2, d, dtype=torch.float64)
    y = noise * torch.randn(n, dtype=torch.float64, generator=generator)
    return a, y, fl.FiniteSum(lambda w, a, y: ((a @ w - y) ** 2).mean() / 2, (a, y), torch.ones(d, dtype=torch.float64))


def exact_ratio(a, y, w):
    gradients = a * (a @ w - y)[:, None]
    return float(gradients.square().sum(1).mean() / gradients.mean(0).square().sum())


def test_growth_is_that_of_the_data():
    a, y, problem = regression()
    points = [problem.x0, torch.linspace(-1, 1, 6, dtype=torch.float64)]
    found = estimate_growth(problem, points, size=40_000)
    assert found.ratios == pytest.approx([exact_ratio(a, y, w) for w in points], rel=0.05)
    assert found.rho == max(found.ratios)
    eigenvalues = torch.linalg.eigvalsh(a.T @ a / len(a))
    assert (found.L, found.mu) == pytest.approx((float(eigenvalues[-1]), float(eigenvalues[0])), rel=1e-3)
    assert "rho=" in repr(found)


def test_a_small_batch_does_not_shrink_the_ratio():
    d = 40
    a = torch.randn(20_000, d, dtype=torch.float64, generator=fl.Key(0).generator())
    problem = fl.FiniteSum(lambda w, a: ((a @ w) ** 2).mean() / 2, a, torch.ones(d, dtype=torch.float64), facts={"L": 1.0, "mu": 1.0})
    ratios = [estimate_growth(problem, [problem.x0], size=64, key=s).rho for s in range(60)]
    # The plain quotient would be near 42 / (1 + 42 / 64) = 25.
    assert float(torch.tensor(ratios).median()) == pytest.approx(d + 2, rel=0.15)


def test_noise_that_stays_is_infinite_growth():
    a, y, problem = regression(noise=1.0)
    best = torch.linalg.lstsq(a, y[:, None]).solution[:, 0]
    assert estimate_growth(problem, [best], size=4000).rho > 1e3
    assert acceleration_advice(math.inf, 1.0, 0.1).method == "sgd"


def test_networks_and_stated_facts():
    a, y, _ = regression(n=50)
    torch.manual_seed(0)
    training = fl.Training(nn.Linear(6, 1).double(), mse_loss, (a, y[:, None]))
    found = estimate_growth(training, [training.x0], size=500)
    w = torch.cat([training.x0["weight"][0], training.x0["bias"]])
    extended = torch.cat([a, torch.ones(50, 1, dtype=torch.float64)], 1)
    assert found.rho == pytest.approx(exact_ratio(extended, y, w), rel=0.2)
    assert pytest.approx(float(torch.linalg.eigvalsh(2 * extended.T @ extended / 50)[-1]), rel=1e-3) == found.L
    stated = fl.FiniteSum(lambda w, a: ((a @ w) ** 2).mean(), a, torch.ones(6, dtype=torch.float64), facts={"L": 7.0, "mu": 0.5})
    found = estimate_growth(stated, [stated.x0])
    assert (found.L, found.mu) == (7.0, 0.5)


def test_estimate_growth_refuses_by_name():
    _, _, problem = regression()
    with pytest.raises(ValueError, match="points must be a sequence of at least one point"):
        estimate_growth(problem, [])
    with pytest.raises(ValueError, match="size must be a whole number >= 2"):
        estimate_growth(problem, [problem.x0], size=1)
    with pytest.raises(fl.core.MissingOracle, match="per_sample_gradients"):
        estimate_growth(fl.Smooth(lambda x: (x**2).sum(), torch.ones(2)), [torch.ones(2)])


def test_advice_follows_the_condition_number():
    assert acceleration_advice(2, 1.0, 1e-4).method == "stochastic-agd"
    assert acceleration_advice(2, 1.0, 1e-4).speedup == pytest.approx(100)
    assert acceleration_advice(52, 1.0, 1.0).method == "sgd"
    assert "larger batches" in repr(acceleration_advice(52, 1.0, 1.0))
    assert "strong convexity" in acceleration_advice(2, 1.0, 0.0).reason
    found = Growth(2.0, 1.0, 1e-2, (2.0,))
    assert acceleration_advice(found.rho, found.L, found.mu).speedup == pytest.approx(10)


@pytest.mark.parametrize(("arguments", "name"), [((0.5, 1.0, 0.1), "rho"), ((2.0, 0.0, 0.0), "L"), ((2.0, 1.0, 2.0), "mu")])
def test_advice_refuses_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        acceleration_advice(*arguments)


def test_asgd_parameters_are_the_paper_s():
    spectrum = [0.25, 1.0, 0.0625, 0.5]
    found = asgd_parameters(spectrum, kappa=2, psi=3.0)
    delta, gamma = 1 / (6 * 1.8125), 1 / (6 * 0.3125)
    assert found["primal_step"] == pytest.approx(delta)
    assert found["dual_step"] == pytest.approx(gamma)
    assert found["beta"] == pytest.approx(delta / (6 * 2 * gamma))
    assert found["alpha"] == pytest.approx(1 / (1 + found["beta"]))
    for kappa in (0, 4, 5, 1.5):
        with pytest.raises(ValueError, match="kappa must be a whole number from 1 to 3"):
            asgd_parameters(spectrum, kappa)
    with pytest.raises(ValueError, match="spectrum"):
        asgd_parameters([1.0, -1.0], 1)
    with pytest.raises(ValueError, match="psi"):
        asgd_parameters(spectrum, 1, psi=0.5)


def dense_risk(spectrum, w0, sigma, n, average, delta, gamma, alpha, beta):
    """Excess risk along each axis from full covariances of (a, b, sum of a), with E x xᵀ M x xᵀ = 2 H M H + tr(H M) H."""
    d = len(spectrum)
    H, eye, zero = torch.diag(spectrum), torch.eye(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    U = torch.cat([alpha * eye, (1 - alpha) * eye, zero], 1)
    first = torch.cat([w0, w0, torch.zeros(d, dtype=torch.float64)])
    M = torch.outer(first, first)
    for t in range(1, n + 1):
        counted = float(t > n - average)
        pull = torch.cat([delta * eye, gamma * eye, counted * delta * eye])
        still = torch.cat([U, beta * U + torch.cat([zero, (1 - beta) * eye, zero], 1),
                           counted * U + torch.cat([zero, zero, eye], 1)])
        uu = U @ M @ U.T
        cross = still @ M @ U.T @ H @ pull.T
        fourth = 2 * H @ uu @ H + (H @ uu).trace() * H + sigma**2 * H
        M = still @ M @ still.T - cross - cross.T + pull @ fourth @ pull.T
    return spectrum * M[2 * d :, 2 * d :].diagonal() / average**2 / 2


@pytest.mark.parametrize("tail", [0.5, 1.0, 0.05])
def test_the_risk_is_that_of_the_full_covariance(tail):
    spectrum, w0 = torch.tensor([0.1, 1.0, 0.02, 0.3], dtype=torch.float64), torch.tensor([1.0, -0.5, 2.0, 0.7], dtype=torch.float64)
    n, found = 40, asgd_parameters([0.1, 1.0, 0.02, 0.3], 2)
    report = risk_report(spectrum, w0, 0.3, n, kappa=2, tail=tail)
    for risk, gamma in ((report.asgd, found["dual_step"]), (report.sgd, found["primal_step"])):
        numbers = (max(1, round(tail * n)), found["primal_step"], gamma, found["alpha"], found["beta"])
        torch.testing.assert_close(risk.bias, dense_risk(spectrum, w0, 0.0, n, *numbers), rtol=1e-10, atol=0)
        torch.testing.assert_close(risk.variance, dense_risk(spectrum, 0 * w0, 0.3, n, *numbers), rtol=1e-10, atol=0)
        assert risk.total == pytest.approx(float(dense_risk(spectrum, w0, 0.3, n, *numbers).sum()))


def test_the_recommendation_is_the_smaller_risk():
    spectrum = torch.arange(1, 65, dtype=torch.float64) ** -2
    index = torch.arange(1, 65)
    small = risk_report(spectrum, (index > 20).double(), 0.0, 2000)
    top = risk_report(spectrum, (index <= 2).double(), 0.0, 500, kappa=8)
    noisy = risk_report(spectrum, torch.zeros(64), 1.0, 500, kappa=8)
    assert [r.recommendation for r in (small, top, noisy)] == ["accelerated-sgd", "sgd", "sgd"]
    assert small.asgd.total <= risk_report(spectrum, (index > 20).double(), 0.0, 2000, kappa=8).asgd.total
    assert small.parameters == asgd_parameters(spectrum, small.kappa)
    assert "use accelerated-sgd" in repr(small) and "small ones" in repr(small)
    assert len(small.plot().data) == 4


def test_risk_report_refuses_by_name():
    for arguments, name in [(([1.0, 0.5], [1.0], 0.1, 10), "w0"), (([1.0, 0.5], [1.0, 1.0], -1.0, 10), "sigma"),
                            (([1.0, 0.5], [1.0, 1.0], 0.1, 0), "n"), (([1.0, 0.0], [1.0, 1.0], 0.1, 10), "spectrum")]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            risk_report(*arguments)
    with pytest.raises(ValueError, match="tail"):
        risk_report([1.0, 0.5], [1.0, 1.0], 0.1, 10, tail=0.0)
