"""Descent with energy against float64 references written from the formulas, its exact identity, and what it refuses."""

import itertools
import math
import warnings

import pytest
import torch
import torch.distributed.checkpoint.state_dict
from scipy.optimize import brentq
from torch import nn

import fallline as fl
from fallline import optim

MATRIX = torch.tensor([[2.0, 0.3, 0.0, 0.1], [0.3, 1.0, 0.2, 0.0], [0.0, 0.2, 0.5, -0.1], [0.1, 0.0, -0.1, 3.0]], dtype=torch.float64)
TARGET = torch.tensor([0.5, -0.2, 0.9, 0.1], dtype=torch.float64)
ROWS = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 2.0, 0.0]], dtype=torch.float64)
INSIDE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
OUTSIDE = torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64)
TIES = (ROWS, ROWS @ OUTSIDE)


def value(x):
    return (x - TARGET) @ MATRIX @ (x - TARGET) / 2 + (x**4).sum() / 4


def slope(x):
    return MATRIX @ (x - TARGET) + x**3


def free(x, g):
    return g


def scaled(x, g):
    return MATRIX @ g / (1 + x @ x)


def simplex(x, g):
    return (torch.diag(x) - torch.outer(x, x)) @ g


def positive(x, g):
    return x * g


def tied(x, g):
    return g - ROWS.T @ torch.linalg.solve(ROWS @ ROWS.T, ROWS @ g)


METRICS = {
    "none": ({}, free, OUTSIDE), "simplex": ({"constraint": "simplex"}, simplex, INSIDE),
    "positive": ({"constraint": "positive"}, positive, 5 * INSIDE), "ties": ({"constraint": TIES}, tied, OUTSIDE),
    "callable": ({"precond": scaled}, scaled, OUTSIDE),
}
BOUNDED = ("simplex", "positive")


def steps(x, metric, lr, c, bounded, count=20):
    """The points and energies of ``count`` steps, the start included."""
    r = math.sqrt(float(value(x)) + c)
    points, energies = [x], [r]
    for _ in range(count):
        root = math.sqrt(float(value(x)) + c)
        v = slope(x) / (2 * root)
        d = metric(x, v)
        length = lr
        taken = lambda eta: float((2 * eta * r / (1 + 2 * eta * float(v @ d)) * d / x).max())  # noqa: B023
        if bounded and taken(lr) > 0.9:
            length = brentq(lambda eta: taken(eta) - 0.9, 0.0, lr, xtol=1e-15, rtol=1e-14)  # noqa: B023
        r = r / (1 + 2 * length * float(v @ d))
        x = x - 2 * length * r * d
        points, energies = [*points, x], [*energies, r]
    return points, energies


@pytest.mark.filterwarnings("ignore:AEPG's energy")
@pytest.mark.parametrize("lr", [0.05, 0.7, 8.0])
@pytest.mark.parametrize("name", METRICS)
def test_a_step_is_its_formula(name, lr):
    settings, metric, start = METRICS[name]
    points, energies = steps(start, metric, lr, 2.0, name in BOUNDED)
    problem = fl.Smooth(value, start)
    p = nn.Parameter(start.clone())
    optimizer = optim.AEPG([p], lr=lr, c=2.0, **settings)
    assert math.isnan(optimizer.energy)
    for x, r in zip(points[1:], energies[1:], strict=True):
        optimizer.step(problem.bind(p))
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-10)
        assert optimizer.energy == pytest.approx(r, rel=1e-10)


def test_aegd_refuses_to_go_without_the_loss():
    p = nn.Parameter(OUTSIDE.clone())
    optimizer = optim.AEGD([p])
    state = optimizer.init([p.detach()])
    for step in (lambda: optimizer.update([p.detach()], [OUTSIDE], state), lambda: optimizer.step(lambda: None)):
        p.grad = OUTSIDE.clone()
        with pytest.raises(fl.MissingOracle, match="AEGD needs the loss"):
            step()


