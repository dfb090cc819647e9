"""Rules that look at whole tensors: Lion-K's norms, Gravity's largest entry, SGD-SaI's scales, against float64 references."""

import math

import pytest
import torch
from test_rules import SHAPES, run

import fallline as fl
from fallline import optim
from fallline.core import registry
from fallline.optim.engine import plan


def lion_k(x, grads, kappa, lr=1e-4, b1=0.9, b2=0.99, decay=0.0):
    m = torch.zeros_like(x)  # collects −g, as in the paper
    for g in grads:
        c = b1 * m - (1 - b1) * g
        x = x + lr * (kappa(c) - decay * x)
        m = b2 * m - (1 - b2) * g
    return x


def unit(c):
    return c / c.norm() if c.norm() > 0 else c


def rows(c):
    flat = c.reshape(c.shape[0], -1) if c.ndim else c.reshape(1, 1)
    return torch.stack([unit(row) for row in flat]).reshape(c.shape)


def skewed(c):
    """The gradient of Σ exp(c): not an odd map, so that a wrong sign of the momentum shows."""
    return torch.exp(c)


KAPPAS = {"l1": torch.sign, "l2": unit, "group": rows, "huber": lambda c: c / torch.sqrt(c**2 + 1e-3**2)}


@pytest.mark.parametrize("kappa", KAPPAS)
def test_lion_k_maps_its_momentum(kappa):
    starts, given, ends, _ = run(lambda p: optim.LionK(p, lr=0.01, weight_decay=0.3, kappa=kappa))
    for x, g, end in zip(starts, given, ends, strict=True):
        torch.testing.assert_close(end, lion_k(x, g, KAPPAS[kappa], 0.01, decay=0.3), rtol=1e-10, atol=1e-10)


def test_lion_k_takes_any_subgradient_in_the_paper_s_sign():
    starts, given, ends, _ = run(lambda p: optim.LionK(p, lr=0.01, kappa=skewed))
    for x, g, end in zip(starts, given, ends, strict=True):
        torch.testing.assert_close(end, lion_k(x, g, skewed, 0.01), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("settings", "message"), [
    ({"kappa": "l7"}, "kappa must be one of 'l1', 'l2', 'group', 'huber', or a function"),
    ({"kappa": fl.L1(1.0) if hasattr(fl, "L1") else 3.0}, "kappa must have a subgradient"),
    ({"kappa": "l1", "kappa_args": {"e": 1.0}}, "kappa 'l1' has no argument 'e'"),
    ({"kappa": "huber", "kappa_args": {"e": 0.0}}, "e must be a finite number > 0, got 0.0"),
    ({"betas": (0.9, 1.2)}, r"betas\[1\] must be a number in \[0, 1\)"),
])
def test_lion_k_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        optim.LionK([torch.nn.Parameter(torch.ones(2))], **settings)


def test_a_kappa_that_answers_with_another_shape_is_named():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.LionK([p], kappa=lambda c: c[:2])
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"kappa must return one number for each .* \(3,\), got \(2,\)"):
        optimizer.step()


def test_how_far_outside_its_constraint_lion_k_is():
    p, free = torch.nn.Parameter(torch.tensor([3.0, 4.0])), torch.nn.Parameter(torch.tensor([9.0]))
    optimizer = optim.LionK([{"params": [p], "weight_decay": 0.5}, {"params": [free]}], kappa="l2")
    assert optim.constraint_violation(optimizer) == pytest.approx(3.0)
    assert optim.constraint_violation(optim.LionK([p], weight_decay=0.5)) == pytest.approx(2.0)
    assert optim.constraint_violation(optim.LionK([p], weight_decay=0.5, kappa="group")) == pytest.approx(2.0)
    assert optim.constraint_violation(optim.LionK([p], weight_decay=0.1)) == 0.0
    with pytest.raises(ValueError, match="given as a function is not known"):
        optim.constraint_violation(optim.LionK([p], weight_decay=0.5, kappa=skewed))


def test_the_lyapunov_function_is_its_formula_and_needs_a_constraint():
    x, m = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    square = lambda y: (y**2).sum() / 2  # its own conjugate
    found = optim.lion_lyapunov(lambda y: (y - 1).square().sum(), x, m, square, square, weight_decay=0.5, alpha=2.0, gamma=3.0,
                                epsilon=0.1)
    barrier = 0.25 * (0.09 + 0.04) / 2
    gap = barrier + 2.5 - 0.5 * (0.3 - 0.4)
    assert found == pytest.approx(2 * (0.49 + 1.44) + 3 / 0.5 * barrier + (1 - 0.3) / (1 + 0.05) * gap)
    with pytest.raises(ValueError, match="weight_decay must be a finite number > 0, got 0"):
        optim.lion_lyapunov(square, x, m, square, square, weight_decay=0.0)
    with pytest.raises(ValueError, match="epsilon must be between 0 and 1 / gamma = 1, got 2"):
        optim.lion_lyapunov(square, x, m, square, square, weight_decay=1.0, epsilon=2.0)


