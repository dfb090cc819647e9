"""Rules whose gradients come from other points: MARS, XGrad, gradient regularisation, against float64 references."""

import functools
import math

import pytest
import torch
from test_rules import run
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline import optim

CURVATURE = torch.tensor([1.0, 4.0, 0.3], dtype=torch.float64)


def newton_schulz(m):
    x = m / m.norm()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.775 * a @ x + 2.0315 * a @ a @ x
    return x if wide else x.T


def mars(x, grads, variant, lr=3e-3, b1=0.95, b2=0.99, gamma=0.025, decay=0.1, previous=None):
    if x.ndim < 2:
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        for t, g in enumerate(grads, 1):
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            x = x - lr * (m / (1 - 0.9**t) / (torch.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * x)
        return x
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        before = g if t == 1 else grads[t - 2]
        c = g + gamma * b1 / (1 - b1) * (g - before)
        c = c / c.norm() if c.norm() > 1 else c
        m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * c**2
        if variant == "adamw":
            u = m / (1 - b1**t) / (torch.sqrt(v / (1 - b2**t)) + 1e-8)
        elif variant == "lion":
            u = torch.sign(m)
        else:
            flat = m.reshape(m.shape[0], -1)
            u = (math.sqrt(max(1, flat.shape[0] / flat.shape[1])) * newton_schulz(flat)).reshape(m.shape)
        x = x - lr * (u + decay * x)
    return x


@pytest.mark.parametrize("variant", ["adamw", "lion", "shampoo"])
def test_mars_is_its_formula(variant):
    starts, given, ends, _ = run(lambda p: optim.MARS(p, variant=variant, weight_decay=0.1))
    for x, g, end in zip(starts, given, ends, strict=True):
        torch.testing.assert_close(end, mars(x, g, variant), rtol=1e-10, atol=1e-10)


def test_mars_corrects_short_gradients_as_well():
    """Gradients short enough not to be clipped, where the correction and not its direction alone acts."""
    x = torch.zeros(2, 2, dtype=torch.float64)
    p = nn.Parameter(x.clone())
    optimizer = optim.MARS([p], lr=0.1, gamma=0.5)
    grads = [0.01 * torch.randn(2, 2, dtype=torch.float64, generator=fl.Key(t).generator()) for t in range(6)]
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), mars(x, grads, "adamw", lr=0.1, gamma=0.5, decay=0.0), rtol=1e-10, atol=1e-12)


def test_exact_mars_asks_for_this_sample_s_gradient_at_the_previous_weights():
    targets = torch.randn(8, 2, 3, dtype=torch.float64, generator=fl.Key(3).generator())
    x = 0.1 * torch.ones(2, 3, dtype=torch.float64)
    p = nn.Parameter(x.clone())
    optimizer = optim.MARS([p], lr=0.05, gamma=1.0, exact=True, weight_decay=0.0)
    m, v, before, b1, b2 = 0, 0, None, 0.95, 0.99
    calls = []
    for t, target in enumerate(targets, 1):
        def closure(target=target):
            optimizer.zero_grad()
            loss = 0.05 * (CURVATURE * (p - target) ** 2).sum()
            loss.backward()
            calls.append(1)
            return loss

        slope = lambda y, target=target: 0.1 * CURVATURE * (y - target)
        c = slope(x) if before is None else slope(x) + b1 / (1 - b1) * (slope(x) - slope(before))
        c = c / max(1.0, float(c.norm()))
        m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * c**2
        before = x
        x = x - 0.05 * m / (1 - b1**t) / (torch.sqrt(v / (1 - b2**t)) + 1e-8)
        loss = optimizer.step(closure)
        assert float(loss) == pytest.approx(float(0.05 * (CURVATURE * (before - target) ** 2).sum()))
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(p.grad, slope(before))
    assert len(calls) == 2 * 8 - 1