def test_the_bound_of_a_step_was_reached():
    for name in BOUNDED:
        _, metric, start = METRICS[name]
        longest = steps(start, metric, 8.0, 2.0, bounded=True)[0]
        assert any((before > after).any() and float((1 - after / before).max()) == pytest.approx(0.9)
                   for before, after in itertools.pairwise(longest))
        assert all((x > 0).all() for x in longest)


def test_the_defaults_are_the_papers():
    points, energies = steps(OUTSIDE, free, 0.1, 1.0, bounded=False)
    p = nn.Parameter(OUTSIDE.clone())
    optimizer, closure = optim.AEPG([p]), fl.Smooth(value, OUTSIDE).bind(p)
    for _ in range(20):
        optimizer.step(closure)
    torch.testing.assert_close(p.detach(), points[-1], rtol=1e-10, atol=1e-10)
    assert optimizer.energy == pytest.approx(energies[-1], rel=1e-10)


def test_one_energy_for_all_tensors_and_groups():
    points, energies = steps(OUTSIDE, free, 0.3, 1.0, bounded=False)
    parts = [nn.Parameter(OUTSIDE[:1].clone()), nn.Parameter(OUTSIDE[1:].clone().reshape(3, 1))]
    problem = fl.Smooth(lambda x: value(torch.cat([x[0], x[1].flatten()])), [p.detach() for p in parts])
    optimizer = optim.AEPG([{"params": [part]} for part in parts], lr=0.3)
    for _ in range(20):
        optimizer.step(problem.bind(parts))
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in parts]), points[-1], rtol=1e-10, atol=1e-10)
    assert optimizer.energy == pytest.approx(energies[-1], rel=1e-10)


# ‖·‖² in the metric's (pseudo-)inverse, of a step from x.
NORMS = {"none": lambda x, s: s @ s, "simplex": lambda x, s: (s * s / x).sum(), "positive": lambda x, s: (s * s / x).sum(),
         "ties": lambda x, s: s @ s, "callable": lambda x, s: s @ torch.linalg.solve(MATRIX, s) * (1 + x @ x)}


