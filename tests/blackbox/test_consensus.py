import itertools
import math

import pytest
import torch

import fallline as fl
from fallline.blackbox import CBO, ConsensusHopping, cbo_gradient, consensus_point


def sphere(points):
    return (points**2).sum(-1)


def problem(d=2, **options):
    return fl.BlackBox(sphere, torch.full((d,), 2.0, dtype=torch.float64), vectorized=True, **options)


def test_the_consensus_is_the_weighted_mean_whatever_the_scale_of_f():
    points, values = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    weights = torch.exp(-2 * values)
    expected = (weights[:, None] * points).sum(0) / weights.sum()
    torch.testing.assert_close(consensus_point(points, values, 2.0), expected)
    torch.testing.assert_close(consensus_point(points, values + 1e6, 2.0), expected)


def test_nan_counts_as_infinite_and_nothing_but_nan_is_said():
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert float(consensus_point(points, torch.tensor([math.nan, 5.0], dtype=torch.float64), 1.0)) == 1.0
    never = fl.BlackBox(lambda p: p.sum(-1) * math.nan, torch.zeros(2, dtype=torch.float64), vectorized=True)
    assert fl.solve(never, CBO(sigma=0.5), fl.Budget(steps=3)).status == "nonfinite"


@pytest.mark.parametrize("noise", ["isotropic", "anisotropic"])
def test_one_step_is_its_formula(noise):
    method, task = CBO(n=5, alpha=3.0, lam=0.7, sigma=0.4, dt=0.2, noise=noise), problem()
    state = method.init(task, fl.Key(4))
    points = state["points"].clone()
    consensus = consensus_point(points, sphere(points), 3.0)
    away = points - consensus
    normal = torch.randn(5, 2, dtype=torch.float64, generator=fl.Key(4).fold(0).generator())
    scale = away.norm(dim=1, keepdim=True) if noise == "isotropic" else away
    expected = points - 0.7 * 0.2 * away + 0.4 * math.sqrt(0.2) * scale * normal
    torch.testing.assert_close(method.step(task, state)["points"], expected)


def test_the_population_starts_in_the_bounds_and_asking_twice_is_the_same():
    method = CBO(n=50, sigma=0.5)
    state = method.init(problem(bounds=(3.0, 4.0)), fl.Key())
    assert float(state["points"].min()) >= 3 and float(state["points"].max()) <= 4
    assert torch.equal(method.ask(state), method.ask(state))
    hopping = ConsensusHopping()
    hop = hopping.init(problem(), fl.Key())
    assert torch.equal(hopping.ask(hop), hopping.ask(hop))


def test_it_can_be_driven_by_hand():
    method, task = CBO(), problem()
    state = method.init(task, fl.Key())
    for _ in range(100):
        points = method.ask(state)
        state = method.tell(state, points, sphere(points))
    report = method.report(task, state)
    assert report.value == float(sphere(report.solution)) < 1e-2


def test_a_collapsed_population_starts_again_around_the_best():
    method = CBO(n=20, sigma=1e-6, collapse=0.1)
    result = fl.solve(problem(), method, fl.Budget(steps=100))
    widths = [row["gap"] for row in result.trace if "gap" in row]
    assert any(b > 2 * a for a, b in itertools.pairwise(widths)) and result.fun < 0.1


def test_the_implied_gradient_is_the_gradient():
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = cbo_gradient(sphere, x, sigma=0.02, alpha=5.0, n=400_000)
    torch.testing.assert_close(found, 2 * x, rtol=0.05, atol=0.05)


def test_a_population_that_may_spread_is_warned_of():
    with pytest.warns(UserWarning, match="sigma below"):
        CBO(sigma=3.0).init(problem(), fl.Key())


@pytest.mark.parametrize("make, message", [(lambda: CBO(n=1), "n must"), (lambda: CBO(alpha=0.0), "alpha"),
                                           (lambda: CBO(noise="white"), "noise"), (lambda: CBO(collapse=-1), "collapse"),
                                           (lambda: CBO(collapse=math.nan), "collapse"),
                                           (lambda: ConsensusHopping(sigma=-1.0), "sigma")])
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
