"""Minimising through a proxy: the rule against its formulas, its counts, its steps taken back, the estimate of δ."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fallline as fl
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.problem import Problem
from fallline.optim.proxy_prox import ProxyProx, WithProxy, estimate_delta


def matrices(d=6, delta=0.1, seed=0):
    generator = fl.Key(seed).generator()
    curvature = torch.diag(torch.logspace(-2, 0, d, dtype=torch.float64))
    noise = torch.randn(d, d, dtype=torch.float64, generator=generator)
    return curvature, curvature + delta * (noise + noise.T) / torch.linalg.matrix_norm(noise + noise.T, 2)


def quadratic(matrix, x0):
    return fl.Smooth(lambda x: x @ matrix @ x / 2, x0)


def proxied(delta=0.1, d=6):
    f, proxy = matrices(d, delta)
    x0 = torch.ones(d, dtype=torch.float64)
    return f, proxy, WithProxy(quadratic(f, x0), quadratic(proxy, x0))


def run(problem, method, steps):
    state = method.init(problem, fl.Key(0))
    for _ in range(steps):
        state = method.step(problem, state)
    return state


def in_closed_form(matrix, x0):
    eye = torch.eye(len(x0), dtype=x0.dtype)
    return Problem(x0, {"value": lambda x: x @ matrix @ x / 2, "prox": lambda x, step: torch.linalg.solve(eye + step * matrix, x)},
                   kind="smooth")


@pytest.mark.parametrize("d", [1, 6, 15])
def test_the_steps_are_the_formula(d):
    f, proxy, plain = proxied(0.1, d)
    closed = WithProxy(quadratic(f, plain.x0), in_closed_form(proxy, plain.x0))
    method, eta = ProxyProx(delta=0.1, tolerance=1e-6), 5.0
    x, states = plain.x0, [method.init(problem, fl.Key(0)) for problem in (closed, plain)]
    for _ in range(20):
        # (P + I/η) (y − x) = −g, from the gradient of the subproblem at y.
        x = x - torch.linalg.solve(proxy + torch.eye(d, dtype=torch.float64) / eta, f @ x)
        states = [method.step(problem, state) for problem, state in zip((closed, plain), states, strict=True)]
        torch.testing.assert_close(states[0]["x"], x, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(states[1]["x"], x, rtol=1e-5, atol=1e-5)
    assert closed.counts["gradients"] == plain.counts["gradients"] == 21 and "hvps" not in plain.counts
    assert closed.counts["proxy_prox"] == closed.counts["proxy_gradients"] == 20 < plain.counts["proxy_gradients"]


def test_the_subproblem_is_solved_to_the_tolerance():
    f, proxy, problem = proxied()
    for tolerance in (0.5, 1e-3):
        x, y = torch.ones(6, dtype=torch.float64), run(problem, ProxyProx(delta=0.1, tolerance=tolerance), 1)["x"]
        slope = proxy @ y + (f - proxy) @ x + (y - x) / 5
        assert float(slope.norm()) <= tolerance * float((y - x).norm()) / 5


def test_it_needs_fewer_expensive_gradients_than_descent():
    _, _, problem = proxied(0.01)
    result = fl.solve(problem, ProxyProx(delta=0.01), fl.Budget(steps=300), tol=1e-8)
    assert result.success and result.counts["gradients"] < 60
    assert result.gap <= 1e-8 and result.fun == pytest.approx(float(problem.value(result.x)), rel=1e-12)
    assert result.certificate == {"delta": 0.01, "eta": 50.0, "taken_back": 0}


def test_eta_with_noise():
    method = ProxyProx(delta=0.5, sigma=2.0, horizon=100)
    assert method.eta(0.5) == pytest.approx(1 / (2 * math.sqrt(50)))
    assert method.eta(1e-9) == pytest.approx(1 / (2 * math.sqrt(1e-7))) and ProxyProx().eta(0.25) == 2.0
    assert ProxyProx(sigma=1e-6, horizon=1).eta(0.5) == 1.0


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_delta_is_the_largest_eigenvalue_of_the_difference(scale):
    _, _, problem = proxied(scale, d=30)
    assert estimate_delta(problem, problem.proxy, [problem.x0], tol=1e-6) == pytest.approx(scale, rel=1e-4)
    assert problem.counts["hvps"] == problem.counts["proxy_hvps"] <= 30
    # Both ends of the spectrum of the same size.
    saddle = fl.Smooth(lambda x: scale * (x[0] ** 2 - x[1] ** 2) / 2, torch.ones(2, dtype=torch.float64))
    even = WithProxy(saddle, lambda x: 0 * x.sum())
    assert estimate_delta(even, even.proxy, [even.x0]) == pytest.approx(scale)


def test_delta_is_the_largest_over_the_points():
    problem = WithProxy(fl.Smooth(lambda x: (x**4).sum() / 12, torch.ones(2, dtype=torch.float64)), lambda x: 0 * x.sum())
    points = [torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([3.0, 0.0], dtype=torch.float64)]
    assert estimate_delta(problem, problem.proxy, points) == pytest.approx(9.0)
    for bad in ([], points[0]):
        with pytest.raises(ValueError, match="points must be a sequence of at least one"):
            estimate_delta(problem, problem.proxy, bad)


def test_delta_is_estimated_when_not_given():
    _, _, problem = proxied(0.1)
    state = run(problem, ProxyProx(), 1)
    assert state["delta"] == pytest.approx(0.1, rel=0.02)
    same = WithProxy(quadratic(torch.eye(2), torch.ones(2)), quadratic(torch.eye(2), torch.ones(2)))
    with pytest.raises(ValueError, match="delta must be given"):
        run(same, ProxyProx(), 1)


def test_steps_that_are_too_long_are_taken_back():
    # f = 10 x² has no proxy: with δ = 0.1 a step overshoots a hundredfold.
    x0 = torch.ones(3, dtype=torch.float64)
    problem = WithProxy(fl.Smooth(lambda x: 10 * (x**2).sum(), x0), lambda x: 0 * x.sum())
    result = fl.solve(problem, ProxyProx(delta=0.1), fl.Budget(steps=60), tol=1e-6)
    assert result.success and result.certificate["taken_back"] > 3 and result.certificate["delta"] <= 20
    assert result.counts["gradients"] == result.nit + 1


def test_a_subproblem_without_a_minimum_is_taken_back():
    x0 = torch.ones(2, dtype=torch.float64)
    problem = WithProxy(fl.Smooth(lambda x: (x**2).sum() / 2, x0), fl.Smooth(lambda x: -5 * (x**2).sum(), x0))
    result = fl.solve(problem, ProxyProx(delta=0.5), fl.Budget(steps=60), tol=1e-6)
    assert result.success and result.certificate["delta"] > 2


def test_rounding_at_the_solution_takes_nothing_back():
    _, _, problem = proxied(0.01)
    result = fl.solve(problem, ProxyProx(delta=0.01), fl.Budget(steps=200))
    assert result.status == "budget" and result.certificate["taken_back"] == 0 and result.gap < 1e-12


def regression():
    generator = fl.Key(2).generator()
    a = torch.randn(80, 3, dtype=torch.float64, generator=generator)
    return a, a @ torch.ones(3, dtype=torch.float64) + 0.1 * torch.randn(80, dtype=torch.float64, generator=generator)


def squares(w, a, y):
    return ((a @ w - y) ** 2).mean()


def test_random_data_is_drawn_for_f_alone():
    a, y = regression()
    f = fl.FiniteSum(squares, (a, y), torch.zeros(3, dtype=torch.float64), batch_size=8)
    problem = WithProxy(f, fl.FiniteSum(squares, (a[:20], y[:20]), f.x0))
    result = fl.solve(problem, ProxyProx(delta=5.0), fl.Budget(steps=50))
    assert result.counts["samples"] == 50 * 8 and result.counts["gradients"] == 50 and result.gap is None
    assert result.counts["proxy_samples"] == 20 * result.counts["proxy_gradients"]
    assert problem.observe(result.x)["value"] < 0.1


def test_networks_and_their_validation():
    a, y = regression()
    torch.manual_seed(0)
    f = fl.Training(nn.Linear(3, 1).double(), mse_loss, (a, y[:, None]), batch_size=16)
    problem = WithProxy(f, fl.Training(f.model, mse_loss, (a[:20], y[:20, None])))
    result = fl.solve(problem, ProxyProx(delta=2.0), fl.Budget(steps=40))
    assert problem.observe(result.x)["loss"] < 0.3 * problem.observe(f.x0)["loss"]


def test_single_precision_and_nested_variables():
    x0 = {"a": torch.ones(2), "b": [torch.ones(3)]}

    def f(x):
        return (x["a"] ** 2).sum() + (x["b"][0] ** 4).sum()

    problem = WithProxy(fl.Smooth(f, x0), lambda x: f(x) + 0.1 * (x["a"] ** 2).sum())
    result = fl.solve(problem, ProxyProx(), fl.Budget(steps=30))
    assert result.fun < 1e-3 * float(problem.value(x0)) and result.x["b"][0].dtype == torch.float32


def test_a_proxy_of_another_shape_is_refused_by_name():
    f = quadratic(torch.eye(2), torch.ones(2))
    with pytest.raises(ValueError, match="the proxy's x0"):
        WithProxy(f, quadratic(torch.eye(3), torch.ones(3)))
    with pytest.raises(ValueError, match="the proxy's x0"):
        WithProxy(f, fl.Smooth(lambda x: x["w"].sum(), {"w": torch.ones(2)}))
    with pytest.raises(TypeError, match="problem must be a Problem"):
        WithProxy(lambda x: x.sum(), f)
    with pytest.raises(MissingOracle, match="the proxy needs the oracle 'gradient'"):
        WithProxy(f, fl.BlackBox(lambda x: x.sum(), torch.ones(2)))
    with pytest.raises(WrongProblem, match="ProxyProx solves proxied problems"):
        fl.solve(f, ProxyProx(delta=1.0), fl.Budget(steps=1))
    half = quadratic(torch.eye(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"float32 or float64.*bfloat16"):
        fl.solve(WithProxy(half, half), ProxyProx(delta=1.0), fl.Budget(steps=1))
    bounded = fl.Constrained(f, inequality=lambda x: x - 1)
    for f_and_proxy in ((bounded, f), (f, bounded)):
        with pytest.raises(ValueError, match="must be without constraints"):
            WithProxy(*f_and_proxy)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"delta": 0.0}, "delta must"), ({"sigma": -1.0}, "sigma must"), ({"sigma": 1.0}, "horizon must be given"),
    ({"horizon": 0}, "horizon"), ({"delta": "1"}, "delta must be a number"), ({"sigma": True}, "sigma must be a number"),
    ({"tolerance": 0.0}, "tolerance must"), ({"inner_steps": 0}, "inner_steps must")])
def test_bad_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProxyProx(**arguments)
