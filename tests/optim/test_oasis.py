"""OASIS against a float64 reference written from its formulas, what it counts, and what it refuses."""

import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim

SHAPES = [(1,), (3, 1)]
MATRIX = torch.tensor([[2.0, 0.3, 0.0, 0.1], [0.3, -1.0, 0.2, 0.0], [0.0, 0.2, 0.5, -0.1], [0.1, 0.0, -0.1, 30.0]], dtype=torch.float64)
START = torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64)
TARGETS = torch.randn(20, 4, dtype=torch.float64, generator=fl.Key(5).generator())


def value(x, a):
    return (x - a) @ MATRIX @ (x - a) / 2 + ((x - a) ** 4).sum() / 4


def slope(x, a):
    return MATRIX @ (x - a) + (x - a) ** 3


def hessian(x, a):
    return MATRIX + torch.diag(3 * (x - a) ** 2)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def probes(seed, t, count):
    generator = fl.Key(seed).fold(t, "hutchinson").generator()
    return [torch.cat([torch.randn(shape, generator=generator, dtype=torch.float64).sign().flatten() for shape in SHAPES])
            for _ in range(count)]


def oasis(targets, lr0=1e-3, beta2=0.99, alpha=1e-5, warm=10, mode="adaptive", beta1=0.9, lr=1.0, decay=0.0, seed=0):
    """The points and step sizes; every target is a batch."""
    x, m, theta, eta, before, curvature = START, torch.zeros(4, dtype=torch.float64), math.inf, lr0, None, None
    points, sizes = [], []
    for t, a in enumerate(targets, 1):
        gradient = lambda y, a=a: slope(y, a) + decay * y
        drawn = torch.stack([z * (hessian(x, a) @ z) for z in probes(seed, t, warm if t == 1 else 1)]).mean(0)
        curvature = drawn if t == 1 else beta2 * curvature + (1 - beta2) * drawn
        scale = torch.clamp(curvature.abs(), min=alpha)
        m = beta1 * m + (1 - beta1) * gradient(x)
        if mode == "adaptive" and t > 1:
            move, change = x - before, gradient(x) - gradient(before)
            smooth = torch.sqrt((move**2 * scale).sum()) / (2 * torch.sqrt((change**2 / scale).sum()))
            new = min(math.sqrt(1 + theta) * eta, float(smooth))
            theta, eta = new / eta, new
        before, x = x, x - lr * eta * (m if mode == "momentum" else gradient(x)) / scale
        points.append(x)
        sizes.append(eta)
    return points, sizes


def problems(targets, sign=1.0):
    parts = list(START.clone().split([1, 3]))
    start = [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]
    return [fl.Smooth(lambda x, a=a: sign * value(torch.cat([y.flatten() for y in x]), a), start) for a in targets]


def descended(targets, sign=1.0, **settings):
    given = problems(targets, sign)
    params = [nn.Parameter(p.clone()) for p in given[0].x0]
    optimizer = optim.OASIS(params, **settings)
    points = []
    for problem in given:
        optimizer.step(problem.bind(params))
        points.append(flat(params))
    return points, optimizer, given