@pytest.mark.filterwarnings("ignore:AEPG's energy")
@pytest.mark.parametrize("lr", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", NORMS)
def test_the_energy_falls_by_exactly_what_the_identity_says(name, lr):
    settings, _, start = METRICS[name]
    if name in BOUNDED:
        lr = lr / 1000  # where no step reaches the bound
    p = nn.Parameter(start.clone())
    optimizer, closure = optim.AEPG([p], lr=lr, c=3.0, **settings), fl.Smooth(value, start).bind(p)
    r = first = math.sqrt(float(value(start)) + 3.0)
    for _ in range(50):
        x = p.detach().clone()
        optimizer.step(closure)
        now = optimizer.energy
        moved = float(NORMS[name](x, p.detach() - x))
        assert now <= r * (1 + 1e-14)
        assert now**2 == pytest.approx(r**2 - (now - r) ** 2 - moved / lr, rel=1e-10, abs=1e-10 * first**2)
        r = now


@pytest.mark.parametrize("name", ["simplex", "ties"])
def test_constraints_stay_satisfied(name):
    settings, _, start = METRICS[name]
    x = fl.solve(fl.Smooth(value, start), fl.Train(optim.AEPG, lr=0.3, c=30.0, **settings), fl.Budget(steps=1_000)).x
    if name == "simplex":
        assert float(x.sum()) == pytest.approx(1.0, abs=1e-13) and bool((x > 0).all())
    else:
        torch.testing.assert_close(ROWS @ x, TIES[1], rtol=1e-12, atol=1e-12)
    g = METRICS[name][1](x, slope(x))
    assert float(g.norm()) < 1e-6  # it has converged, to where the metric sees no gradient


def test_aegd_keeps_an_energy_for_every_entry():
    x, lr, c = OUTSIDE, 0.4, 1.5
    r = torch.full_like(x, math.sqrt(float(value(x)) + c))
    p = nn.Parameter(x.clone())
    optimizer, closure = optim.AEGD([p], lr=lr, c=c), fl.Smooth(value, x).bind(p)
    for _ in range(20):
        v = slope(x) / (2 * math.sqrt(float(value(x)) + c))
        r = r / (1 + 2 * lr * v**2)
        x = x - 2 * lr * r * v
        optimizer.step(closure)
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(optimizer.state[p]["energy"], r, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [optim.AEPG, optim.AEGD])
def test_maximize_is_minimize_of_the_negative(make):
    ends = []
    for sign in (1.0, -1.0):
        p = nn.Parameter(OUTSIDE.clone())
        optimizer = make([p], lr=0.3, c=2.0, maximize=sign < 0)
        closure = fl.Smooth(lambda x, sign=sign: sign * value(x), OUTSIDE).bind(p)
        for _ in range(10):
            optimizer.step(closure)
        ends.append(p.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("make", [optim.AEPG, optim.AEGD])
def test_what_a_step_needs(make):
    p = nn.Parameter(OUTSIDE.clone())
    optimizer = make([p], c=1.0)
    p.grad = torch.ones_like(p)
    with pytest.raises(fl.MissingOracle, match=r"needs the loss at this step: call step\(closure\)"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"needs f \+ c > 0, but f \+ c is -4 with c = 1; take a larger c"):
        optimizer.step(fl.Smooth(lambda x: (x * 0).sum() - 5, OUTSIDE).bind(p))
    with pytest.raises(ValueError, match=r"f \+ c is 0 with"):
        optimizer.step(fl.Smooth(lambda x: (x * 0).sum() - 1, OUTSIDE).bind(p))
    with pytest.raises(ValueError, match=r"f \+ c is -1"):
        make([p], maximize=True).step(fl.Smooth(lambda x: (x * 0).sum() + 2, OUTSIDE).bind(p))
    torch.testing.assert_close(p.detach(), OUTSIDE)
    with pytest.raises(ValueError, match="c must be a finite number > 0"):
        make([p], c=0.0)


@pytest.mark.parametrize(("start", "constraint", "message"), [
    (OUTSIDE, "simplex", "a start with positive entries, got a smallest entry -2"),
    (OUTSIDE, "positive", "constraint='positive' needs a start with positive entries"),
    (2 * INSIDE, "simplex", "entries sum to 1, got 2; divide by the sum"),
    (OUTSIDE, (ROWS, torch.zeros(2, dtype=torch.float64)), r"B x = b does not hold at the start, ‖B x − b‖ is"),
    (OUTSIDE[:3], TIES, "B has 4 columns, but the parameter has 3 entries"),
])
def test_a_start_off_the_constraint_is_refused(start, constraint, message):
    p = nn.Parameter(start.clone())
    optimizer = optim.AEPG([p], constraint=constraint)
    with pytest.raises(ValueError, match=message):
        optimizer.step(fl.Smooth(lambda x: (x**2).sum(), start).bind(p))


@pytest.mark.parametrize(("settings", "message"), [
    ({"constraint": "ball"}, r"constraint must be 'simplex', 'positive' or a pair of tensors \(B, b\) for B x = b, got 'ball'"),
    ({"constraint": (ROWS, torch.zeros(3))}, r"must be a matrix and a vector .* got shapes \(2, 4\) and \(3,\)"),
    ({"constraint": "simplex", "precond": free}, "two choices of one metric"),
])
def test_constraints_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.AEPG([nn.Parameter(INSIDE.clone())], **settings)


def test_a_collapsed_energy_is_warned_of_and_can_start_anew():
    p = nn.Parameter(OUTSIDE.clone())
    optimizer, closure = optim.AEPG([p], lr=1e4), fl.Smooth(value, OUTSIDE).bind(p)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"energy has fallen to .*, 1e-08 of its start.*restart\(\), with a smaller lr") as found:
            for _ in range(20):
                optimizer.step(closure)
        assert len(found) == 1 and found[0].filename == __file__
        optimizer.restart()
        assert math.isnan(optimizer.energy)
    optimizer.param_groups[0]["lr"] = 0.01
    x = p.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)
    points, energies = steps(x, free, 0.01, 1.0, bounded=False, count=1)
    torch.testing.assert_close(p.detach(), points[1], rtol=1e-10, atol=1e-10)
    assert optimizer.energy == pytest.approx(energies[1], rel=1e-10)


