"""U-DoG against the two sequences of its formulas, and what becomes of late parameters and of a first gradient of 0."""

import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim

CURVATURE = torch.tensor([1.0, 4.0, 0.3, 2.0], dtype=torch.float64)
START = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
TARGETS = 0.3 * torch.randn(40, 4, dtype=torch.float64, generator=fl.Key(1).generator())


def slope(x, a):
    return CURVATURE * (x - a)


def universal(targets, reps_rel=1e-6, damping=True, lr=1.0):
    """Where gradients are taken, and the answers after each iteration."""
    y, total, weight, changes, first, reach = START, torch.zeros(4, dtype=torch.float64), 0.0, 0.0, None, []
    radii, asked, answers = [], [], []
    for k in range(len(targets) // 2):
        radii.append(max([reps_rel * (1 + float(START.norm()))] if k == 0 else [radii[-1], *reach]))
        alpha = sum(radii) / radii[-1]
        omega = alpha * radii[-1]
        damp = 1 + math.log(1 + k) if damping else 1.0
        at = (omega * y + total) / (weight + omega)
        asked.append(at)
        m = slope(at, targets[2 * k])
        first = float(m @ m) if first is None else first
        x = y - lr * alpha * radii[-1] * m / (damp * math.sqrt(first + changes))
        total, weight = total + omega * x, weight + omega
        at = total / weight
        asked.append(at)
        g = slope(at, targets[2 * k + 1])
        changes += alpha**2 * float((g - m) @ (g - m))
        y = y - lr * alpha * radii[-1] * g / (damp * math.sqrt(first + changes))
        reach += [float((x - START).norm()), float((y - START).norm())]
        answers.append(total / weight)
    return asked, answers


@pytest.mark.parametrize("settings", [{}, {"damping": None}, {"reps_rel": 1e-2}, {"lr": 0.5, "reps_rel": 1e-3}])
def test_a_step_is_half_an_iteration_of_the_formulas(settings):
    terms = {name: (value is not None if name == "damping" else value) for name, value in settings.items()}
    asked, answers = universal(TARGETS, **terms)
    params = [nn.Parameter(START[:1].clone()), nn.Parameter(START[1:].view(3, 1).clone())]
    optimizer = optim.UDoG(params, **settings)
    whole = lambda: torch.cat([p.detach().reshape(-1) for p in params])
    for t, a in enumerate(TARGETS):
        torch.testing.assert_close(whole(), asked[t], rtol=1e-9, atol=1e-9)
        g = slope(whole(), a)
        params[0].grad, params[1].grad = g[:1].clone(), g[1:].view(3, 1).clone()
        optimizer.step()
        if t % 2:
            with optimizer.solution():
                torch.testing.assert_close(whole(), answers[t // 2], rtol=1e-9, atol=1e-9)


def test_compiled_steps_are_the_same():
    ends = []
    for compile in (False, True):
        generator = fl.Key(0).generator()
        params = [nn.Parameter(torch.randn(n, dtype=torch.float64, generator=generator)) for n in (70_000, 100)]
        optimizer = optim.UDoG(params, reps_rel=1e-2, compile=compile)
        for _ in range(6):
            for p in params:
                p.grad = p.detach() + 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator)
            optimizer.step()
        ends.append(torch.cat([p.detach() for p in params]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def test_halves_stay_together_when_a_parameter_comes_late():
    early, late = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = optim.UDoG([early, late], reps_rel=1e-2)
    early.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    late.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    assert float(optimizer.state[late]["taken"]) == 2.0
    assert torch.equal(optimizer.state[late]["mean"], torch.ones(2, dtype=torch.float64))  # a second half leaves the mean


def test_nothing_happens_while_gradients_are_0():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.zeros(2)
    optimizer = optim.UDoG([p])
    for _ in range(4):
        optimizer.step()
    assert torch.equal(p, torch.ones(2))


@pytest.mark.parametrize(("settings", "message"), [({"damping": "linear"}, "damping must be 'log' or None, got 'linear'"),
                                                   ({"reps_rel": 0.0}, "reps_rel must be a finite number > 0")])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.UDoG([nn.Parameter(torch.ones(2))], **settings)


def test_groups_with_rates_of_their_own_measure_their_own_steps():
    rates = torch.tensor([1.0, 1.0, 0.1, 0.1], dtype=torch.float64)
    asked, _ = universal(TARGETS, lr=rates, reps_rel=1e-2)
    params = [nn.Parameter(START[2:].clone()), nn.Parameter(START[:2].clone())]
    optimizer = optim.UDoG([{"params": [params[0]], "lr": 0.1}, {"params": [params[1]]}], reps_rel=1e-2)
    whole = lambda: torch.cat([params[1].detach(), params[0].detach()])
    for t, a in enumerate(TARGETS):
        torch.testing.assert_close(whole(), asked[t], rtol=1e-9, atol=1e-9)
        g = slope(whole(), a)
        params[1].grad, params[0].grad = g[:2].clone(), g[2:].clone()
        optimizer.step()
