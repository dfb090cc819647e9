"""Step sizes as parts: over any direction, by their formulas, alike eagerly and compiled, and refused where they mean nothing."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim
from fallline.optim import StepSize
from fallline.optim.step_sizes import (
    AccumulatedGradientNorm,
    ArmijoSearch,
    DampedDistanceOverGradients,
    DistanceOverGradients,
    OverGradientNorm,
    Polyak,
    PolyakSlackL1,
    PolyakSlackL2,
    QuadraticPolyak,
    TargetLevel,
)

CURVATURE = torch.tensor([1.0, 4.0, 0.3, 2.0], dtype=torch.float64)
START = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
TARGETS = 0.3 * torch.randn(20, 4, dtype=torch.float64, generator=fl.Key(1).generator())


def value(x, a):
    return (CURVATURE * (x - a) ** 2).sum() / 2


def slope(x, a):
    return CURVATURE * (x - a)


def problems(scale=1.0):
    return [fl.Smooth(lambda x, a=a: scale * value(torch.cat(list(x)), a), [START[:1].clone(), START[1:].clone()]) for a in TARGETS]


def descended(step_size, base="sgd", scale=1.0, **settings):
    """The points of twenty steps, over two tensors."""
    given = problems(scale)
    params = [nn.Parameter(x.clone()) for x in given[0].x0]
    optimizer = optim.WithStepSize(params, base, step_size, **settings)
    points = []
    for problem in given:
        optimizer.step(problem.bind(params))
        points.append(torch.cat([p.detach() for p in params]))
    return points, optimizer


def adam_directions():
    """g -> m̂ / (√v̂ + ε), one after the other."""
    m = v = torch.zeros(4, dtype=torch.float64)
    t = 0

    def direction(g):
        nonlocal m, v, t
        t += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    return direction


def reference(multiplier, direction=lambda g: g, lr=1.0):
    x, points = START, []
    for a in TARGETS:
        g = slope(x, a)
        u = direction(g)
        x = x - lr * multiplier(float(value(x, a)), g, u, x) * u
        points.append(x)
    return points


def dog():
    radius, total, start = 0.0, 0.0, START

    def multiplier(f, g, u, x):
        nonlocal radius, total
        radius = max(radius, float((x - start).norm()), 1e-6 * (1 + float(start.norm())))
        total += float(g @ g)
        return radius / math.sqrt(total + 1e-8)

    return multiplier


def accumulated():
    total = 0.0

    def multiplier(f, g, u, x):
        nonlocal total
        total += float(g @ g)
        return 1 / math.sqrt(1e-12 + total)

    return multiplier


def polyak(f, g, u, x):
    n = float(g @ u)
    return max(f - 0.0, 0.0) / n if n > 0 else 0.0


def quadratic(f, g, u, x):
    n = float(g @ u)
    return 0.0 if n <= 0 else 1 - math.sqrt(1 - 2 * f / n) if 2 * f <= n else 1.0


def slack_l1():
    slack, lam = 0.0, 0.1

    def multiplier(f, g, u, x):
        nonlocal slack
        n = float(g @ u)
        charge = max(f - slack + lam, 0.0) / (1 + n)
        slack = max(slack - lam + charge, 0.0)
        return min(charge, f / n)

    return multiplier


def slack_l2():
    slack, lam = 0.0, 0.1

    def multiplier(f, g, u, x):
        nonlocal slack
        n, share = float(g @ u), 1 / (1 + lam)
        taken = max(f - share * slack, 0.0) / (share + n)
        slack = share * (slack + taken)
        return taken

    return multiplier


def level():
    best, delta = math.inf, 0.0

    def multiplier(f, g, u, x):
        nonlocal best, delta
        delta = 0.5 * abs(f) if math.isinf(best) else 1.5 * delta if f <= best - delta else max(0.5 * delta, 1e-12)
        best = min(best, f)
        n = float(g @ u)
        return (f - best + delta) / n if n > 0 else 0.0

    return multiplier


RULES = {
    "distance over gradients": (DistanceOverGradients(), dog),
    "normalised": (OverGradientNorm(), lambda: lambda f, g, u, x: 1 / g.norm()),
    "two thirds": (OverGradientNorm(power=2 / 3), lambda: lambda f, g, u, x: g.norm() ** (-2 / 3)),
    "AdaGrad-Norm": (AccumulatedGradientNorm(), accumulated), "Polyak": (Polyak(), lambda: polyak),
    "quadratic": (QuadraticPolyak(), lambda: quadratic), "slack, L1": (PolyakSlackL1(), slack_l1),
    "slack, L2": (PolyakSlackL2(), slack_l2), "level": (TargetLevel(), level),
}


@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize("name", RULES)
def test_a_step_size_is_its_formula_over_any_direction(name, base):
    part, make = RULES[name]
    expected = reference(make(), adam_directions() if base == "adam" else lambda g: g, lr=0.5)
    for found, x in zip(descended(part, base, lr=0.5)[0], expected, strict=True):
        torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("base", ["sgd", "adam", "lion"])
@pytest.mark.parametrize("name", RULES)
def test_both_passes_compile(name, base):
    ends = []
    for compile in (False, True):
        generator = fl.Key(0).generator()
        params = [nn.Parameter(torch.randn(n, dtype=torch.float64, generator=generator)) for n in (70_000, 300, 500)]
        optimizer = optim.WithStepSize(params, base, RULES[name][0], lr=0.1, compile=compile)
        for _ in range(3):
            for p in params:
                p.grad = p.detach() + torch.randn(p.shape, dtype=p.dtype, generator=generator)
            optimizer.step(lambda: torch.tensor(3.0, dtype=torch.float64))
        ends.append(torch.cat([p.detach() for p in params]))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_armijo_takes_the_longest_of_a_falling_sequence_that_decreases_enough():
    x, last, expected = START, 1.0, []
    for a in TARGETS:
        g, step = slope(x, a), 1.1 * last
        while value(x - 2.0 * step * g, a) > value(x, a) - 0.1 * step * 2.0 * (g @ g):
            step *= 0.7
        x, last = x - 2.0 * step * g, step
        expected.append(x)
    found, _ = descended(ArmijoSearch(), lr=2.0)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    plain = descended(ArmijoSearch(), lr=2.0, compile=True)[0]
    torch.testing.assert_close(plain[-1], found[-1], rtol=1e-10, atol=1e-10)


def test_armijo_works_with_a_plain_closure_and_goes_on_after_loading():
    def run(steps, p, optimizer):
        for a in TARGETS[steps]:
            def closure(a=a):
                optimizer.zero_grad()
                loss = value(p, a)
                loss.backward()
                return loss
            optimizer.step(closure)

    whole = nn.Parameter(START.clone())
    run(slice(0, 10), whole, optim.WithStepSize([whole], "lion", ArmijoSearch()))
    half = nn.Parameter(START.clone())
    first = optim.WithStepSize([half], "lion", ArmijoSearch())
    run(slice(0, 5), half, first)
    second = optim.WithStepSize([half], "lion", ArmijoSearch())
    second.load_state_dict(first.state_dict())
    run(slice(5, 10), half, second)
    assert torch.equal(whole, half)


@pytest.mark.parametrize(("base", "why"), [
    ("dog", "it has DistanceOverGradients already"), ("nesterov", "it keeps lr inside its state"),
    ("aegd", "it keeps lr inside its state"),
    ("optimistic-amsgrad", "it keeps lr inside its state, or its parameters ahead"),
    ("u-dog", "it has UniversalDistanceOverGradients already"),
])
def test_where_a_combination_means_nothing_the_error_says_why(base, why):
    with pytest.raises(TypeError, match=f"Polyak cannot multiply the steps of .*: {why}"):
        optim.WithStepSize([nn.Parameter(torch.ones(2))], base, Polyak())
    with pytest.raises(TypeError, match="step_size must be a StepSize such as"):
        optim.WithStepSize([nn.Parameter(torch.ones(2))], "sgd", "polyak")


def test_hyperparameters_go_where_they_belong():
    optimizer = optim.WithStepSize([nn.Parameter(torch.ones(2))], "adam", PolyakSlackL1(), betas=(0.8, 0.99), lam=0.3, f_star=0.1)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["lam"], group["f_star"], group["lr"]) == ((0.8, 0.99), 0.3, 0.1, 1.0)
    shared = optim.WithStepSize([nn.Parameter(torch.ones(2))], "adam", DistanceOverGradients(), eps=1e-5)
    assert shared.param_groups[0]["eps"] == 1e-5 and shared.base.param_groups[0]["eps"] == 1e-5
    with pytest.raises(ValueError, match="lam must be a finite number > 0, got 0"):
        optim.WithStepSize([nn.Parameter(torch.ones(2))], "adam", PolyakSlackL1(), lam=0)


def test_a_loss_below_its_target_is_refused_or_said():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match="f_star=0 is no lower bound of this loss, which is -1"):
        optim.WithStepSize([p], "sgd", Polyak()).step(lambda: torch.tensor(-1.0))
    with pytest.warns(UserWarning, match=r"the loss of this batch, 0.2, is below f_star=0.5: no step is taken"):
        optim.WithStepSize([p], "sgd", Polyak(), f_star=0.5).step(lambda: torch.tensor(0.2))
    assert torch.equal(p, torch.ones(2))
    with pytest.raises(fl.MissingOracle, match="needs the loss"):
        optim.WithStepSize([p], "sgd", Polyak()).step()


def test_maximizing_is_minimizing_the_negative():
    up = descended(Polyak(), "sgd", scale=-1.0, maximize=True)[0]
    torch.testing.assert_close(up[-1], descended(Polyak(), "sgd")[0][-1], rtol=1e-12, atol=1e-12)


def test_pure_steps_are_the_steps():
    given = problems()
    params = [nn.Parameter(x.clone()) for x in given[0].x0]
    optimizer = optim.WithStepSize(params, "adam", Polyak(), lr=0.5)
    x, state = list(given[0].x0), None
    state = optimizer.init(x)
    for problem in given[:5]:
        f, g = problem.value_and_gradient(x)
        x, state = optimizer.update(x, g, state, loss=f)
        optimizer.step(problem.bind(params))
    torch.testing.assert_close(torch.cat(x), torch.cat([p.detach() for p in params]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Polyak(over="tensors"), "over must be 'all' or 'tensor', got 'tensors'"),
    (lambda: ArmijoSearch(over="tensor"), "over must be 'all' for a search"), (lambda: OverGradientNorm(power="a"), "power must be"),
    (lambda: ArmijoSearch(c1=2.0), "c1 must be a number between 0 and 1, got 2.0"), (lambda: ArmijoSearch(trials=0), "trials must be"),
    (lambda: TargetLevel(shrink=1.5), "grow must be at least 1 and shrink between 0 and 1"),
])
def test_step_sizes_check_their_own_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_part_finds_its_hyperparameters_and_rules_that_evaluate_are_refused():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optim.WithStepSize([p], "sgd", DampedDistanceOverGradients(), horizon=10).step()
    with pytest.raises(TypeError, match="Polyak cannot multiply the steps of SMB: it evaluates the loss itself"):
        optim.WithStepSize([p], "smb", Polyak())


def test_a_tangent_average_is_carried_in_two_passes_as_in_one():
    geoopt = pytest.importorskip("geoopt")

    @dataclasses.dataclass(frozen=True)
    class One(StepSize):
        needs = ("direction_dot_gradient",)

        def __call__(self, statistics, s, c):
            return torch.ones_like(statistics["direction_dot_gradient"]), {}

    sphere, ends = geoopt.Sphere(), []
    start = sphere.projx(torch.randn(3, 4, dtype=torch.float64, generator=fl.Key(0).generator()))
    for two in (False, True):
        p = geoopt.ManifoldParameter(start.clone(), manifold=sphere)
        optimizer = optim.WithStepSize([p], "riemannian-adam", One(), lr=0.1) if two else optim.RiemannianAdam([p], lr=0.1)
        for t in range(10):
            p.grad = torch.randn(3, 4, dtype=torch.float64, generator=fl.Key(t).generator())
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match="ArmijoSearch cannot multiply the steps of RiemannianAdam: its state moves with the point"):
        optim.WithStepSize([p], "riemannian-adam", ArmijoSearch())


def test_a_norm_without_gradients_yet_rests_and_groups_share_one():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = optim.AdaGradNorm([{"params": [p]}, {"params": [q], "lr": 0.5}], lr=1.0, b0=0.0)
    p.grad, q.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert torch.equal(p, torch.ones(2))
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    optimizer.step()
    assert p.tolist() == pytest.approx([1 - 3 / 5, 1.0]) and q.tolist() == pytest.approx([1.0, 1 - 0.5 * 4 / 5])
    with pytest.raises(ValueError, match="b0 must be the same in all groups"):
        optim.AdaGradNorm([{"params": [p]}, {"params": [q], "b0": 1.0}])
