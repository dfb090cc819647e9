"""The relatives of Adam against independent float64 references written from their formulas, and what each refuses."""

import math

import pytest
import torch
from test_rules import run

from fallline import optim

B1, B2 = 0.9, 0.999


def adabelief(x, grads, lr=1e-3, eps=1e-16, decay=0.0, amsgrad=False, rectify=False, bound=math.inf):
    m, s = torch.zeros_like(x), torch.zeros_like(x)
    largest = torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        x = x * (1 - lr * decay)
        m = B1 * m + (1 - B1) * g
        s = B2 * s + (1 - B2) * (g - m) ** 2 + eps
        largest = torch.maximum(largest, s)
        used = largest if amsgrad else s
        step = m / (1 - B1**t) / (torch.sqrt(used / (1 - B2**t)) + eps)
        if rectify:
            limit = 2 / (1 - B2) - 1
            length = limit - 2 * t * B2**t / (1 - B2**t)
            if length > 4:
                step = step * math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
            else:
                step = m / (1 - B1**t)
        x = x - lr * step.clamp(-bound, bound)
    return x


def adamomentum(x, grads, lr=1e-3, eps=1e-8, decay=0.0, coupled=0.0):
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        g = g + coupled * x
        x = x * (1 - lr * decay)
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * m**2 + eps
        x = x - lr * m / (1 - B1**t) / torch.sqrt(v / (1 - B2**t))
    return x


def diffgrad(x, grads, lr=1e-3, eps=1e-8):
    m = v = before = torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        friction = 1 / (1 + torch.exp(-(before - g).abs()))
        x = x - lr * friction * m / (1 - B1**t) / (torch.sqrt(v / (1 - B2**t)) + eps)
        before = g
    return x


def exadam(x, grads, lr=1e-3, eps=1e-8, decay=0.0, growth=True):
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        x = x * (1 - lr * decay)
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        d1, d2 = 1 + v / (v + eps) * B2**t, 1 + m**2 / (m**2 + eps) * B1**t
        average, second, now = m / (1 - B1**t) * d1, v / (1 - B2**t) * d2, g / (1 - B1**t) * d1
        rate = lr * math.log(math.sqrt(2) * math.sqrt(t + 1)) if growth else lr
        x = x - rate * (average + now) / (torch.sqrt(second) + eps)
    return x


def ademamix(x, grads, lr=1e-3, b1=0.9, b3=0.99, alpha=8.0, warmup=15, eps=1e-8, decay=0.0):
    fast, slow, v = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        progress = min(1.0, t / warmup)
        first = math.log(max(b1, 1e-8))
        slowness = min(b3, math.exp(first * math.log(b3) / ((1 - progress) * math.log(b3) + progress * first)))
        fast, v = b1 * fast + (1 - b1) * g, B2 * v + (1 - B2) * g**2
        slow = slowness * slow + (1 - slowness) * g
        u = (fast / (1 - b1**t) + alpha * progress * slow) / (torch.sqrt(v / (1 - B2**t)) + eps)
        x = x - lr * (u + decay * x)
    return x


def generalized(x, grads, horizon=1000, c=1.0, b1=0.9, zeta=1e-2, v0=0.0):
    m, v, rho = torch.zeros_like(x), torch.full_like(x, v0), 1 - 1 / horizon
    for g in grads:
        m, v = b1 * m + (1 - b1) * g, rho * v + (1 - rho) * g**2
        x = x - c / math.sqrt(horizon) * m / torch.sqrt(v + zeta)
    return x


