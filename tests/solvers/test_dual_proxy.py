"""Dual bounds: completions against solvers, validity whatever a network says, and the networks."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import fallline as fl
from fallline.core.sets import SecondOrderCone
from fallline.solvers import (
    BoxConic,
    ConicMinimizer,
    DualProxy,
    MultiKnapsack,
    ProductionPlanning,
    box_bound,
    dual_lagrangian_learning,
    envelope_bound,
)

D = torch.float64
FAST = fl.Train(torch.optim.Adam, lr=1e-2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_the_completion_is_the_best_one_and_tight_at_the_optimal_multipliers():
    c, A, low, high = draw(6), draw(3, 6, seed=1), -draw(6, seed=2).abs(), draw(6, seed=3).abs()
    b = A @ ((low + high) / 2) - 0.3
    box = list(zip(low.tolist(), high.tolist(), strict=True))
    found = linprog(c.numpy(), A_ub=-A.numpy(), b_ub=-b.numpy(), bounds=box, method="highs")
    y = torch.as_tensor(-found.ineqlin.marginals)
    assert float(box_bound(y, c, A, b, low, high)) == pytest.approx(found.fun)
    for seed in range(20):
        y = draw(3, seed=seed).abs()
        bound = float(box_bound(y, c, A, b, low, high))
        assert bound <= found.fun + 1e-12
        z_low = (c - A.T @ y).clamp(min=0) + 0.1  # any other z_l − z_u = r is worse
        z_high = z_low - (c - A.T @ y)
        assert bound >= float(b @ y + low @ z_low - high @ z_high)
        corners = torch.stack(torch.meshgrid(*torch.stack([low, high], 1), indexing="ij"), -1).reshape(-1, 6)
        assert bound == pytest.approx(float(b @ y + (corners @ (c - A.T @ y)).min()))  # min over the box


def test_bounds_are_batched_and_differentiable():
    c, A, b, y = draw(4, 6), draw(4, 3, 6, seed=1), draw(4, 3, seed=2), draw(4, 3, seed=3)
    low, high = -torch.ones(6, dtype=D), torch.ones(6, dtype=D)
    bounds = box_bound(y, c, A, b, low, high)
    assert bounds.shape == (4,)
    for i in range(4):
        torch.testing.assert_close(bounds[i], box_bound(y[i], c[i], A[i], b[i], low, high))
    assert torch.autograd.gradcheck(lambda y: box_bound(y, c, A, b, low, high), y.requires_grad_())


@pytest.mark.parametrize("items", [7, 50])
def test_knapsack_bounds_hold_for_any_numbers_and_optima_are_those_of_the_program(items):
    family = MultiKnapsack(items, 3)
    instances = family.sample(5, 0)
    p, W, b = family.split(instances)
    assert W.shape == (5, 3, items) and float(W.min()) >= 0 and float(W.max()) <= 1
    assert bool((b > 0.25 * W.sum(-1)).all()) and bool((b < 0.75 * W.sum(-1)).all())
    optima = family.optimum(instances)
    for seed, scale in ((1, 0.1), (2, 1.0), (3, 30.0)):
        y = family.to_cone(draw(5, 3, seed=seed) * scale)
        bounds = family.bound(y, instances)
        by_hand = (b * y).sum(1) + (p - (W.mT @ y.unsqueeze(-1)).squeeze(-1)).clamp(min=0).sum(1)
        torch.testing.assert_close(bounds, by_hand)
        assert bool((bounds >= optima - 1e-9).all()) and bool((family.gap(bounds, optima) >= 0).all())
    for i in range(5):
        found = linprog(-p[i].numpy(), A_ub=W[i].numpy(), b_ub=b[i].numpy(), bounds=(0, 1), method="highs-ds")
        assert -found.fun == pytest.approx(float(optima[i]))
        y = torch.as_tensor(-found.ineqlin.marginals)
        assert float(family.bound(y, instances[i])) == pytest.approx(-found.fun)


def test_production_planning_is_exact_at_its_optimum_and_below_it_elsewhere():
    family = ProductionPlanning(6)
    instances = family.sample(4, 0)
    d, f, _, _ = family.split(instances)
    optima = family.optimum(instances)
    grid = -torch.logspace(-4, 3, 4_001, dtype=D)
    values = family.bound(grid.view(-1, 1, 1), instances)
    torch.testing.assert_close(values.amax(0), optima, rtol=1e-5, atol=0)
    assert bool((values <= optima + 1e-12).all())
    loose = instances.clone()
    loose[:, -1] *= 100  # the free optimum, 2 Σ √(d f)
    torch.testing.assert_close(family.optimum(loose), 2 * (d * f).sqrt().sum(1))
    point = family.to_cone(draw(4, 1, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: family.bound(y, instances), point)
    nothing = instances.clone()
    nothing[:, 6] = 0.0  # no set-up cost
    assert torch.isfinite(torch.autograd.grad(family.bound(point, nothing).sum(), point)[0]).all()
    with pytest.raises(ValueError, match="must be positive"):
        family.optimum(nothing)


def test_conic_solvers_agree():
    cvxpy = pytest.importorskip("cvxpy")
    family = ProductionPlanning(5)
    instances = family.sample(3, 0)
    d, f, r, b = family.split(instances)
    for i in range(3):
        x = cvxpy.Variable(5)
        program = cvxpy.Problem(cvxpy.Minimize(d[i].numpy() @ x + f[i].numpy() @ cvxpy.inv_pos(x)), [r[i].numpy() @ x <= float(b[i])])
        assert program.solve(solver="CLARABEL") == pytest.approx(float(family.optimum(instances)[i]), rel=1e-6)
        minimize = ConicMinimizer(5, lambda x, i=i: (d[i].numpy() @ x + f[i].numpy() @ cvxpy.inv_pos(x), []))
        y = torch.tensor([[-0.3], [-2.0]], dtype=D, requires_grad=True)
        found = envelope_bound(y, r[i].unsqueeze(0), b[i:i + 1], minimize)
        expected = family.bound(y, instances[i])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        weights = torch.tensor([1.0, -3.0], dtype=D)
        one, two = (torch.autograd.grad(weights @ value, y)[0] for value in (found, expected))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_completions_of_second_order_cones():
    cvxpy = pytest.importorskip("cvxpy")
    c, A, b = draw(5), draw(4, 5, seed=1), draw(4, seed=2)
    b[0] -= 6.0  # a feasible box

    class Ball(BoxConic):
        inputs, duals = 5, 4

        def data(self, instances):
            return instances, A, b

        def sample(self, count, key):
            return c.expand(count, 5)

        def optimum(self, instances):
            x = cvxpy.Variable(5)
            s = A.numpy() @ x - b.numpy()
            program = cvxpy.Problem(cvxpy.Minimize(instances[0].numpy() @ x), [cvxpy.SOC(s[0], s[1:]), x >= -1, x <= 1])
            return torch.tensor([program.solve(solver="CLARABEL")], dtype=D)

    family = Ball(-torch.ones(5), torch.ones(5), SecondOrderCone())
    instances = family.sample(1, 0)
    optimum = family.optimum(instances)
    raw = torch.zeros(1, 4, dtype=D, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.02)
    best = -math.inf
    for _ in range(1_500):
        bound = family.bound(family.to_cone(raw), instances)
        assert float(bound.detach()) <= float(optimum) + 1e-6
        best = max(best, float(bound.detach()))
        optimizer.zero_grad()
        (-bound.sum()).backward()
        optimizer.step()
    assert best == pytest.approx(float(optimum), abs=2e-2)
    minimize = ConicMinimizer(5, lambda x: (c.numpy() @ x, [x >= -1, x <= 1]))
    y = SecondOrderCone().radial(draw(2, 4, seed=5))
    torch.testing.assert_close(envelope_bound(y, A, b, minimize), family.bound(y, instances), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="unbounded, so that L"):
        ConicMinimizer(5, lambda x: (c.numpy() @ x, [x >= 0]))(torch.ones(5, dtype=D) * 10)
    assert "CLARABEL" in repr(minimize)


def test_a_network_learns_bounds_that_are_always_valid():
    family = MultiKnapsack(10, 2)
    train, test = family.sample(300, 0), family.sample(50, 1)
    optima = family.optimum(test)
    untrained = DualProxy(family, (16,)).gaps(test, optima)
    learner = dual_lagrangian_learning(family, (16,), method=FAST, batch_size=50)
    proxy = learner.fit(train, test, budget=fl.Budget(steps=300), observe_every=100)
    found = proxy.gaps(test)
    assert found.mean < 0.75 * untrained.mean
    assert 0 <= found.least <= found.mean <= found.worst and untrained.least >= 0
    assert proxy.result.trace[-1]["observed_loss"] == pytest.approx(float(proxy.bound(test).mean()))
    assert proxy(test).dtype == D and bool((proxy(test) >= 0).all()) and "MultiKnapsack(items=10" in repr(proxy)
    again = learner.fit(train, test, budget=fl.Budget(steps=300))
    assert torch.equal(again.bound(test), proxy.bound(test))


def test_initial_weights_come_from_the_key_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two, other = (DualProxy(ProductionPlanning(3), (4,), key=key).network[0].weight for key in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other) and torch.equal(torch.get_rng_state(), before)


def test_bounds_from_below_are_raised():
    family = ProductionPlanning(4)
    train, test = family.sample(200, 0), family.sample(30, 1)
    proxy = dual_lagrangian_learning(family, (16,), method=FAST).fit(train, budget=fl.Budget(steps=300))
    found = proxy.gaps(test)
    assert found.least >= 0 and found.mean < 0.25 * DualProxy(family, (16,)).gaps(test).mean


def test_bad_input_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="high must be finite, got inf in it"):
        class Free(MultiKnapsack):
            def __init__(self):
                BoxConic.__init__(self, torch.zeros(3), torch.tensor([1.0, math.inf, 1.0]))
        Free()
    with pytest.raises(ValueError, match="low must be <= high"):
        BoxConic.__init__(MultiKnapsack(1, 1), torch.ones(2), torch.zeros(2))
    with pytest.raises(ValueError, match="items must be a whole number"):
        MultiKnapsack(0, 2)
    with pytest.raises(ValueError, match="must be rows of 7 numbers, got shape"):
        MultiKnapsack(3, 1).bound(torch.zeros(1, 1), torch.zeros(1, 5))
    with pytest.raises(TypeError, match="family must be a ConicFamily"):
        DualProxy(3)
    broken = MultiKnapsack(3, 1).sample(1, 0)
    broken[0, -1] = -1.0
    with pytest.raises(ValueError, match="an instance has no optimum"):
        MultiKnapsack(3, 1).optimum(broken)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r"pip install 'fallline\[conic\]'"):
        ConicMinimizer(2, lambda x: (np.ones(2) @ x, []))


@pytest.mark.parametrize("family", [MultiKnapsack(20, 3), ProductionPlanning(20)], ids=repr)
def test_bounds_are_in_float64_whatever_is_given(family):
    instances, y = family.sample(30, 1).float(), family.to_cone(draw(30, family.duals)).float()
    found = family.bound(y, instances)
    assert found.dtype == family.optimum(instances).dtype == D
    torch.testing.assert_close(found, family.bound(y.double(), instances.double()), rtol=0, atol=0)
    proxy = DualProxy(family, (8,))
    assert proxy.bound(instances).dtype == D
    if family.sense == "max":  # multipliers that are optimal up to float32: rounding must not take them past the optimum
        duals = [-linprog(-p, A_ub=W, b_ub=b, bounds=(0, 1)).ineqlin.marginals
                 for p, W, b in zip(*(part.numpy() for part in family.split(instances)), strict=True)]
        best = torch.tensor(np.array(duals)).clamp(min=0).float()
        assert float((family.bound(best, instances) - family.optimum(instances)).min()) > -1e-10


def test_a_box_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="high must be finite, got inf in it"):
        box_bound(draw(1), draw(2), draw(1, 2), draw(1), torch.zeros(2, dtype=D), torch.full((2,), math.inf, dtype=D))
