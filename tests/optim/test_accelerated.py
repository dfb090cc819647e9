"""The two coupled methods against references of three lines each, written from the papers' formulas."""

import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.optim import SGD, AcceleratedSGD, Nesterov, StochasticAGD
from fallline.optim.directions import coupled
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.velocity import HeavyBall

SHAPES = [(), (3,), (4, 5), (2, 3, 4)]


def problem(shape, seed=0):
    """Twenty random quadratics around random centres: the gradient depends on where and when it is taken."""
    generator = fl.Key(seed).fold(str(shape)).generator()
    draw = lambda: torch.randn(20, *shape, dtype=torch.float64, generator=generator)
    curvatures, centres, start = draw().square(), draw(), draw()[0]
    return start, lambda t, y: curvatures[t] * (y - centres[t])


def train(make, steps=20):
    """What every shape's parameters hold after the steps, and the answers."""
    found = []
    for shape in SHAPES:
        start, gradient = problem(shape)
        p = nn.Parameter(start.clone())
        optimizer = make([p])
        for t in range(steps):
            p.grad = gradient(t, p.detach())
            optimizer.step()
        with optimizer.solution():
            answer = p.detach().clone()
        found.append((p.detach(), answer, optimizer))
    return found


def root(eta, mu, gamma):
    """α of α² = η_d [(1 − α) γ + α μ]."""
    b = eta * (gamma - mu)
    return (-b + math.sqrt(b * b + 4 * eta * gamma)) / 2


def stochastic_agd(start, gradient, lr, L, mu, rho, gamma, eta, primal=lambda g, t: g):
    w = v = start
    for t in range(21):
        alpha = root(eta, mu, gamma)
        after = (1 - alpha) * gamma + alpha * mu
        y = w + alpha * gamma / (gamma + alpha * mu) * (v - w)
        if t == 20:
            return y, w
        g = gradient(t, y)
        w = y - lr * primal(g, t) / (rho * L)
        v = ((1 - alpha) * gamma * v + alpha * mu * y - alpha * lr * g) / after
        gamma = after


@pytest.mark.parametrize(("mu", "gamma0", "lr"),
                         [(0.5, None, 1.0), (0.5, None, 0.3), (0.0, None, 1.0), (0.5, 4.0, 1.0), (0.5, 0.01, 1.0)])
@pytest.mark.parametrize("variant", ["conservative", "abstract"])
def test_stochastic_agd_is_the_paper_s_recursion(mu, gamma0, lr, variant):
    L, rho = 8.0, 1.5
    eta = 1 / (rho**2 * L) if variant == "conservative" else 1 / (rho * L)
    runs = train(lambda p: StochasticAGD(p, lr=lr, smoothness=L, mu=mu, growth=rho, gamma0=gamma0, variant=variant))
    for shape, (held, answer, optimizer) in zip(SHAPES, runs, strict=True):
        y, w = stochastic_agd(*problem(shape), lr, L, mu, rho, gamma0 or mu or L, eta)
        torch.testing.assert_close(held, y, rtol=0, atol=1e-10)
        torch.testing.assert_close(answer, w, rtol=0, atol=1e-10)
        assert all(set(state) == {"step", "gap"} for state in optimizer.state.values())


def test_the_defaults_are_conservative_with_constant_coefficients():
    for shape, (held, answer, _) in zip(SHAPES, train(StochasticAGD), strict=True):
        y, w = stochastic_agd(*problem(shape), 1.0, 100.0, 0.25, 1.0, 0.25, 1 / 100)
        torch.testing.assert_close(held, y, rtol=0, atol=1e-10)
        torch.testing.assert_close(answer, w, rtol=0, atol=1e-10)


def test_any_primal_step():
    moments = {"m": 0.0, "v": 0.0}

    def adam(g, t):
        moments["m"], moments["v"] = 0.8 * moments["m"] + 0.2 * g, 0.95 * moments["v"] + 0.05 * g * g
        return moments["m"] / (1 - 0.8 ** (t + 1)) / ((moments["v"] / (1 - 0.95 ** (t + 1))) ** 0.5 + 1e-3)

    runs = train(lambda p: StochasticAGD(p, smoothness=8.0, mu=0.5, growth=2.0, primal=Quotient(), betas=(0.8, 0.95), eps=1e-3))
    for shape, (held, answer, _) in zip(SHAPES, runs, strict=True):
        moments.update(m=0.0, v=0.0)
        y, w = stochastic_agd(*problem(shape), 1.0, 8.0, 0.5, 2.0, 0.5, 1 / 32, adam)
        torch.testing.assert_close(held, y, rtol=0, atol=1e-10)
        torch.testing.assert_close(answer, w, rtol=0, atol=1e-10)


