import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.solvers.generalized_smooth import BetaGD, NormalizedSPIDER, estimate_alpha


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options, beta", [({}, 2 / 3), ({"beta": 0.0}, 0.0), ({"beta": 1.0}, 1.0), ({"beta": 0.4}, 0.4)])
def test_beta_gd_is_its_formula_over_all_parameters(options, beta):
    shapes, lr = [(3,), (2, 4), ()], 0.05
    params = [nn.Parameter(normal(*shape, seed=i) + 1) for i, shape in enumerate(shapes)]
    points = [p.detach().clone() for p in params]
    optimizer = BetaGD(params, lr=lr, **options)
    for _ in range(20):
        optimizer.zero_grad()
        sum((p**4).sum() for p in params).backward()
        optimizer.step()
        gradients = [4 * x**3 for x in points]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        points = [x - lr * g / norm**beta for x, g in zip(points, gradients, strict=True)]
    for p, x in zip(params, points, strict=True):
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-12)


def test_beta_gd_rests_where_the_gradient_is_zero():
    p = nn.Parameter(torch.zeros(3))
    optimizer = BetaGD([p], lr=1.0, beta=1.0)
    p.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(p.detach(), torch.zeros(3))


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan, True])
def test_beta_is_refused_by_name(beta):
    with pytest.raises(ValueError, match="beta must be a number in"):
        BetaGD([nn.Parameter(torch.ones(1))], beta=beta)


def finite_sum():
    rows, b = normal(50, 4), normal(50, seed=1).abs()
    x0 = {"u": torch.ones(2, dtype=torch.float64), "v": torch.full((2,), 0.5, dtype=torch.float64)}

    def value(x, a, y):
        return (((a @ torch.cat([x["u"], x["v"]])) ** 2 - y) ** 2).mean() / 4

    return fl.FiniteSum(value, (rows, b), x0), rows, b


@pytest.mark.parametrize("b_big", [None, 20])
def test_spider_is_its_formula_with_one_sample_at_two_points(b_big):
    problem, rows, b = finite_sum()
    seen, draw = [], problem.draw

    def recorded(key, size=None, **options):
        seen.append(torch.randint(50, (size,), generator=key.generator()))
        return draw(key, size=size, **options)

    problem.draw = recorded
    method = NormalizedSPIDER(lr=0.02, q=4, b_small=3, b_big=b_big)
    state = method.init(problem, fl.Key(1))
    x = torch.tensor([1.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    before, v = x, None

    def gradient(at, chosen):
        a, y = rows[chosen], b[chosen]
        inner = a @ at
        return ((inner**2 - y) * inner) @ a / len(a)

    for t in range(20):
        state = method.step(problem, state)
        if t % 4 == 0:
            v = gradient(x, seen[-1] if b_big else torch.arange(50))
        else:
            v = v + gradient(x, seen[-1]) - gradient(before, seen[-1])
        before, x = x, x - 0.02 * v / v.norm()
        torch.testing.assert_close(torch.cat([state["x"]["u"], state["x"]["v"]]), x, rtol=1e-10, atol=1e-12)
        assert float(method.report(problem, state).gap) == pytest.approx(float(v.norm()), rel=1e-10)
    assert len(seen) == (20 if b_big else 15)  # no sample is drawn twice, and steps of large samples draw none on all data


def test_spider_counts_its_samples():
    problem, *_ = finite_sum()
    result = fl.solve(problem, NormalizedSPIDER(q=5, b_small=3, b_big=20), fl.Budget(steps=10))
    assert result.counts["gradients"] == 2 * 9 and result.counts["samples"] == 2 * (20 + 4 * 2 * 3)


def test_spider_rests_at_a_stationary_point():
    problem = fl.Smooth(lambda x: (x**2).sum(), torch.zeros(2, dtype=torch.float64))
    result = fl.solve(problem, NormalizedSPIDER(), fl.Budget(steps=3), tol=0.0)
    assert result.success and torch.equal(result.x, problem.x0)


@pytest.mark.parametrize("options, message", [({"lr": 0.0}, "lr must"), ({"q": 0}, "q must"), ({"b_small": 1.5}, "b_small must"),
                                              ({"b_big": 0}, "b_big must be a whole number >= 1, or None")])
def test_spider_refuses_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        NormalizedSPIDER(**options)


def along_a_line(gradient, low, high, count=60):
    points = [torch.tensor([r], dtype=torch.float64) for r in torch.logspace(low, high, count).tolist()]
    return points, [gradient(p) for p in points]


def test_the_exponent_of_known_functions():
    quartic = estimate_alpha(*along_a_line(lambda x: x**3, -2, 2))
    assert quartic.alpha == pytest.approx(2 / 3, abs=0.02) and quartic.L0 < 1e-3
    shifted = estimate_alpha(*along_a_line(lambda x: x**3 + 5 * x, -2, 3, 200))  # constant where the gradient is small
    assert shifted.alpha == pytest.approx(2 / 3, abs=0.05) and 3 < shifted.L0 < 6
    quadratic = estimate_alpha(*along_a_line(lambda x: 3 * x, -2, 2))
    assert (quadratic.alpha, quadratic.L1) == (0, 0) and math.isclose(quadratic.L0, 3)
    exponential = estimate_alpha(*along_a_line(torch.exp, -1, 1, 300))
    assert exponential.alpha == pytest.approx(1, abs=0.02)


def test_the_exponent_of_a_trajectory_of_trees_and_what_it_says():
    problem = fl.Smooth(lambda x: (x["a"] ** 4).sum() + (x["b"] ** 4).sum(), {"a": 10 + normal(3), "b": 10 + normal(2, seed=1)})
    points, gradients = [], []

    def collect(moment):
        points.append(moment.report.resolve())
        gradients.append(problem.gradient(points[-1]))

    fl.solve(problem, fl.Train(BetaGD, lr=0.02), fl.Budget(steps=100), callback=collect)
    found = estimate_alpha(points, gradients)
    assert found.alpha == pytest.approx(2 / 3, abs=0.05)
    assert "‖∇f‖^0.6" in repr(found) and "100 pairs" in repr(found) and len(found.plot().data) == 2
    assert "does not grow" in repr(estimate_alpha(points, points))


def test_the_exponent_refuses_by_name():
    points = [torch.tensor([float(i)]) for i in range(6)]
    for arguments, message in [((points, points[:5]), "points and gradients must be as many"), ((points[:4], points[:4]), "5 or more"),
                               ((points, [*points[:5], torch.tensor([math.nan])]), "finite"),
                               ((points[:1] * 6, points), "at least 4 steps")]:
        with pytest.raises(ValueError, match=message):
            estimate_alpha(*arguments)