CASES = {
    "defaults": ({}, {}),
    "large steps": ({"lr0": 0.5, "beta2": 0.9, "alpha": 0.5, "warm_samples": 3, "seed": 7},
                    {"lr0": 0.5, "beta2": 0.9, "alpha": 0.5, "warm": 3, "seed": 7}),
    "scaled": ({"lr": 0.5, "lr0": 0.1}, {"lr": 0.5, "lr0": 0.1}),
    "decay": ({"weight_decay": 0.3, "lr0": 0.1}, {"decay": 0.3, "lr0": 0.1}),
    "fixed": ({"mode": "fixed", "lr0": 0.02}, {"mode": "fixed", "lr0": 0.02}),
    "fixed, scaled": ({"mode": "fixed", "lr0": 0.02, "lr": 0.5}, {"mode": "fixed", "lr0": 0.01}),
    "momentum": ({"mode": "momentum", "lr0": 0.02}, {"mode": "momentum", "lr0": 0.02}),
    "momentum of 0.5": ({"mode": "momentum", "lr0": 0.02, "beta1": 0.5, "beta2": 0.95},
                        {"mode": "momentum", "lr0": 0.02, "beta1": 0.5, "beta2": 0.95}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_its_formula(name):
    settings, terms = CASES[name]
    for found, expected in zip(descended(TARGETS, **settings)[0], oasis(TARGETS, **terms)[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"lr0": 0.1, "weight_decay": 0.2}])
def test_the_last_gradient_serves_where_every_step_has_the_same_loss(settings):
    targets = TARGETS[:1].expand(20, 4)
    terms = {"decay" if name == "weight_decay" else name: x for name, x in settings.items()}
    for deterministic in (True, False):
        found = descended(targets, deterministic=deterministic, **settings)[0]
        torch.testing.assert_close(found[-1], oasis(targets, **terms)[0][-1], rtol=1e-10, atol=1e-10)


def test_the_diagonal_starts_as_a_mean_of_probes():
    _, optimizer, _ = descended(TARGETS[:1], warm_samples=4, seed=3)
    expected = torch.stack([z * (hessian(START, TARGETS[0]) @ z) for z in probes(3, 1, 4)]).mean(0)
    found = flat([state["curvature"] for state in optimizer.state.values()])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_second_step_size_is_not_bounded_by_the_first():
    sizes = oasis(TARGETS, lr0=1e-6)[1]
    assert sizes[1] > 1e3 * sizes[0]
    _, optimizer, _ = descended(TARGETS[:2], lr0=1e-6)
    state = next(iter(optimizer.state.values()))
    assert float(state["rate"]) == pytest.approx(sizes[1], rel=1e-10)
    assert float(state["growth"]) == pytest.approx(sizes[1] / 1e-6, rel=1e-10)


@pytest.mark.parametrize(("settings", "gradients"), [
    ({}, 2 * 6 - 1), ({"deterministic": True}, 6), ({"mode": "fixed"}, 6), ({"mode": "momentum"}, 6)])
def test_a_step_costs_two_gradients_of_its_batch_and_one_product(settings, gradients):
    given = descended(TARGETS[:6], warm_samples=5, **settings)[2]
    assert sum(problem.counts["gradients"] for problem in given) == gradients
    assert [problem.counts["hvps"] for problem in given] == [5, 1, 1, 1, 1, 1]
    if gradients == 11:
        assert [problem.counts["gradients"] for problem in given] == [1, 2, 2, 2, 2, 2]


def test_where_the_gradient_does_not_change_the_step_size_stays_and_then_only_its_growth_is_bounded():
    p = nn.Parameter(START.clone())
    problem = fl.Smooth(lambda x: (torch.arange(4.0, dtype=torch.float64) * x).sum(), START)
    optimizer = optim.OASIS([p], lr0=0.01, alpha=0.1)
    for _ in range(4):
        optimizer.step(problem.bind(p))
    sizes = [0.01, 0.01, 0.01 * math.sqrt(2), 0.01 * math.sqrt(2) * math.sqrt(1 + math.sqrt(2))]
    torch.testing.assert_close(p.detach(), START - sum(sizes) * torch.arange(4.0, dtype=torch.float64) / 0.1, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"deterministic": True}, {"mode": "fixed"}, {"mode": "momentum"}])
def test_maximize_is_minimize_of_the_negative(settings):
    up, down = descended(TARGETS, sign=-1.0, maximize=True, **settings)[0], descended(TARGETS, **settings)[0]
    torch.testing.assert_close(up[-1], down[-1], rtol=1e-12, atol=1e-12)


def test_a_step_needs_curvature():
    p = nn.Parameter(START.clone())
    optimizer = optim.OASIS([p])
    p.grad = torch.ones_like(p)
    with pytest.raises(fl.MissingOracle, match=r"OASIS needs the curvature estimate 'hutchinson' .*step\(objective\(batch\)\)"):
        optimizer.step()
    with pytest.raises(fl.MissingOracle, match="curvature estimate 'hutchinson'"):
        optimizer.step(lambda: torch.zeros(()))
    assert torch.equal(p.detach(), START)


@pytest.mark.parametrize(("settings", "message"), [
    ({"mode": "adam"}, "mode must be one of 'adaptive', 'fixed', 'momentum', got 'adam'"),
    ({"alpha": 0.0}, "alpha must be a finite number > 0, got 0.0; it keeps D̂ from 0"),
    ({"lr0": 0.0}, "lr0 must be a finite number > 0"),
    ({"warm_samples": 0}, "warm_samples must be a whole number >= 1, got 0"), ({"beta2": 1.0}, "beta2 must be"),
    ({"beta1": -0.1}, "beta1 must be"),
])
def test_it_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.OASIS([nn.Parameter(START.clone())], **settings)


