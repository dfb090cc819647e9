"""Exact Gauss-Newton against dense solves: the direction, momentum, the line search, adaptive damping."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fallline as fl
from fallline.core import tree
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.optim import EGN


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def network(*layers):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), *(layers or (nn.Tanh(),)), nn.Linear(5, 3)).double()


def data(seed=0, loss=cross_entropy, n=8):
    labels = torch.randint(3, (n,), generator=fl.Key(seed).generator())
    return normal(n, 4, seed=seed), labels if loss is cross_entropy else normal(n, 3, seed=seed + 50)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def pieces(model, theta, x, y, loss_fn):
    """Loss, gradient, J and Q from their definitions."""
    shapes = {n: p.detach() for n, p in model.named_parameters()}
    outputs = lambda v: torch.func.functional_call(model, tree.unflatten(v, shapes), (x,))
    J = torch.func.jacrev(lambda v: outputs(v).flatten())(theta)
    f = outputs(theta).detach()
    if loss_fn is mse_loss:
        r, Q = 2 * (f - y).flatten() / f.numel(), 2 * torch.eye(f.numel(), dtype=f.dtype) / f.numel()
    else:
        p, b, c = f.softmax(1), *f.shape
        r = (p - nn.functional.one_hot(y, c)).flatten() / b
        Q = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p]) / b
    return float(loss_fn(f, y)), J.T @ r, J, Q


def direction(model, theta, x, y, loss_fn, damp):
    _, g, J, Q = pieces(model, theta, x, y, loss_fn)
    return -torch.linalg.solve(J.T @ Q @ J + damp * torch.eye(len(g), dtype=g.dtype), g)


@pytest.mark.parametrize("loss_fn", [cross_entropy, mse_loss])
@pytest.mark.parametrize("damp", [1.0, 1e-3])
def test_the_step_is_the_dense_solution(loss_fn, damp):
    model = network()
    optimizer, objective, theta = EGN(model.parameters(), lr=0.5, damp=damp), fl.Objective(model, loss_fn), flat(network())
    for t in range(4):
        x, y = data(t, loss_fn)
        theta = theta + 0.5 * direction(model, theta, x, y, loss_fn, damp)
        optimizer.step(objective(x, y))
        torch.testing.assert_close(flat(model), theta, rtol=1e-9, atol=1e-10)
    assert objective.counts["gradients"] == 4 and objective.counts["jacobians"] == 4


def test_the_defaults_are_the_paper_s():
    group = EGN([nn.Parameter(torch.ones(2))]).param_groups[0]
    assert (group["lr"], group["damp"], group["momentum"], group["weight_decay"]) == (1.0, 1.0, 0.0, 0.0)


def test_momentum_averages_directions_and_is_debiased():
    model, mu = network(), 0.8
    optimizer, objective, theta = EGN(model.parameters(), damp=0.1, momentum=mu), fl.Objective(model, cross_entropy), flat(network())
    v = torch.zeros_like(theta)
    for t in range(1, 5):
        x, y = data(t)
        v = mu * v + (1 - mu) * direction(model, theta, x, y, cross_entropy, 0.1)
        theta = theta + v / (1 - mu**t)
        optimizer.step(objective(x, y))
        torch.testing.assert_close(flat(model), theta, rtol=1e-9, atol=1e-10)


def test_armijo_halves_until_the_loss_falls_enough():
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    theta, (x, y) = flat(model), data()
    loss, g, _, _ = pieces(model, theta, x, y, cross_entropy)
    d = direction(model, theta, x, y, cross_entropy, 1e-6)
    alpha = 4.0
    after = lambda a: pieces(model, theta + a * d, x, y, cross_entropy)[0]
    while after(alpha) > loss + 1e-4 * alpha * float(g @ d):
        alpha /= 2
    assert 4 / 2**9 <= alpha < 4
    EGN(model.parameters(), lr=4.0, damp=1e-6, line_search="armijo").step(fl.Objective(model, cross_entropy)(x, y))
    torch.testing.assert_close(flat(model), theta + alpha * d, rtol=1e-7, atol=1e-8)


def test_with_a_line_search_the_full_batch_loss_never_rises():
    model, (x, y) = network(), data(n=16)
    optimizer = EGN(model.parameters(), damp=1e-3, momentum=0.9, line_search="armijo", adaptive_damp=True)
    objective = fl.Objective(model, cross_entropy)
    losses = [float(optimizer.step(objective(x, y))) for _ in range(25)]
    assert all(b <= a for a, b in itertools.pairwise(losses)) and losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize(("lr", "factor"), [(0.5, 0.99), (1.0, 0.99), (60.0, 1.01)])
def test_damping_follows_the_ratio_of_decreases(lr, factor):
    model, (x, y) = network(), data(loss=mse_loss)
    theta = flat(model)
    loss, g, J, Q = pieces(model, theta, x, y, mse_loss)
    s = lr * direction(model, theta, x, y, mse_loss, 1.0)
    ratio = (pieces(model, theta + s, x, y, mse_loss)[0] - loss) / float(g @ s + s @ J.T @ Q @ J @ s / 2)
    assert (ratio > 0.75) if factor < 1 else (ratio < 0.25 or float(g @ s + s @ J.T @ Q @ J @ s / 2) > 0)
    optimizer = EGN(model.parameters(), lr=lr, adaptive_damp=True)
    optimizer.step(fl.Objective(model, mse_loss)(x, y))
    assert optimizer.param_groups[0]["damp"] == pytest.approx(factor)
    fixed = EGN(network().parameters())
    assert fixed.param_groups[0]["damp"] == 1.0


def test_damping_stays_within_its_bounds():
    model, (x, y) = network(), data(loss=mse_loss)
    optimizer = EGN(model.parameters(), damp=1e-6, lr=1e-4, adaptive_damp=True)
    optimizer.step(fl.Objective(model, mse_loss)(x, y))
    assert optimizer.param_groups[0]["damp"] == 1e-6


def test_linear_least_squares_is_solved_in_a_step():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x, y = normal(20, 3), normal(20, 2, seed=1)
    EGN(model.parameters(), damp=1e-8).step(fl.Objective(model, mse_loss)(x, y))
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(20, 1)], 1), y).solution
    torch.testing.assert_close(model.weight.detach(), solution[:3].T, rtol=1e-6, atol=1e-7)


def test_a_sum_and_a_mean_differ_by_the_unit_of_the_damping():
    x, y = data()
    mean, total = network(), network()
    EGN(mean.parameters(), damp=0.1).step(fl.Objective(mean, cross_entropy)(x, y))
    EGN(total.parameters(), damp=0.8).step(fl.Objective(total, lambda z, y: cross_entropy(z, y, reduction="sum"))(x, y))
    torch.testing.assert_close(flat(mean), flat(total))


def test_a_resting_group_and_a_late_one():
    model, alone, (x, y) = network(), network(), data()
    first, last = list(model[0].parameters()), list(model[2].parameters())
    EGN([{"params": first, "lr": 0.0}, {"params": last}]).step(fl.Objective(model, cross_entropy)(x, y))
    EGN(alone[2].parameters()).step(fl.Objective(alone, cross_entropy)(x, y))
    torch.testing.assert_close(flat(model), flat(alone))
    optimizer = EGN(alone[2].parameters(), momentum=0.5)
    optimizer.step(fl.Objective(alone, cross_entropy)(x, y))
    optimizer.add_param_group({"params": list(alone[0].parameters())})
    before, d = flat(alone[0]), direction(alone, flat(alone), x, y, cross_entropy, 1.0)
    optimizer.step(fl.Objective(alone, cross_entropy)(x, y))
    torch.testing.assert_close(flat(alone[0]), before + d[:25])  # its first average is its first direction


@pytest.mark.parametrize("warm_up", [{"lr": 0.0}, {"momentum": 0.0}])
def test_steps_that_averaged_nothing_are_none_of_the_average_s(warm_up):
    model, (x, y) = network(), data()
    optimizer, objective = EGN(model.parameters(), momentum=0.9), fl.Objective(model, cross_entropy)
    usual = {name: optimizer.param_groups[0][name] for name in warm_up}
    for group in (warm_up, warm_up, usual):
        optimizer.param_groups[0].update(group)
        before, d = flat(model), direction(model, flat(model), x, y, cross_entropy, 1.0)
        optimizer.step(objective(x, y))
    torch.testing.assert_close(flat(model), before + d)


def test_a_loaded_average_goes_on_alike():
    model, other = network(), network()
    optimizer = EGN(model.parameters(), momentum=0.9)
    optimizer.step(fl.Objective(model, cross_entropy)(*data()))
    other.load_state_dict(model.state_dict())
    loaded = EGN(other.parameters())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, loaded)):
        o.step(fl.Objective(m, cross_entropy)(*data(1)))
    assert torch.equal(flat(model), flat(other))


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused():
    model, before = network(), flat(network())
    cauchy = lambda z, y: torch.log1p((z - y) ** 2).mean()
    with pytest.raises(ValueError, match=r"must be convex in the model's outputs.*below -damp, -0\.01"):
        EGN(model.parameters(), damp=0.01).step(fl.Objective(model, cauchy)(data()[0], 3 * normal(8, 3, seed=1)))
    assert torch.equal(flat(model), before)
    optimizer, x = EGN(model.parameters()), data()[0]
    optimizer.step(fl.Objective(model, mse_loss)(x, model(x).detach()))  # a gradient of 0 is no ascent
    assert torch.equal(flat(model), before)


def test_what_is_not_finite_is_left_out_or_raised():
    model, (x, y) = network(), data()
    before = flat(model)
    optimizer = EGN(model.parameters(), nonfinite="skip", momentum=0.9, adaptive_damp=True)
    optimizer.step(fl.Objective(model, cross_entropy)(x * math.nan, y))
    assert torch.equal(flat(model), before) and optimizer.param_groups[0]["damp"] == 1.0
    assert not any("exp_avg" in state for state in optimizer.state.values())

    with torch.no_grad():
        model[2].weight.fill_(1e200)
    with pytest.raises(NonFiniteError, match="EGN met curvature"):
        EGN(model.parameters()).step(fl.Objective(model, lambda z, y: (z * 1e-210).sum() + 1e-200 * (z**2).mean())(x, y))


def test_what_it_cannot_do_is_refused_by_name():
    model = network()
    optimizer = EGN(model.parameters())
    for closure in (None, lambda: torch.zeros(())):
        with pytest.raises(MissingOracle, match=r"EGN needs the model's outputs.*objective\(batch\)"):
            optimizer.step(closure)
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(MissingOracle, match="EGN needs the model's outputs"):
        EGN([x]).step(fl.Smooth(lambda x: x @ x, x.detach()).bind(x))
    with pytest.raises(MissingOracle, match=r"EGN\.update"):
        optimizer.update([], [], [])
    with pytest.raises(MissingOracle, match="batch normalisation"):
        model = network(nn.BatchNorm1d(5))
        EGN(model.parameters()).step(fl.Objective(model, cross_entropy)(*data()))
    groups = [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "damp": 2.0}]
    with pytest.raises(ValueError, match="damp must be the same in all groups"):
        EGN(groups)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"damp": 0.0}, "damp must"), ({"momentum": 1.0}, "momentum must"), ({"line_search": "wolfe"}, "line_search must"),
    ({"adaptive_damp": 1}, "adaptive_damp must"), ({"lr": -1.0}, "lr must")])
def test_bad_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        EGN([nn.Parameter(torch.ones(2))], **arguments)