def gravity(x, grads, v, lr=0.1, beta=0.9):
    for t, g in enumerate(grads):
        keep = (beta * t + 1) / (t + 2)
        largest = g.abs().max()
        squashed = g / (1 + (g / (1 / largest)) ** 2) if largest > 0 else g
        v = keep * v + (1 - keep) * squashed
        x = x - lr * v
    return x


def test_gravity_squashes_by_the_largest_entry_of_each_tensor():
    starts, given, ends, _ = run(lambda p: optim.Gravity(p, seed=4))
    for i, (x, g, end) in enumerate(zip(starts, given, ends, strict=True)):
        v = 0.01 / 0.1 * torch.randn(x.shape, dtype=torch.float64, generator=fl.Key(4).fold("velocity", i).generator())
        torch.testing.assert_close(end, gravity(x, g, v), rtol=1e-10, atol=1e-10)


def test_gravity_starts_tensors_apart_and_at_the_given_scale():
    params = [torch.nn.Parameter(torch.zeros(100, 100)) for _ in range(2)]
    optimizer = optim.Gravity(params, lr=0.5, alpha=0.1)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    first, second = (2 * optimizer.state[p]["velocity"] for p in params)  # β̂ = ½ in the first step
    assert float(first.std()) == pytest.approx(0.2, rel=0.03)
    assert not torch.equal(first, second)
    with pytest.warns(UserWarning, match="alpha / lr = 100"):
        optim.Gravity(params, lr=1e-3, alpha=0.1)
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0, got -1"):
        optim.Gravity(params, alpha=-1)


def sai(xs, given, lr=1e-2, momentum=0.9, eps=1e-8, decay=1e-2):
    raw = []
    for g in given:
        first = g[0]
        spread = first.std() if first.numel() > 1 else torch.tensor(0.0)
        raw.append(first.norm() / (spread + eps) if spread > 0 else torch.tensor(float(first.numel()), dtype=torch.float64).sqrt())
    ends = []
    for x, grads, ratio in zip(xs, given, raw, strict=True):
        b = grads[0]
        for t, g in enumerate(grads):
            b = b if t == 0 else momentum * b + (1 - momentum) * g
            x = x * (1 - lr * decay) - lr * ratio / max(raw) * b
        ends.append(x)
    return ends


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_sai_scales_tensors_by_their_first_gradients(momentum):
    with pytest.warns(UserWarning, match="1 of 4 tensors have a first gradient without spread"):
        starts, given, ends, optimizer = run(lambda p: optim.SGDSaI(p, momentum=momentum))
    for end, expected in zip(ends, sai(starts, given, momentum=momentum), strict=True):
        torch.testing.assert_close(end, expected, rtol=1e-10, atol=1e-10)
    scales = [float(state["scale"]) for state in optimizer.state.values()]
    assert max(scales) == 1.0 and min(scales) > 0
    buffers = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.ndim]
    assert len(buffers) == (3 if momentum else 0)  # of the four, one is a scalar


def test_sgd_sai_keeps_the_scales_of_those_who_were_there_when_others_come():
    early, late = (torch.nn.Parameter(torch.zeros(n, n)) for n in (4, 20))
    optimizer = optim.SGDSaI([early, late])
    generator = torch.Generator().manual_seed(0)
    early.grad = torch.randn(4, 4, generator=generator)
    optimizer.step()
    late.grad = torch.randn(20, 20, generator=generator)
    optimizer.step()
    assert float(optimizer.state[early]["scale"]) == 1.0 == float(optimizer.state[late]["scale"])
    assert float(optimizer.state[late]["largest"]) > float(optimizer.state[early]["largest"])


def test_sgd_sai_does_not_measure_a_step_that_is_skipped():
    p = torch.nn.Parameter(torch.zeros(5))
    optimizer = optim.SGDSaI([p], nonfinite="skip")
    p.grad = torch.tensor([1.0, math.nan, 0.0, 0.0, 0.0])
    optimizer.step()
    assert p not in optimizer.state and torch.equal(p, torch.zeros(5))
    p.grad = torch.arange(5.0)
    optimizer.step()
    assert float(optimizer.state[p]["scale"]) == 1.0 and float(p[4]) < 0