def test_exact_gradients_make_it_nesterov_s_method():
    L, mu = 4.0, 0.25
    momentum = (1 - math.sqrt(mu / L)) / (1 + math.sqrt(mu / L))
    ours = train(lambda p: StochasticAGD(p, smoothness=L, mu=mu))
    theirs = train(lambda p: Nesterov(p, lr=1 / L, momentum=momentum))
    for (_, one, _), (_, two, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def test_it_converges_at_the_rate_promised():
    curvature = torch.logspace(0, -4, 10, dtype=torch.float64)
    p = nn.Parameter(torch.ones(10, dtype=torch.float64))
    optimizer = StochasticAGD([p], smoothness=1.0, mu=1e-4)
    first = float((curvature + 1e-4).sum()) / 2
    for k in range(1, 1001):
        p.grad = curvature * p.detach()
        optimizer.step()
        if k % 50 == 0:
            with optimizer.solution():
                assert float((curvature * p.detach() ** 2).sum()) / 2 <= (1 - 1e-2) ** k * first


@pytest.mark.parametrize(("mu", "gamma0"), [(0.0, 10.0), (0.1, 10.0), (0.1, 0.001), (0.1, 0.1)])
def test_coefficients_do_not_depend_on_which_step_is_asked_first(mu, gamma0):
    group = {"lr": 1.0, "smoothness": 10.0, "mu": mu, "growth": 2.0, "gamma0": gamma0}
    rule = coupled.EstimateSequence()
    coupled._known.cache_clear()
    late = rule.coefficients(group, 500)
    coupled._known.cache_clear()
    in_turn = [rule.coefficients(group, t) for t in range(1, 501)]
    assert in_turn[-1] == late
    gamma = gamma0
    for t, c in enumerate(in_turn, 1):
        alpha, after = root(1 / 40, mu, gamma), 0.0
        after = (1 - alpha) * gamma + alpha * mu
        assert alpha**2 == pytest.approx(after / 40, rel=1e-9)
        assert c["dual_step"] == pytest.approx(alpha / after, rel=1e-9)
        assert rule.mixing(group, t) == pytest.approx(alpha * gamma / (gamma + alpha * mu), rel=1e-9)
        gamma = after
    assert mu == 0 or gamma == pytest.approx(mu, rel=1e-4)


def accelerated_sgd(start, gradient, lr, delta, gamma, alpha, beta, tail_start, steps=20):
    w = v = start
    seen = []
    for t in range(steps):
        u = alpha * w + (1 - alpha) * v
        g = lr * gradient(t, u)
        w, v = u - delta * g, beta * u + (1 - beta) * v - gamma * g
        seen.append(w)
    tail = seen[-1:] if tail_start is None or tail_start >= steps else seen[tail_start:]
    return alpha * w + (1 - alpha) * v, torch.stack(tail).mean(0)


@pytest.mark.parametrize("alpha", [None, 0.7])
@pytest.mark.parametrize(("tail_start", "lr"), [(None, 1.0), (0, 1.0), (12, 1.0), (12, 0.5), (19, 1.0), (30, 1.0)])
def test_accelerated_sgd_is_the_paper_s_recursion(tail_start, lr, alpha):
    runs = train(lambda p: AcceleratedSGD(p, lr=lr, primal_step=0.05, dual_step=0.3, beta=0.1, alpha=alpha, tail_start=tail_start))
    for shape, (held, answer, _) in zip(SHAPES, runs, strict=True):
        u, average = accelerated_sgd(*problem(shape), lr, 0.05, 0.3, alpha or 1 / 1.1, 0.1, tail_start)
        torch.testing.assert_close(held, u, rtol=0, atol=1e-10)
        torch.testing.assert_close(answer, average, rtol=0, atol=1e-10)


def test_equal_steps_are_gradient_descent():
    ours = train(lambda p: AcceleratedSGD(p, primal_step=0.05, dual_step=0.05, beta=0.2))
    theirs = train(lambda p: SGD(p, lr=0.05))
    for (one, _, _), (two, _, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_a_schedule_lowers_both_steps():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for rule in (StochasticAGD, AcceleratedSGD):
        one, two = rule([p]), rule([q], lr=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(one, lambda t: 0.5)
        for _ in range(5):
            p.grad, q.grad = p.detach().clone(), q.detach().clone()
            one.step(), two.step(), schedule.step()
        torch.testing.assert_close(p, q)


def test_the_gap_may_be_kept_in_eight_bits():
    start = torch.linspace(-1, 1, 4096)
    ends = []
    for storage in (None, fl.optim.Blockwise8bit()):
        p = nn.Parameter(start.clone())
        optimizer = StochasticAGD([p], smoothness=2.0, mu=0.02, storage=storage)
        for _ in range(150):
            p.grad = torch.linspace(0.02, 2, 4096) * p.detach()
            optimizer.step()
        ends.append(float(p.detach().norm()))
    assert max(ends) < 0.01 * float(start.norm())


@pytest.mark.parametrize("make", [lambda p, **o: AcceleratedSGD(p, tail_start=7, **o),
                                  lambda p, **o: StochasticAGD(p, primal=Quotient(), gamma0=3.0, **o)], ids=["tail", "primal"])
def test_compiled_and_resumed_runs_are_the_same(make):
    runs = zip(train(make), train(lambda p: make(p, compile=True)), train(lambda p: Resumed(make, p)), strict=True)
    for (one, answer, _), (two, compiled, _), (three, later, _) in runs:
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(answer, compiled, rtol=1e-12, atol=1e-13)
        assert torch.equal(one, three) and torch.equal(answer, later)


class Resumed:
    """An optimizer that is made anew from its state after every step."""

    def __init__(self, make, params):
        self.make, self.params, self.optimizer = make, params, make(params)

    def step(self):
        self.optimizer.step()
        saved = self.optimizer.state_dict()
        self.optimizer = self.make(self.params)
        self.optimizer.load_state_dict(saved)
        coupled._known.cache_clear()

    def solution(self):
        return self.optimizer.solution()


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"mu": 200.0}, ValueError, "mu must be at most smoothness"),
    ({"mu": -1.0}, ValueError, "mu must be"),
    ({"growth": 0.5}, ValueError, "growth must be a finite number >= 1"),
    ({"smoothness": 0.0}, ValueError, "smoothness must be"),
    ({"gamma0": 0.0}, ValueError, "gamma0 must be"),
    ({"variant": "fast"}, ValueError, "variant must be one of 'conservative', 'abstract'"),
    ({"primal": "adam"}, TypeError, "primal must be 'sgd' or an elementwise Direction"),
    ({"primal": HeavyBall()}, ValueError, "needs the hyperparameter 'momentum'"),
])
def test_stochastic_agd_refuses_by_name(options, error, message):
    with pytest.raises(error, match=message):
        StochasticAGD([nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"dual_step": 0.001}, "dual_step must be at least primal_step"),
    ({"primal_step": 0.0}, "primal_step must be"),
    ({"beta": 1.0}, "beta must be"),
    ({"alpha": 0.0}, r"alpha must be in \(0, 1\]"),
    ({"alpha": 1.5}, r"alpha must be in \(0, 1\]"),
    ({"tail_start": -1}, "tail_start must be a whole number"),
    ({"tail_start": 2.5}, "tail_start must be a whole number"),
])
def test_accelerated_sgd_refuses_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        AcceleratedSGD([nn.Parameter(torch.ones(2))], **options)


def test_a_refused_group_is_not_kept():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = StochasticAGD([p])
    with pytest.raises(ValueError, match="mu"):
        optimizer.add_param_group({"params": [q], "mu": 1e3})
    assert len(optimizer.param_groups) == 1


def test_a_group_s_own_curvature_and_mixing_bring_what_follows_from_them():
    """γ₀ follows from the group's μ, α from its β, and the tail average from its own start."""
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    grouped = lambda make, **own: make([{"params": [nn.Parameter(x.clone())], **own}])
    alone = lambda make, **own: make([nn.Parameter(x.clone())], **own)
    for make, own in ((StochasticAGD, {"mu": 3.0}), (StochasticAGD, {"mu": 0.0, "smoothness": 50.0}), (AcceleratedSGD, {"beta": 0.3}),
                      (AcceleratedSGD, {"tail_start": 2})):
        ends = []
        for optimizer in (grouped(make, **own), alone(make, **own)):
            p = optimizer.param_groups[0]["params"][0]
            for _ in range(5):
                p.grad = p.detach() * torch.tensor([3.0, 10.0], dtype=torch.float64)
                optimizer.step()
            with optimizer.solution():
                ends.append(p.detach().clone())
        assert torch.equal(*ends)