REFERENCES = {
    "adabelief": (optim.AdaBelief, {}, adabelief, {}),
    "adabelief with decay, bounded": (optim.AdaBelief, {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1, "max_update": 0.5}, adabelief,
                                      {"lr": 0.01, "eps": 1e-8, "decay": 0.1, "bound": 0.5}),
    "adabelief, amsgrad": (optim.AdaBelief, {"amsgrad": True}, adabelief, {"amsgrad": True}),
    "adabelief, rectified": (optim.AdaBelief, {"rectify": True}, adabelief, {"rectify": True}),
    "adamomentum": (optim.AdaMomentum, {}, adamomentum, {}),
    "adamomentum with decay": (optim.AdaMomentum, {"weight_decay": 0.2}, adamomentum, {"decay": 0.2}),
    "adamomentum with coupled decay": (optim.AdaMomentum, {"weight_decay": 0.2, "decoupled": False}, adamomentum, {"coupled": 0.2}),
    "diffgrad": (optim.DiffGrad, {}, diffgrad, {}),
    "exadam": (optim.EXAdam, {}, exadam, {}),
    "exadam without growth": (optim.EXAdam, {"weight_decay": 0.1, "growth": False}, exadam, {"decay": 0.1, "growth": False}),
    "ademamix": (optim.AdEMAMix, {"betas": (0.9, 0.999, 0.95), "warmup_steps": 30, "weight_decay": 0.1}, ademamix,
                 {"b3": 0.95, "warmup": 30, "decay": 0.1}),
    "ademamix after its warm-up": (optim.AdEMAMix, {"betas": (0.9, 0.999, 0.9), "warmup_steps": 15}, ademamix,
                                   {"b3": 0.9, "warmup": 15}),
    "ademamix without a fast average": (optim.AdEMAMix, {"betas": (0.0, 0.999, 0.9), "warmup_steps": 15, "alpha": 5.0}, ademamix,
                                        {"b1": 0.0, "b3": 0.9, "warmup": 15, "alpha": 5.0}),
    "ademamix at its defaults": (optim.AdEMAMix, {}, ademamix, {"b3": 0.9999, "warmup": 6931}),
    "adam-gs": (optim.AdamGS, {"horizon": 50, "c": 2.0, "v0": 0.5}, generalized, {"horizon": 50, "c": 2.0, "v0": 0.5}),
    "adam-gs at its defaults": (optim.AdamGS, {}, generalized, {}),
    "rmsprop-gs": (optim.RMSPropGS, {}, generalized, {"b1": 0.0}),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_rule_is_its_formula(name):
    make, settings, reference, terms = REFERENCES[name]
    starts, given, ends, _ = run(lambda p: make(p, **settings))
    for x, g, end in zip(starts, given, ends, strict=True):
        torch.testing.assert_close(end, reference(x, g, **terms), rtol=1e-10, atol=1e-10)


def parameter():
    return [torch.nn.Parameter(torch.ones(3))]


STATE = {optim.AdaBelief: 2, optim.AdaMomentum: 2, optim.DiffGrad: 3, optim.EXAdam: 2, optim.AdEMAMix: 3, optim.AdamGS: 2,
         optim.RMSPropGS: 1}


@pytest.mark.parametrize("make", STATE)
def test_state_is_what_the_paper_says(make):
    params = parameter()
    optimizer = make(params)
    params[0].grad = torch.ones(3)
    optimizer.step()
    entries = [value for value in optimizer.state[params[0]].values() if isinstance(value, torch.Tensor) and value.ndim]
    assert sum(entry.nbytes for entry in entries) == STATE[make] * 4 * 3


def test_ademamix_needs_one_buffer_less_without_a_fast_average():
    params = parameter()
    optimizer = optim.AdEMAMix(params, betas=(0.0, 0.999, 0.9))
    params[0].grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg_sq", "slow_avg"}


def test_ademamix_warns_of_an_average_that_outlives_the_run():
    with pytest.warns(UserWarning, match=r"betas\[2\]=0.9999 forgets half in 6931 steps.*warmup_steps=2000"):
        optim.AdEMAMix(parameter(), warmup_steps=2000)
    with pytest.raises(ValueError, match=r"betas must be 3 numbers, got 0\.9"):
        optim.AdEMAMix(parameter(), betas=0.9)


def test_exadam_s_step_grows_and_says_so():
    optimizer = optim.EXAdam(parameter(), lr=0.1)
    assert optimizer.effective_lr(1) == [pytest.approx(0.1 * math.log(2))]
    assert optim.EXAdam(parameter(), lr=0.1, growth=False).effective_lr(50) == [0.1]
    with pytest.warns(UserWarning, match=r"grown by 6.1.*growth=False"):
        optimizer.coefficients(optimizer.direction, optimizer.param_groups[0], 100_000)


@pytest.mark.parametrize(("make", "settings", "message"), [
    (optim.AdaBelief, {"betas": (0.9, 1.0)}, r"betas\[1\] must be a number in \[0, 1\), got 1.0"),
    (optim.AdaBelief, {"max_update": 0}, "max_update must be a finite number > 0, got 0"),
    (optim.AdEMAMix, {"betas": (0.9, 0.999)}, r"betas must be 3 numbers, got \(0.9, 0.999\)"),
    (optim.AdEMAMix, {"betas": (0.9, 0.999, 1.5)}, r"betas\[2\] must be a number in \[0, 1\), got 1.5"),
    (optim.AdEMAMix, {"warmup_steps": -3}, "warmup_steps must be a whole number >= 0, got -3"),
    (optim.AdEMAMix, {"alpha": -1.0}, "alpha must be a finite number >= 0, got -1.0"),
    (optim.AdaMomentum, {"eps": 0.0}, "eps must be a finite number > 0, got 0.0"),
    (optim.EXAdam, {"eps": 0.0}, "eps must be a finite number > 0, got 0.0"),
    (optim.DiffGrad, {"betas": (-0.1, 0.999)}, r"betas\[0\] must be a number in \[0, 1\), got -0.1"),
    (optim.AdamGS, {"horizon": 0}, "horizon must be a whole number >= 1, got 0"),
    (optim.AdamGS, {"c": -1.0}, "c must be a finite number > 0, got -1.0"),
    (optim.AdamGS, {"beta1": 1.0}, r"beta1 must be a number in \[0, 1\), got 1.0"),
    (optim.AdamGS, {"zeta": 0.0}, "zeta must be a finite number > 0, got 0.0; it alone"),
    (optim.RMSPropGS, {"v0": -1.0}, "v0 must be a finite number >= 0, got -1.0"),
])
def test_bad_settings_are_refused_at_the_door(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(parameter(), **settings)