def test_aegd_starts_anew():
    p = nn.Parameter(OUTSIDE.clone())
    optimizer, closure = optim.AEGD([p], lr=0.5), fl.Smooth(value, OUTSIDE).bind(p)
    for _ in range(3):
        optimizer.step(closure)
    optimizer.restart()
    x = p.detach().clone()
    optimizer.step(closure)
    root = math.sqrt(float(value(x)) + 1)
    v = slope(x) / (2 * root)
    torch.testing.assert_close(p.detach(), x - 2 * 0.5 * root / (1 + 2 * 0.5 * v**2) * v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optimizer", [optim.AEPG, optim.AEGD])
def test_it_solves(optimizer):
    result = fl.solve(fl.Smooth(value, OUTSIDE), fl.Train(optimizer, lr=0.2, c=20.0), fl.Budget(steps=2_000))
    assert float(slope(result.x).norm()) < 1e-6


@pytest.mark.parametrize("constraint", [None, "positive"])
def test_groups_with_their_own_rates_are_a_metric(constraint):
    """r is charged for every tensor at its own η, and no entry of any loses more than 0.9 of itself."""
    rates = torch.tensor([8.0, 8.0, 0.3, 0.3], dtype=torch.float64)
    start = INSIDE if constraint else OUTSIDE
    metric = (lambda x, g: rates * x * g) if constraint else (lambda x, g: rates * g)
    first, last = nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone())
    optimizer = optim.AEPG([{"params": [last], "lr": 0.3}, {"params": [first], "lr": 8.0}], c=2.0, constraint=constraint)
    points, energies = steps(start, metric, 1.0, 2.0, constraint is not None, count=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x, r in zip(points[1:], energies[1:], strict=True):
            optimizer.step(lambda: _backward(torch.cat([first, last])))
            torch.testing.assert_close(torch.cat([first, last]).detach(), x, rtol=1e-10, atol=1e-10)
            assert optimizer.energy == pytest.approx(r, rel=1e-10)
            first.grad = last.grad = None


def _backward(x):
    loss = value(x)
    loss.backward()
    return loss


@pytest.mark.parametrize("make", [optim.AEPG, optim.AEGD])
@pytest.mark.parametrize("own", [{"c": 2.0}, {"maximize": True}])
def test_one_loss_has_one_constant_and_one_sign(make, own):
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=f"{next(iter(own))} must be the same in all groups of {make.__name__}"):
        make([{"params": [p]}, {"params": [q], **own}])
    optimizer = make([p])
    with pytest.raises(ValueError, match="must be the same"):
        optimizer.add_param_group({"params": [q], **own})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("storage", [optim.BFloat16(), optim.Blockwise8bit(block=4, min_size=1)])
def test_an_energy_is_kept_whole_and_starts_anew(storage):
    p = nn.Parameter(OUTSIDE.clone())
    optimizer = optim.AEGD([p], lr=0.1, storage=storage)
    step = lambda: optimizer.step(lambda: _backward(p))
    for _ in range(3):
        p.grad = None
        step()
    assert optimizer.state[p]["energy"].dtype == torch.float64
    optimizer.restart()
    p.grad = None
    root = math.sqrt(float(value(p.detach())) + 1)
    before, v = p.detach().clone(), slope(p.detach()) / (2 * root)
    step()
    torch.testing.assert_close(p.detach(), before - 0.2 * root / (1 + 0.2 * v**2) * v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [optim.XGrad, optim.GradReg])
def test_a_loss_that_c_does_not_lift_is_refused_around_aegd_as_well(make):
    p = nn.Parameter(torch.ones(2))
    problem = fl.Smooth(lambda x: (x * x).sum() - 5, p.detach().clone())
    optimizer = make([p], base=optim.AEGD, c=1.0)
    with pytest.raises(ValueError, match=r"AEGD needs f \+ c > 0, but f \+ c is -2 with c = 1"):
        optimizer.step(problem.bind(p))


@pytest.mark.parametrize(("settings", "message"), [
    ({"precond": 3}, "precond must be a function"), ({"constraint": 3}, "constraint must be 'simplex', 'positive' or a pair"),
    ({"constraint": (1, 2)}, "constraint must be 'simplex', 'positive' or a pair of tensors"),
])
def test_metrics_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.AEPG([nn.Parameter(torch.ones(2))], **settings)