def test_exact_mars_refuses_a_bare_step_and_freezes_masks_and_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = optim.MARS(model.parameters(), exact=True)
    objective = fl.Objective(model, cross_entropy)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    for _ in range(3):
        optimizer.step(objective(x, y))
    assert int(model[1].num_batches_tracked) == 3  # once a step, though two gradients were taken
    assert objective.counts["gradients"] == 5
    with pytest.raises(fl.MissingOracle, match=r"the gradient of this batch at the previous weights.*step\(closure\)"):
        optimizer.step()
    fresh = optim.MARS(model.parameters(), exact=True)
    with pytest.raises(fl.MissingOracle, match=r"step\(closure\)"):  # at the first step already, which needs none
        fresh.step()


def test_exact_mars_s_other_gradient_is_that_of_the_whole_model_at_its_previous_weights():
    """Vectors are brought back as well, though nothing is corrected in them; they are trained by AdamW on the plain gradient."""
    matrix = nn.Parameter(torch.full((2, 2), 0.1, dtype=torch.float64))
    vector = nn.Parameter(torch.full((2,), 0.2, dtype=torch.float64))
    optimizer = optim.MARS([matrix, vector], lr=0.05, gamma=1.0, exact=True)
    seen = []

    def closure():
        seen.append((matrix.detach().clone(), vector.detach().clone()))
        optimizer.zero_grad()
        loss = ((matrix @ vector - 1) ** 2).sum() + (matrix**2 * vector).sum()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    assert len(seen) == 7
    points = [seen[0], *seen[1::2]]  # where the steps' own gradients were taken, and before each but the first the point before it
    for before, again in zip(points, seen[2::2], strict=False):
        assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    x, m, v = torch.full((2,), 0.2, dtype=torch.float64), 0, 0
    for t, (a, b) in enumerate(points, 1):
        torch.testing.assert_close(b, x, rtol=1e-10, atol=1e-12)
        g = 2 * a.T @ (a @ b - 1) + (a**2).sum(0)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        x = x - 0.003 * (m / (1 - 0.9**t) / (torch.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * x)
    torch.testing.assert_close(vector.detach(), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("settings", "message"), [
    ({"variant": "sgd"}, "variant must be one of 'adamw', 'lion', 'shampoo', got 'sgd'"),
    ({"gamma": 0.0}, "gamma must be a finite number > 0, got 0.0"), ({"lr": "x"}, "lr must be a finite number >= 0, got 'x'"),
    ({"lr_1d": None}, "lr_1d must be a finite number >= 0, got None"),
    ({"betas_1d": (0.9, 1.0)}, r"betas_1d\[1\] must be a number in \[0, 1\)"),
])
def test_mars_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.MARS([nn.Parameter(torch.ones(2))], **settings)


def test_mars_vectors_follow_the_schedule_of_the_matrices():
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    optimizer = optim.MARS([matrix, vector], lr=0.1, lr_1d=0.01)
    optimizer.param_groups[0]["lr"] = 0.05
    matrix.grad, vector.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()
    assert float(vector.detach()[0]) == pytest.approx(-0.005, rel=1e-4)
    assert float(matrix.detach()[0, 0]) == pytest.approx(-0.05, rel=1e-4)


# XGrad

def descend(optimizer, p, steps, curvature=CURVATURE):
    for _ in range(steps):
        p.grad = curvature * p.detach()
        optimizer.step()


def test_xgrad_predicts_with_the_last_direction_and_steps_from_the_weights():
    x, wd, lr, s = torch.ones(3, dtype=torch.float64), 0.1, 0.05, 1.5
    p = nn.Parameter(x.clone())
    optimizer = optim.XGrad([p], optim.AdamW, steps=s, lr=lr, weight_decay=wd)
    m, v, u = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(1, 21):
        ahead = x - s * lr * u
        torch.testing.assert_close(p.detach(), ahead, rtol=1e-10, atol=1e-12)
        g = CURVATURE * ahead
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9**t) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x * (1 - lr * wd) - lr * u
        descend(optimizer, p, 1)
        with optimizer.solution():
            torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-12)


