"""SMB and SMBi against references of their formulas, their schedule, and what they ask of a closure."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fallline as fl
from fallline import optim

CURVATURE = torch.tensor([1.0, 4.0, 0.3, 2.0], dtype=torch.float64)
START = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
TARGETS = 0.3 * torch.randn(20, 4, dtype=torch.float64, generator=fl.Key(1).generator())
PARTS = (slice(0, 1), slice(1, 4))


def value(x, a):
    return float((CURVATURE * (x - a) ** 2).sum() / 2 + ((x - a) ** 4).sum() / 4)


def slope(x, a):
    return CURVATURE * (x - a) + (x - a) ** 3


def model_step(s, y, g, own, eta=0.99):
    ss, yy, ys, yg, sg = s @ s, y @ y, y @ s, y @ g, s @ g
    sigma = 0.5 * (ss.sqrt() * (yy.sqrt() + own.norm() / eta) - ys)
    theta = (ys + 2 * sigma) ** 2 - ss * yy
    cg = -ss / (2 * sigma)
    cs = cg / theta * (-(ys + 2 * sigma) * yg + yy * sg)
    cy = cg / theta * (-(ys + 2 * sigma) * sg + ss * yg)
    return cs * s + cg * g + cy * y


def smb(lr, c=0.1):
    x, points, modelled = START, [], 0
    for a in TARGETS:
        g = slope(x, a)
        s = -lr * g
        if value(x + s, a) <= value(x, a) - c * lr * float(g @ g):
            x = x + s
        else:
            modelled += 1
            y = slope(x + s, a) - g
            x = x + torch.cat([model_step(s[i], y[i], g[i], g[i]) for i in PARTS])
        points.append(x)
    return points, modelled


def smbi(lr, c=0.1):
    x, points, failed = START, [], None
    for a in TARGETS:
        g = slope(x, a)
        s = -lr * g
        if failed is not None:
            y = slope(x + s, a) - g
            x, failed = x + torch.cat([model_step(s[i], y[i], failed[i], g[i]) for i in PARTS]), None
        elif value(x + s, a) <= value(x, a) - c * lr * float(g @ g):
            x = x + s
        else:
            failed = g
        points.append(x)
    return points


def descended(**settings):
    params = [nn.Parameter(START[i].clone()) for i in PARTS]
    optimizer, points = optim.SMB(params, **settings), []
    for a in TARGETS:
        def loss(x, a=a):
            off = torch.cat(list(x)) - a
            return (CURVATURE * off**2).sum() / 2 + (off**4).sum() / 4

        problem = fl.Smooth(loss, [p.detach().clone() for p in params])
        optimizer.step(problem.bind(params))
        points.append(torch.cat([p.detach() for p in params]))
    return points, optimizer


@pytest.mark.parametrize("lr", [0.01, 0.3, 1.0])
def test_a_step_is_its_formula(lr):
    points, modelled = smb(lr)
    found, optimizer = descended(lr=lr)
    for one, two in zip(found, points, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    assert optimizer.model_steps == modelled and (modelled > 0) == (lr >= 1)


@pytest.mark.parametrize("lr", [0.3, 0.7, 1.0])
def test_with_independent_batches_the_next_batch_corrects(lr):
    for one, two in zip(descended(lr=lr, independent_batch=True)[0], smbi(lr), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_equal_gradients_at_both_points_shorten_the_step_by_eta():
    g = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    from fallline.optim.smb import model_step as ours
    torch.testing.assert_close(ours(-0.5 * g, torch.zeros(3, dtype=torch.float64), g, g, 0.9), 0.9 * -0.5 * g)
    assert torch.equal(ours(torch.zeros(3), torch.ones(3), torch.ones(3), torch.ones(3), 0.9), torch.zeros(3))


def test_while_no_trial_fails_it_is_sgd():
    ends = []
    for make in (optim.SMB, optim.SGD):
        p = nn.Parameter(START.clone())
        optimizer = make([p], lr=0.01)
        for a in TARGETS:
            optimizer.step(fl.Smooth(lambda x, a=a: (CURVATURE * (x - a) ** 2).sum() / 2, START).bind(p))
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_maximizing_is_minimizing_the_negative():
    p = nn.Parameter(START.clone())
    optimizer = optim.SMB([p], lr=3.0, maximize=True)
    for a in TARGETS:
        optimizer.step(fl.Smooth(lambda x, a=a: -(CURVATURE * (x - a) ** 2).sum() / 2, START).bind(p))
    q = nn.Parameter(START.clone())
    other = optim.SMB([q], lr=3.0)
    for a in TARGETS:
        other.step(fl.Smooth(lambda x, a=a: (CURVATURE * (x - a) ** 2).sum() / 2, START).bind(q))
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)
    assert other.model_steps > 0


def test_the_rate_follows_the_share_of_model_steps():
    calm = descended(lr=0.01, epoch=5)[1]
    assert calm.param_groups[0]["lr"] == pytest.approx(0.01 / 0.9**4) and calm.model_steps == 0
    assert descended(lr=19.0, epoch=5, lr_max=20.0)[1].param_groups[0]["lr"] < 19.0
    still = optim.SMB([nn.Parameter(torch.zeros(2))], lr=19.0, epoch=1)
    still.step(fl.Smooth(lambda x: 0 * x.sum(), torch.zeros(2)).bind(still.param_groups[0]["params"][0]))
    assert still.param_groups[0]["lr"] == 19.0  # 19 / 0.9 is above 20


def test_masks_are_the_same_at_both_points_statistics_move_once_and_it_resumes():
    def run(steps, saved=None, first=0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
        optimizer = optim.SMB(model.parameters(), lr=3.0, independent_batch=True, epoch=3)
        if saved:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        objective = fl.Objective(model, mse_loss)
        for t in range(first, first + steps):
            generator = fl.Key(t).generator()
            x, y = (torch.randn(16, n, dtype=torch.float64, generator=generator) for n in (6, 1))
            optimizer.step(objective(x, y))
        return model, optimizer

    whole, _ = run(8)
    half = run(4)
    rest, _ = run(4, [part.state_dict() for part in half], 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))
    assert int(whole[1].num_batches_tracked) == 8


@pytest.mark.parametrize(("settings", "message"), [
    ({"eta": 1.0}, "eta must be a number between 0 and 1, got 1.0"), ({"c": "x"}, "c must be a number between 0 and 1"),
    ({"epoch": 0}, "epoch must be a whole number of steps or None, got 0"), ({"lr_max": -1}, "lr_max must be"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.SMB([nn.Parameter(torch.ones(2))], **settings)


def test_a_bare_step_and_the_pure_form_are_refused():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(fl.MissingOracle, match="SMB needs the loss again at a trial point"):
        optim.SMB([p]).step()
    with pytest.raises(fl.MissingOracle, match=r"SMB.update\(\) takes gradients only"):
        optim.SMB([p]).update([p], [p.grad], [{}])
    assert math.isfinite(float(p[0]))


@pytest.mark.parametrize("independent_batch", [False, True])
def test_gradients_that_are_not_finite_are_raised_or_skipped(independent_batch):
    for nonfinite in ("raise", "skip"):
        p = nn.Parameter(torch.ones(2))
        optimizer = optim.SMB([p], nonfinite=nonfinite, independent_batch=independent_batch)
        bad = fl.Smooth(lambda x: (x * math.nan).sum(), p.detach())
        optimizer.step(bad.bind(p))
        assert "failed_gradient" not in optimizer.state.get(p, {}) and optimizer.model_steps == 0
        if nonfinite == "raise":
            with pytest.raises(fl.NonFiniteError):
                optimizer.step(bad.bind(p))
        else:
            assert torch.equal(p, torch.ones(2))


def test_a_trial_that_overflows_is_named():
    p = nn.Parameter(torch.full((3,), 10.0))
    with pytest.raises(fl.NonFiniteError, match=r"SMB's trial step, of lr 1e\+38, leads where the gradient is not finite; lower lr"):
        optim.SMB([p], lr=1e38).step(fl.Smooth(lambda x: (x**4).sum(), p.detach()).bind(p))


def test_half_precision_computes_in_single():
    ends = []
    for dtype in (torch.float32, torch.float16):
        p = nn.Parameter(torch.linspace(-1, 1, 1000, dtype=dtype))
        optimizer = optim.SMB([p], lr=3e3)
        for _ in range(6):
            optimizer.step(fl.Smooth(lambda x: ((x.float() - 0.2) ** 2).mean() / 2, p.detach()).bind(p))
        ends.append(float(((p.float() - 0.2) ** 2).mean()))
    assert max(ends) < 0.01


@pytest.mark.parametrize(("settings", "message"), [({"beta": 0.0}, "beta must be a number in"), ({"gamma": "a"}, "gamma must be")])
def test_the_schedule_s_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.SMB([nn.Parameter(torch.ones(2))], **settings)