def test_entries_that_underflow_to_zero_leave_the_bound_on_the_others():
    p = nn.Parameter(torch.full((3,), 1 / 3))
    weights = torch.tensor([1.0, 20.0, 50.0])
    optimizer = optim.AEPG([p], lr=0.1, c=100.0, constraint="simplex")
    for _ in range(400):
        optimizer.zero_grad()
        loss = (weights * p).sum()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
        assert float(p.min()) >= 0 and float(p.sum()) == pytest.approx(1, abs=1e-3)
    assert float(p.min()) == 0


def test_groups_that_come_later_are_checked_against_the_constraint():
    p, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor([-1.0, 2.0]))
    optimizer = optim.AEPG([p], constraint="positive")
    p.grad = torch.ones(2)
    optimizer.step(lambda: torch.tensor(1.0))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(2)
    with pytest.raises(ValueError, match="needs a start with positive entries, got a smallest entry -1"):
        optimizer.step(lambda: torch.tensor(1.0))


@pytest.mark.parametrize("make", [optim.AEPG, optim.AEGD])
def test_the_pure_form_knows_its_c_and_refuses_a_loss_below_it(make):
    x, g = [torch.ones(2)], [torch.ones(2)]
    plain, raised = make([nn.Parameter(x[0])]), make([nn.Parameter(x[0])], c=100.0)
    override = plain.update(x, g, plain.init(x), loss=torch.tensor(1.0), c=100.0)[0]
    assert torch.equal(override[0], raised.update(x, g, raised.init(x), loss=torch.tensor(1.0))[0][0])
    with pytest.raises(ValueError, match=r"needs f \+ c > 0, but f \+ c is -4"):
        plain.update(x, g, plain.init(x), loss=torch.tensor(-5.0))
    with pytest.raises(fl.MissingOracle):
        plain.update(x, g, plain.init(x))


def test_the_pure_form_shares_its_energy_with_parameters_that_come_late():
    params = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    optimizer = optim.AEPG(params, lr=0.5)
    x = [p.detach().clone() for p in params]
    state = optimizer.init(x)
    for t in range(6):
        gradients = [2 * x[0], 3 * x[1] if t >= 3 else None]
        loss = torch.tensor(3.0 - 0.1 * t, dtype=torch.float64)
        x, state = optimizer.update(x, gradients, state, loss=loss)
        params[0].grad, params[1].grad = 2 * params[0].detach(), 3 * params[1].detach() if t >= 3 else None
        optimizer.step(lambda loss=loss: loss)
    for p, y in zip(params, x, strict=True):
        torch.testing.assert_close(p.detach(), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [optim.AEPG, optim.AEGD])
def test_a_loss_that_is_not_a_number_is_raised_or_skipped(make):
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(fl.NonFiniteError, match="was given a loss"):
        make([p]).step(lambda: torch.tensor(math.nan))
    skipping = make([p], nonfinite="skip")
    skipping.step(lambda: torch.tensor(math.nan))
    assert torch.equal(p, torch.ones(2))


@pytest.mark.parametrize("make", [optim.AEPG, optim.AEGD, lambda p: optim.OASIS(p), lambda p: optim.GradReg(p, base="aepg")])
def test_checkpoint_tools_make_state_appear_without_starting_it(make):
    model = nn.Linear(2, 2)
    torch.distributed.checkpoint.state_dict.get_optimizer_state_dict(model, optimizer := make(list(model.parameters())))
    entry = optimizer.state[model.weight]
    assert entry["step"] == 0 and ("energy" not in entry or bool(torch.as_tensor(entry["energy"]).isnan().all()))


def test_a_loss_of_one_entry_is_a_number():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optim.AEPG([p]).step(lambda: torch.ones(1))
    assert torch.isfinite(p).all() and float(p[0]) < 1


def test_a_metric_of_another_shape_is_refused():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match="precond must return one number for each entry of its tensor"):
        optim.AEPG([p], precond=lambda x, g: x @ g).step(lambda: torch.tensor(1.0))