def test_a_parameter_that_comes_late_takes_no_part_in_its_first_comparison():
    """Its first gradient is not a change, and it does not set the step size back to the first."""
    early, late = nn.Parameter(START[:1].clone()), nn.Parameter(START[1:].clone())
    whole = lambda x: value(torch.cat(list(x)), TARGETS[0])
    problem = fl.Smooth(whole, [early.detach(), late.detach()])
    first = fl.Smooth(lambda x: value(torch.cat([x, START[1:]]), TARGETS[0]), early.detach())
    optimizer = optim.OASIS([{"params": [late]}, {"params": [early]}], lr0=1e-3)
    for _ in range(2):
        optimizer.step(first.bind(early))
    at, before = early.detach().clone(), optimizer.state[early]["previous_point"].clone()
    rate, growth = float(optimizer.state[early]["rate"]), float(optimizer.state[early]["growth"])
    optimizer.step(problem.bind([early, late]))
    scale = optimizer.state[early]["curvature"].abs().clamp(min=1e-5)
    gradient = lambda x: slope(torch.cat([x, START[1:]]), TARGETS[0])[:1]
    smooth = float(((at - before) ** 2 * scale).sum().sqrt() / (2 * ((gradient(at) - gradient(before)) ** 2 / scale).sum().sqrt()))
    expected = min(math.sqrt(1 + growth) * rate, smooth)
    assert float(optimizer.state[early]["rate"]) == pytest.approx(expected, rel=1e-10)
    assert float(optimizer.state[late]["rate"]) == float(optimizer.state[early]["rate"])


def test_a_parameter_that_rests_is_not_moved_for_the_comparison():
    moving, resting = nn.Parameter(START[:2].clone()), nn.Parameter(START[2:].clone())
    seen = []

    def whole(x):
        seen.append(x[1].detach().clone())
        return value(torch.cat(list(x)), TARGETS[0])

    problem = fl.Smooth(whole, [moving.detach(), resting.detach()])
    optimizer = optim.OASIS([moving, resting])
    for _ in range(2):
        optimizer.step(problem.bind([moving, resting]))
    bound, here = problem.bind([moving, resting]), resting.detach().clone()

    class Frozen:
        variables = bound.variables
        hvp = bound.hvp

        def __call__(self):
            loss = bound()
            resting.grad = None
            return loss

    seen.clear()
    optimizer.step(Frozen())
    assert all(torch.equal(x, here) for x in seen) and torch.equal(resting, here)


def test_a_group_may_have_a_rate_of_its_own_in_every_mode():
    for mode in ("fixed", "momentum"):
        p = nn.Parameter(START.clone())
        optimizer = optim.OASIS([{"params": [p], "lr0": 0.02}], lr0=0.5, mode=mode)
        problem = fl.Smooth(lambda x: value(x, TARGETS[0]), START)
        optimizer.step(problem.bind(p))
        scale = optimizer.state[p]["curvature"].abs().clamp(min=1e-5)
        step = slope(START, TARGETS[0]) * (0.1 if mode == "momentum" else 1.0)
        torch.testing.assert_close(p.detach(), START - 0.02 * step / scale, rtol=1e-12, atol=1e-12)


def test_adaptive_rates_are_one_number():
    a, b = nn.Parameter(START[:2].clone()), nn.Parameter(START[2:].clone())
    with pytest.raises(ValueError, match="lr0 must be the same in all groups with mode='adaptive'"):
        optim.OASIS([{"params": [a]}, {"params": [b], "lr0": 10.0}])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_late_parameter_s_diagonal_starts_from_as_many_probes(order):
    params = [nn.Parameter(START[:2].clone()), nn.Parameter(START[2:].clone())]
    early = params[0]
    problem = fl.Smooth(lambda x: value(torch.cat(list(x)), TARGETS[0]), [p.detach() for p in params])
    alone = fl.Smooth(lambda x: value(torch.cat([x, START[2:]]), TARGETS[0]), early.detach())
    optimizer = optim.OASIS([{"params": [params[i]]} for i in order], warm_samples=7)
    optimizer.step(alone.bind(early))
    optimizer.step(problem.bind(params))
    assert problem.counts["hvps"] == 7 + 1