def test_xgrad_over_heavy_ball_with_s_of_mu_is_nesterov():
    p, q = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    ours = optim.XGrad([p], optim.Momentum, steps=0.9, lr=0.02, momentum=0.9)
    theirs = torch.optim.SGD([q], lr=0.02, momentum=0.9, nesterov=True)
    for _ in range(30):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-12)
        descend(ours, p, 1)
        descend(theirs, q, 1)


def test_xgrad_decays_the_weights_and_not_the_prediction():
    x, lr, wd = torch.ones(3, dtype=torch.float64), 0.1, 0.5
    p = nn.Parameter(x.clone())
    optimizer = optim.XGrad([p], "sgd", lr=lr, weight_decay=wd)
    u = torch.zeros(3, dtype=torch.float64)
    for _ in range(5):
        u = CURVATURE * (x - lr * u) + wd * x  # coupled decay at the weights
        x = x - lr * u
        descend(optimizer, p, 1)
    with optimizer.solution():
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("base", "why"), [
    ("dog", "step size depends on the gradient to come"), ("nesterov", "not its weights already"),
    (functools.partial(optim.MARS, exact=True), "at its own points"),
    ("oasis", "step size depends"),
    ("optimistic-amsgrad", "not its weights already"), ("frugal", "rearranges"),
    (torch.optim.Adam, "has none to take"), ("xgrad", "has none to take"), (3, "must be an optimizer of this library"),
])
def test_xgrad_refuses_a_rule_it_cannot_predict(base, why):
    with pytest.raises(TypeError, match=why):
        optim.XGrad([nn.Parameter(torch.ones(4, 4))], base)
    with pytest.raises(ValueError, match="steps must be a finite number >= 0, got -1"):
        optim.XGrad([nn.Parameter(torch.ones(2))], steps=-1)
    with pytest.raises(TypeError, match="no argument 'moment'"):
        optim.XGrad([nn.Parameter(torch.ones(2))], moment=0.9)


@pytest.mark.parametrize("base", ["lion", "shampoo", "sophia", "ademamix", "gravity", "mars", "sgd-sai", "adabelief", "adam-8bit"])
def test_xgrad_goes_over_every_other_rule(base):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = optim.XGrad(model.parameters(), base)
    objective = fl.Objective(model, cross_entropy)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    for _ in range(4):
        optimizer.step(objective(x, y))
    ahead = [p.detach().clone() for p in model.parameters()]
    with optimizer.solution():
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert any(not torch.equal(a, p) for a, p in zip(ahead, model.parameters(), strict=True))
    assert all(torch.equal(a, p) for a, p in zip(ahead, model.parameters(), strict=True))


# gradient regularisation

