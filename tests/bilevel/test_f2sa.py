import pytest
import torch

import fallline as fl
from fallline.bilevel import F2SA, F3SA
from fallline.core.estimators import storm

TARGET = torch.tensor([1.0, -2.0], dtype=torch.float64)


def quadratic():
    x0, y0 = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.2, -0.1], dtype=torch.float64)
    return fl.Bilevel(lambda x, y: ((y - TARGET) ** 2).sum() + 0.1 * (x**2).sum(), lambda x, y: 0.5 * ((y - 2 * x) ** 2).sum(), x0, y0)


def test_the_first_step_is_its_formula():
    problem, method = quadratic(), F2SA(alpha=0.02, xi=0.5, lam0=3.0, T=2, noise="none")
    x, y = problem.x0
    z = y
    for _ in range(2):
        # alpha_0 = 0.02, gamma_0 = 2 lam_0 alpha_0 = 0.12
        z, y = z - 0.12 * (z - 2 * x), y - 0.02 * (2 * (y - TARGET) + 3 * (y - 2 * x))
    step = 0.2 * x + 3 * (-2 * (y - 2 * x) + 2 * (z - 2 * x))
    state = method.step(problem, method.init(problem, fl.Key()))
    for found, expected in zip((state["x"], state["y"], state["z"]), (x - 0.5 * 0.02 * step, y, z), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make, noise, power", [(F2SA, "both", 1 / 7), (F2SA, "upper", 1 / 5), (F2SA, "none", 1 / 3),
                                                (F3SA, "both", 1 / 5), (F3SA, "upper", 1 / 4), (F3SA, "none", 1 / 3)])
def test_the_schedules_have_the_papers_exponents(make, noise, power):
    method = make(noise=noise, k0=2.0, lam0=1.5)
    for k in (0, 10, 1000):
        alpha, gamma, lam = method.schedule(k)
        assert lam == pytest.approx(1.5 * (1 + k / 2) ** power) and gamma == pytest.approx(2 * alpha * lam) and alpha * lam <= gamma


@pytest.mark.parametrize("make, factor", [(F2SA, 1), (F3SA, 2)])
def test_gradients_a_step(make, factor):
    result = fl.solve(quadratic(), make(T=4, noise="none"), fl.Budget(steps=5))
    # The first estimate of each of the six gradients has no previous point.
    assert result.counts["gradients"] == factor * 5 * (3 * 4 + 3) - (6 if factor == 2 else 0)


def test_without_noise_momentum_changes_nothing():
    one, two = (fl.solve(quadratic(), make(noise="none"), fl.Budget(steps=20)).x for make in (F2SA, F3SA))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", [F2SA, F3SA])
def test_it_finds_the_answer_from_samples(make):
    noise = 0.3 * torch.randn(200, 2, dtype=torch.float64, generator=fl.Key(7).generator())
    noise = noise - noise.mean(0)
    start = (torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    upper = fl.FiniteSum(lambda z, a: ((z[1] - TARGET - a) ** 2).sum(1).mean() + 0.1 * (z[0] ** 2).sum(), noise, start, batch_size=5)
    lower = fl.FiniteSum(lambda z, a: 0.5 * ((z[1] - 2 * z[0] - a) ** 2).sum(1).mean(), noise, start, batch_size=5)
    result = fl.solve(fl.Bilevel(upper, lower, *start), make(lam0=5.0, k0=50.0), fl.Budget(steps=800))
    best = 4 * TARGET / (8 + 0.2)
    assert float((result.x[0] - best).norm()) < 0.25


def test_storm_corrects_the_old_estimate_by_the_same_sample():
    estimate, now, before = (torch.tensor([v]) for v in (5.0, 2.0, 4.0))
    assert storm(estimate, now, before, 1.0) == now
    assert storm(estimate, now, before, 0.25) == 2.0 + 0.75 * (5.0 - 4.0)


@pytest.mark.parametrize("options, message", [({"T": 0}, "T must"), ({"lam0": 0.0}, "lam0"), ({"alpha": -1.0}, "alpha"),
                                              ({"noise": "lower"}, "noise")])
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        F2SA(**options)
