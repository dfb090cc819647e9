"""PSPS and SANIA against float64 references of their formulas, SANIA's invariances, and what both refuse."""

import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim

SHAPES = [(1,), (3, 1)]
START = torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64)
ROWS = torch.randn(20, 5, 4, dtype=torch.float64, generator=fl.Key(3).generator())


def value(x, rows):
    return torch.nn.functional.softplus(rows @ x).mean() + 0.05 * (x**4).sum()


def slope(x, rows):
    return rows.T @ torch.sigmoid(rows @ x) / len(rows) + 0.2 * x**3


def hessian(x, rows):
    p = torch.sigmoid(rows @ x)
    return rows.T @ (rows * (p * (1 - p))[:, None]) / len(rows) + torch.diag(0.6 * x**2)


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def probes(seed, t, count):
    generator = fl.Key(seed).fold(t, "hutchinson").generator()
    return [flat([torch.randn(shape, generator=generator, dtype=torch.float64).sign() for shape in SHAPES]) for _ in range(count)]


def descended(make, rows=ROWS, start=START, **settings):
    first = [part.reshape(shape).clone() for part, shape in zip(start.split([1, 3]), SHAPES, strict=True)]
    params = [nn.Parameter(p) for p in first]
    optimizer, points = make(params, **settings), []
    for own in rows:
        optimizer.step(fl.Smooth(lambda x, own=own: value(flat(x), own), [p.detach() for p in params]).bind(params))
        points.append(flat([p.detach() for p in params]))
    return points, optimizer


def preconditioned(name, eps, beta=0.999, alpha=1e-8, warm=10):
    """(t, x, g, rows) -> B⁻¹ g, one step after the other."""
    total = torch.zeros(4, dtype=torch.float64)
    average, diagonal = torch.zeros(4, dtype=torch.float64), None

    def direction(t, x, g, rows):
        nonlocal total, average, diagonal
        if name == "identity":
            return g
        if name == "newton_cg":
            return torch.linalg.solve(hessian(x, rows), g)
        if name == "hutchinson":
            drawn = torch.stack([z * (hessian(x, rows) @ z) for z in probes(0, t, warm if t == 1 else 1)]).mean(0)
            diagonal = drawn if t == 1 else beta * diagonal + (1 - beta) * drawn
            return g / diagonal.abs().clamp(min=alpha)
        total, average = total + g**2, beta * average + (1 - beta) * g**2
        squared = total if name.startswith("adagrad") else average / (1 - beta**t)
        return g / ((squared if name.endswith("sqr") else squared.sqrt()) + eps)

    return direction


def reference(direction, length, rows=ROWS, f_star=0.0):
    x, points = START, []
    for t, own in enumerate(rows, 1):
        g = slope(x, own)
        s = direction(t, x, g, own)
        x = x - length(float(value(x, own)) - f_star, float(g @ s)) * s
        points.append(x)
    return points


def root(f, n):
    return 1 - math.sqrt(1 - 2 * f / n) if 2 * f <= n else 1.0


@pytest.mark.parametrize("name", ["identity", "adagrad", "adam", "hutchinson"])
def test_psps_is_its_formula(name):
    found = descended(optim.PSPS, precond=name, f_star=0.05)[0]
    for one, two in zip(found, reference(preconditioned(name, 1e-10), lambda f, n: max(f, 0) / n, f_star=0.05), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["adagrad_sqr", "adam_sqr", "adagrad", "adam", "hutchinson"])
def test_sania_is_its_formula(name):
    found = descended(optim.SANIA, precond=name)[0]
    for one, two in zip(found, reference(preconditioned(name, 1e-8), root), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_sania_s_newton_direction_solves_with_the_batch_s_hessian():
    found = descended(optim.SANIA, precond="newton_cg")[0]
    for one, two in zip(found[:5], reference(preconditioned("newton_cg", 0.0), root)[:5], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_newton_s_direction_is_the_gradient_where_there_is_no_positive_curvature():
    p = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    problem = fl.Smooth(lambda x: 10 - (x * x).sum() / 2, p.detach().clone())
    optim.SANIA([p], precond="newton_cg").step(problem.bind(p))
    g, f = torch.tensor([-1.0, -2.0], dtype=torch.float64), 7.5
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, 2.0], dtype=torch.float64) - root(f, 5.0) * g)