def regularised(mode, gamma=0.1, eps=0.05):
    problem = fl.Smooth(lambda x: (x**4).sum() / 4 + (CURVATURE * x**2).sum() / 2, torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    p = nn.Parameter(problem.x0.clone())
    optimizer = optim.GradReg([p], gamma=gamma, eps=eps, mode=mode, lr=0.01)
    optimizer.step(problem.bind(p))
    return problem, (problem.x0 - p.detach()) / 0.01


def test_gradient_regularisation_is_its_formula():
    slope = lambda y: y**3 + CURVATURE * y
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    g = slope(x)
    there, back = slope(x + 0.05 * g), slope(x - 0.05 * g)
    for mode, expected in {"forward": g + 0.1 * (there - g) / 0.05, "backward": g + 0.1 * (g - back) / 0.05,
                           "double": g + 0.1 * (3 * x**2 + CURVATURE) * g}.items():
        problem, u = regularised(mode)
        torch.testing.assert_close(u, expected, rtol=1e-10, atol=1e-10)
        assert problem.counts["gradients"] == (1 if mode == "double" else 2)
    # γ = ε, forward: the gradient at the ascended point, SAM without its normalisation.
    torch.testing.assert_close(regularised("forward", 0.05, 0.05)[1], slope(x + 0.05 * g), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("level", "sign"), [(0.1, 1.0), (100.0, -1.0)])
def test_flooding_turns_back_below_its_level(level, sign):
    problem = fl.Smooth(lambda x: (x**2).sum(), torch.ones(3, dtype=torch.float64))
    p = nn.Parameter(problem.x0.clone())
    optim.GradReg([p], mode="flooding", level=level, lr=0.1).step(problem.bind(p))
    torch.testing.assert_close(p.detach(), problem.x0 - sign * 0.2 * problem.x0)


def test_gradient_regularisation_restores_weights_and_statistics_and_goes_over_any_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = optim.GradReg(model.parameters(), functools.partial(optim.AdamW, eps=1e-6), lr=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    objective = fl.Objective(model, cross_entropy)
    optimizer.step(objective(torch.randn(16, 6), torch.randint(3, (16,))))
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    assert int(model[1].num_batches_tracked) == 1 and optimizer.param_groups[0]["eps"] == 1e-6
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(fl.MissingOracle, match=r"the loss again at another point.*step\(closure\)"):
        optimizer.step()
    exact = optim.GradReg(model.parameters(), mode="double", lr=0.1)
    with pytest.raises(fl.MissingOracle, match=r"Hessian-vector products at this step: call step\(objective"):
        exact.step(lambda: torch.zeros(()))


@pytest.mark.parametrize(("settings", "message"), [
    ({"gamma": 0.0}, "gamma must be a finite number > 0"), ({"eps": -1.0}, "eps must be a finite number > 0"),
    ({"mode": "sam"}, "mode must be one of 'forward', 'backward', 'double', 'flooding', got 'sam'"),
])
def test_gradient_regularisation_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.GradReg([nn.Parameter(torch.ones(2))], **settings)


def test_a_rule_around_another_keeps_its_state_in_the_storage_it_was_given():
    p = nn.Parameter(torch.ones(4))
    optimizer = optim.XGrad([p], "adam", storage=optim.BFloat16())
    p.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype is torch.bfloat16 and optimizer.state[p]["weights"].dtype is torch.float32


def test_exact_mars_leaves_a_resting_parameter_where_it_is():
    moving, resting = (nn.Parameter(torch.full((2, 2), 0.5, dtype=torch.float64)) for _ in range(2))
    optimizer = optim.MARS([moving, resting], exact=True, lr=0.1)
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(resting.detach().clone())
        loss = (moving**2).sum() + ((resting**2).sum() if resting.requires_grad else 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    resting.requires_grad_(False)
    here = resting.detach().clone()
    seen.clear()
    optimizer.step(closure)
    assert len(seen) == 2 and all(torch.equal(x, here) for x in seen) and torch.equal(resting, here)


def test_exact_mars_keeps_the_gradients_of_parameters_of_others():
    point = {"a": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(2, 2))}
    problem = fl.Smooth(lambda x: (x["a"] * x["b"] ** 2).sum(), {n: p.detach().clone() for n, p in point.items()})
    optimizer = optim.MARS([point["a"]], exact=True, lr=0.1)
    for _ in range(2):
        point["b"].grad = None
        before = point["a"].detach().clone()
        optimizer.step(problem.bind(point))
    torch.testing.assert_close(point["b"].grad, 2 * before)


@pytest.mark.parametrize("steps", [-1.0, "one", float("nan")])
def test_xgrad_needs_a_number_of_steps(steps):
    with pytest.raises(ValueError, match="steps must be a finite number >= 0"):
        optim.XGrad([nn.Parameter(torch.ones(2))], steps=steps)


@pytest.mark.parametrize("variant", ["adamw", "lion"])
def test_exact_mars_compiled_keeps_the_point_before_and_not_the_one_after(variant):
    ends = []
    for compile in (False, True):
        p = nn.Parameter(torch.randn(30, 40, dtype=torch.float64, generator=fl.Key(0).generator()))
        optimizer = optim.MARS([p], exact=True, variant=variant, lr=0.05, gamma=0.5, compile=compile)
        for t in range(5):
            target = torch.randn(30, 40, dtype=torch.float64, generator=fl.Key(t).generator())
            optimizer.step(fl.Smooth(lambda x, target=target: ((x - target) ** 2).sum() / 100, p.detach()).bind(p))
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)