def test_sgd_sai_s_scales_are_right_beside_quantised_state():
    ends = []
    for storage in (None, optim.Blockwise8bit()):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.zeros(n)) for n in (5000, 4100, 131_072)]
        optimizer = optim.SGDSaI(params, storage=storage)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        ends.append([p.detach() for p in params])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_report_of_scales_is_what_the_optimizer_uses():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x, y = torch.randn(12, 6), torch.randint(3, (12,))
    objective = fl.Objective(model, torch.nn.functional.cross_entropy)
    report = optim.gsnr_report(objective(x, y))
    optimizer = optim.SGDSaI(model.parameters())
    optimizer.step(objective(x, y))
    for (name, _, share, root), p in zip(report.rows, model.parameters(), strict=True):
        assert share == pytest.approx(float(optimizer.state[p]["scale"]), rel=1e-5)
        assert root == pytest.approx(math.sqrt(p.numel()))
        assert name in repr(report)


REDUCING = {"gravity": {}, "lion-k": {"kappa": "l2"}, "mars": {}, "sgd-sai": {}}


@pytest.mark.parametrize("name", REDUCING)
def test_a_compiled_kernel_sees_whole_tensors(name, monkeypatch):
    """Also where a tensor is longer than an eager chunk, and where small ones are packed."""
    ends = []
    for compile in (False, True):
        generator = torch.Generator().manual_seed(1)
        shapes = [(300, 1000), (700,), (40, 40), *SHAPES]
        params = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64, generator=generator)) for s in shapes]
        optimizer = registry.lookup(name)(params, lr=0.01, compile=compile, **REDUCING[name])
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            optimizer.step()
        ends.append([p.detach() for p in params])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert plan.PACKED_UP_TO < 300 * 1000


def test_gravity_s_throw_is_that_of_the_rate_a_schedule_started_from():
    p = torch.nn.Parameter(torch.zeros(100, 100))
    optimizer = optim.Gravity([p], lr=0.5, alpha=0.1)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=10)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert float((2 * optimizer.state[p]["velocity"]).std()) == pytest.approx(0.2, rel=0.03)


def test_sgd_sai_s_pure_form_measures_those_who_come_late_against_its_own_states():
    generator = torch.Generator().manual_seed(0)
    early, late = torch.zeros(20, 20), torch.zeros(4, 4)
    optimizer = optim.SGDSaI([torch.nn.Parameter(early), torch.nn.Parameter(late)])
    params, state = [early, late], optimizer.init([early, late])
    for gradients in ([torch.randn(20, 20, generator=generator), None], [torch.ones(20, 20), torch.randn(4, 4, generator=generator)]):
        params, state = optimizer.update(params, gradients, state)
    assert float(state[0]["scale"]) == 1.0
    assert float(state[1]["scale"]) == pytest.approx(4 / 20, rel=0.1) and not optimizer.state


def test_sgd_sai_takes_the_eps_of_the_group():
    one, two = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = optim.SGDSaI([{"params": [one], "eps": 1e-8}, {"params": [two], "eps": 100.0}])
    one.grad = two.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert float(optimizer.state[one]["scale"]) == 1.0
    assert float(optimizer.state[two]["scale"]) == pytest.approx(math.sqrt(2) / (math.sqrt(2) + 100), rel=1e-6)


def test_a_first_gradient_that_is_not_finite_does_not_spoil_the_scales_of_others():
    good, bad = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    good.grad, bad.grad = torch.tensor([1.0, -1.0]), torch.tensor([math.inf, 0.0])
    optimizer = optim.SGDSaI([bad, good], nonfinite="ignore")
    optimizer.step()
    assert float(optimizer.state[good]["scale"]) == 1.0 and torch.isfinite(good).all()


def test_how_far_outside_lion_is_and_the_weights_of_xgrad():
    p = torch.nn.Parameter(torch.tensor([3.0, -5.0]))
    assert optim.constraint_violation(optim.Lion([p], weight_decay=0.5)) == 3.0
    around = optim.XGrad([p], base=optim.LionK, kappa="l2", weight_decay=1.0, lr=1.0)
    p.grad = torch.tensor([0.0, 1.0])
    around.step()  # x = (1 - 1 * 1) x - (0, 1), and the point is (0, -2)
    assert optim.constraint_violation(around) == 0.0 and float(p[1].detach()) == -2.0
    with pytest.raises(TypeError, match="optimizer must be a LionK or a Lion, whose decay is a constraint, got AdamW"):
        optim.constraint_violation(optim.AdamW([p]))


def test_gravity_throws_each_group_at_its_own_scale_also_when_both_warm_up_from_nothing():
    params = [torch.nn.Parameter(torch.zeros(100, 100)) for _ in range(2)]
    optimizer = optim.Gravity([{"params": [p], "lr": lr} for p, lr in zip(params, (0.1, 10.0), strict=True)], alpha=0.05)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 10)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, scale in zip(params, (0.5, 0.005), strict=True):
        assert float((2 * optimizer.state[p]["velocity"]).std()) == pytest.approx(scale, rel=0.03)