@pytest.mark.parametrize("name", ["adagrad_sqr", "adam_sqr"])
def test_squared_forms_do_not_see_scales(name):
    scales = torch.tensor([1e-3, 20.0, 1.0, 300.0], dtype=torch.float64)
    rows = torch.randn(20, 5, 4, dtype=torch.float64, generator=fl.Key(4).generator())

    def run(scale):
        p = nn.Parameter(START / scale)
        optimizer = optim.SANIA([p], precond=name, eps=0.0)
        for own in rows:
            optimizer.step(fl.Smooth(lambda x, own=own: torch.nn.functional.softplus(own * scale @ x).mean(), p.detach()).bind(p))
        return p.detach() * scale

    torch.testing.assert_close(run(scales), run(torch.ones(4, dtype=torch.float64)), rtol=1e-9, atol=1e-12)


def test_entries_without_a_gradient_stay():
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optim.SANIA([p], eps=0.0).step(fl.Smooth(lambda x: (x[:2] ** 2).sum(), p.detach()).bind(p))
    assert float(p[2]) == 1.0 and torch.isfinite(p).all() and float(p[0]) != 1.0


def test_a_function_of_the_point_is_a_preconditioner():
    found = descended(optim.SANIA, precond=lambda x, g: g / (1 + x @ x))[0]
    expected = reference(lambda t, x, g, rows: torch.cat([g[:1] / (1 + x[:1] @ x[:1]), g[1:] / (1 + x[1:] @ x[1:])]), root)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("make", "settings", "message"), [
    (optim.PSPS, {"precond": "kron"}, "precond must be one of 'hutchinson', 'adagrad', 'adam', 'identity', or a function"),
    (optim.SANIA, {"precond": 3}, "precond must be one of"),
    (optim.PSPS, {"slack": "l3"}, "slack must be 'l1', 'l2' or None, got 'l3'"),
    (optim.PSPS, {"alpha": 0.0}, "alpha must be a finite number > 0"),
    (optim.SANIA, {"precond": "hutchinson", "eps": 0}, "eps must be"),
    (optim.PSPS, {"slack": "l1", "lam": -1.0}, "lam must be"), (optim.PSPS, {"f_star": math.inf}, "f_star must be a finite number"),
])
def test_bad_settings_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(2))], **settings)


def test_curvature_needs_the_objective_and_the_loss_a_closure():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(fl.MissingOracle, match="hutchinson"):
        optim.PSPS([p]).step(lambda: torch.tensor(1.0))
    with pytest.raises(fl.MissingOracle, match="needs the loss"):
        optim.SANIA([p]).step()


def test_newton_s_direction_is_of_the_optimizer_s_own_variables_and_knows_the_decay():
    rows = ROWS[0]
    both = {"w": nn.Parameter(START[:3].clone()), "b": nn.Parameter(START[3:].clone())}
    whole = lambda x: value(torch.cat([x["w"], x["b"]]), rows)
    optim.SANIA([both["w"]], precond="newton_cg", weight_decay=0.3).step(
        fl.Smooth(whole, {n: p.detach() for n, p in both.items()}).bind(both))
    g = slope(START, rows)[:3] + 0.3 * START[:3]
    s = torch.linalg.solve(hessian(START, rows)[:3, :3] + 0.3 * torch.eye(3, dtype=torch.float64), g)
    expected = START[:3] - root(float(value(START, rows)), float(g @ s)) * s
    torch.testing.assert_close(both["w"].detach(), expected, rtol=1e-3, atol=1e-3)


def test_squares_that_underflow_leave_their_entries_where_they_are():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, 1e-23])
    optim.SANIA([p], eps=0.0).step(lambda: torch.tensor(0.1))
    assert torch.isfinite(p).all() and float(p[1].detach()) == 1.0
    q = nn.Parameter(torch.ones(2))
    q.grad = torch.tensor([1e-20, 1e-21])
    optim.PSPS([q], precond="identity").step(lambda: torch.tensor(0.1))
    assert torch.equal(q, torch.ones(2))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_raised_or_skipped(loss):
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(fl.NonFiniteError, match="SANIA was given a loss of"):
        optim.SANIA([p]).step(lambda: torch.tensor(loss))
    optim.SANIA([p], nonfinite="skip").step(lambda: torch.tensor(loss))
    assert torch.equal(p, torch.ones(2))
    with pytest.raises(ValueError, match=r"closure must return one number, the loss, got a tensor of shape \(2,\)"):
        optim.SANIA([p]).step(lambda: torch.ones(2))
