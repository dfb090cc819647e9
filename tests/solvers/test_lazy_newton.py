import math

import pytest
import torch

import fallline as fl
from fallline.solvers import LazyCubicNewton, LazyNewton


def bowl():
    scale = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    return fl.Smooth(lambda x: torch.log(torch.cosh(scale * x)).sum() + 0.1 * (x**2).sum(), torch.full((3,), 0.7, dtype=torch.float64))


def one_step(method, problem):
    return fl.solve(problem, method, fl.Budget(steps=1)).x


def test_the_quadratic_step_is_its_formula():
    problem, M = bowl(), 0.3
    x = problem.x0
    g, H = problem.gradient(x), problem.hessian(x)
    shift = math.sqrt(M * float(g.norm()))
    expected = x - torch.linalg.solve(H + shift * torch.eye(3, dtype=x.dtype), g)
    torch.testing.assert_close(one_step(LazyNewton(M=M, adaptive=False), problem), expected)


def test_the_cubic_step_minimises_its_model():
    problem, M = fl.Smooth(lambda x: (x[0] ** 2 - 1) ** 2 + x[0] * x[1] + x[1] ** 4, torch.tensor([0.1, 0.2], dtype=torch.float64)), 2.0
    x = problem.x0
    g, H = problem.gradient(x), problem.hessian(x)
    s = one_step(LazyCubicNewton(M=M, adaptive=False), problem) - x
    length = float(s.norm())
    torch.testing.assert_close(g + H @ s + M / 2 * length * s, torch.zeros(2, dtype=x.dtype), atol=1e-10, rtol=0)
    assert float(torch.linalg.eigvalsh(H)[0]) < 0 <= float(torch.linalg.eigvalsh(H)[0]) + M / 2 * length + 1e-10


def test_the_cubic_step_leaves_a_saddle_along_the_lowest_eigenvector():
    problem = fl.Smooth(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, torch.zeros(2, dtype=torch.float64))
    s = one_step(LazyCubicNewton(M=4.0, adaptive=False), problem)
    assert float(s[0]) == pytest.approx(0, abs=1e-12) and abs(float(s[1])) == pytest.approx(1.0)  # r = −2 λ_min / M


@pytest.mark.parametrize("make", [LazyNewton, LazyCubicNewton])
def test_hessians_are_renewed_once_a_period(make):
    result = fl.solve(bowl(), make(period=4, adaptive=False, M=1.0), fl.Budget(steps=10))
    assert result.counts["hessians"] == 3 and result.counts["gradients"] == 11


@pytest.mark.parametrize("make", [LazyNewton, LazyCubicNewton])
def test_a_much_too_small_start_of_M_is_mended(make):
    steep = fl.Smooth(lambda x: torch.cosh(3 * x).sum(), torch.full((2,), 2.0, dtype=torch.float64))
    result = fl.solve(steep, make(M=1e-12, period=3), fl.Budget(steps=300), tol=1e-9)
    assert result.success


def test_a_rejected_phase_goes_back_and_doubles_M():
    # The Hessian at the start is almost zero and the undamped step lands far away.
    problem = fl.Smooth(lambda x: (1 + x**2).sqrt().sum(), torch.tensor([3.0], dtype=torch.float64))
    method = LazyNewton(M=1e-12, period=1)
    state = method.init(problem, fl.Key())
    after = method.step(problem, state)
    assert torch.equal(after["x"], problem.x0) and after["M"] == 2e-12


def test_a_non_convex_model_fails_with_the_remedy():
    problem = fl.Smooth(lambda x: -(x**2).sum() + (x**4).sum() / 100, torch.full((2,), 0.1, dtype=torch.float64))
    result = fl.solve(problem, LazyNewton(M=1e-6), fl.Budget(steps=5))
    assert result.status == "failed" and "LazyCubicNewton" in result.message


@pytest.mark.parametrize("make", [LazyNewton, LazyCubicNewton])
def test_a_long_run_goes_on_at_the_solution(make):
    scale = torch.tensor([1.0, 2.0], dtype=torch.float64)
    problem = fl.Smooth(lambda x: (scale * x**2).sum(), torch.ones(2, dtype=torch.float64))
    method = make(period=1)
    state = method.init(problem, fl.Key())
    for _ in range(1200):  # M would be 1e-2 · 2^-1200, below the least positive number
        state = method.step(problem, state)
    assert state["M"] > 0 and float(method.report(problem, state).value) == 0


@pytest.mark.parametrize("make", [LazyNewton, LazyCubicNewton])
@pytest.mark.parametrize("every", [1, 10])
def test_a_nan_gradient_ends_a_run_of_fixed_M_with_a_status(make, every):
    calls = 0

    def spoiled(x):
        nonlocal calls
        calls += 1
        return (x**4).sum() * (math.nan if calls > 4 else 1.0)

    problem = fl.Smooth(spoiled, torch.ones(3, dtype=torch.float64))
    result = fl.solve(problem, make(adaptive=False, period=5), fl.Budget(steps=30), every=every)
    assert result.status == "nonfinite" and torch.isfinite(result.x).all()


def test_within_a_phase_the_lower_point_is_reported():
    def rosenbrock(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    values = []
    problem = fl.Smooth(rosenbrock, torch.full((12,), -1.2, dtype=torch.float64))
    result = fl.solve(problem, LazyCubicNewton(), fl.Budget(steps=100), callback=lambda m: values.append(
        (float(m.report.value), float(rosenbrock(m.report.solution)), float(m.report.gap), problem.gradient(m.report.solution))))
    assert all(value == at and gap == pytest.approx(float(g.norm())) for value, at, gap, g in values)
    starts = [values[0][0]] + [value for value, *_ in values]
    assert all(value <= starts[0] for value in starts) and result.fun <= starts[0]
    assert max(value for value, *_ in values[12:]) <= max(value for value, *_ in values[:12])


@pytest.mark.parametrize("options, message", [({"period": 0}, "period"), ({"period": "n"}, "period"), ({"M": 0.0}, "M must"),
                                              ({"M": math.nan}, "M must")])
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        LazyNewton(**options)
