"""Every rule against an independent float64 reference written from its formulas, twenty steps over several shapes."""

import math
import warnings

import pytest
import torch

import fallline as fl
from fallline import optim

SHAPES = [(), (3,), (4, 5), (2, 3, 4)]


def gradients(seed, shape):
    """Twenty gradients that do not depend on the parameters, some entries always zero."""
    found = torch.randn(20, *shape, dtype=torch.float64, generator=fl.Key(seed).generator())
    if shape and shape[0] > 2:
        found[:, 0] = 0
    return found


def run(make, seed=0, decay=False):
    """The parameters of every shape after twenty steps, with the gradients each saw."""
    tensors = [torch.randn(s, dtype=torch.float64, generator=fl.Key(seed).fold(str(s)).generator()) for s in SHAPES]
    params = [torch.nn.Parameter(t.clone()) for t in tensors]
    optimizer = make(params)
    given = [gradients(seed + i, s) for i, s in enumerate(SHAPES)]
    for t in range(20):
        for p, g in zip(params, given, strict=True):
            p.grad = g[t].clone()
        optimizer.step()
    return tensors, given, [p.detach() for p in params], optimizer


def sgd(x, grads, lr=0.01, wd=0.0):
    for g in grads:
        x = x - lr * (g + wd * x)
    return x


def momentum(x, grads, lr=0.01, gamma=0.9):
    v = torch.zeros_like(x)
    for g in grads:
        v = gamma * v + lr * g
        x = x - v
    return x


def adagrad(x, grads, lr=0.01, eps=1e-8):
    total = torch.zeros_like(x)
    for g in grads:
        total = total + g**2
        x = x - lr * g / torch.sqrt(total + eps)
    return x


def adadelta(x, grads, rho=0.9, eps=1e-6):
    square, delta = torch.zeros_like(x), torch.zeros_like(x)
    for g in grads:
        square = rho * square + (1 - rho) * g**2
        step = -torch.sqrt(delta + eps) / torch.sqrt(square + eps) * g
        delta = rho * delta + (1 - rho) * step**2
        x = x + step
    return x


def rmsprop(x, grads, lr=0.001, rho=0.9, eps=1e-8):
    square = torch.zeros_like(x)
    for g in grads:
        square = rho * square + (1 - rho) * g**2
        x = x - lr * g / torch.sqrt(square + eps)
    return x


def adam_like(x, grads, lr, numerator, denominator, b1=0.9, b2=0.999, decay=0.0):
    m = v = u = torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        u = torch.maximum(b2 * u, g.abs() + 1e-8)
        hat, root = m / (1 - b1**t), torch.sqrt(v / (1 - b2**t)) + 1e-8
        above = {"plain": hat, "ahead": b1 * hat + (1 - b1) * g / (1 - b1**t)}[numerator]
        x = x - lr * decay * x - lr * above / {"root": root, "max": u}[denominator]
    return x


def lion(x, grads, lr=1e-4, b1=0.9, b2=0.99, decay=0.0):
    m = torch.zeros_like(x)
    for g in grads:
        x = x - lr * (torch.sign(b1 * m + (1 - b1) * g) + decay * x)
        m = b2 * m + (1 - b2) * g
    return x


def shampoo(x, grads, lr=0.1, eps=1e-4):
    order = max(x.ndim, 1)
    shape = x.shape or (1,)
    statistics = [eps * torch.eye(n, dtype=x.dtype) for n in shape]
    for g in grads:
        u = g.reshape(shape)
        for i, n in enumerate(shape):
            unfolded = g.reshape(shape).movedim(i, 0).reshape(n, -1)
            statistics[i] = statistics[i] + unfolded @ unfolded.T
            values, vectors = torch.linalg.eigh(statistics[i])
            root = vectors @ torch.diag(values.clamp(min=eps) ** (-1 / (2 * order))) @ vectors.T
            u = torch.tensordot(root, u, dims=([1], [i])).movedim(0, i)
        x = x - lr * u.reshape(x.shape)
    return x


REFERENCES = {
    "sgd": (lambda p: optim.SGD(p), sgd),
    "sgd with decay": (lambda p: optim.SGD(p, lr=0.1, weight_decay=0.2), lambda x, g: sgd(x, g, 0.1, 0.2)),
    "momentum": (lambda p: optim.Momentum(p), momentum),
    "adagrad": (lambda p: optim.Adagrad(p), adagrad),
    "adadelta": (lambda p: optim.Adadelta(p), adadelta),
    "rmsprop": (lambda p: optim.RMSprop(p), rmsprop),
    "adam": (lambda p: optim.Adam(p), lambda x, g: adam_like(x, g, 1e-3, "plain", "root")),
    "adamw": (lambda p: optim.AdamW(p), lambda x, g: adam_like(x, g, 1e-3, "plain", "root", decay=0.01)),
    "adamax": (lambda p: optim.AdaMax(p), lambda x, g: adam_like(x, g, 2e-3, "plain", "max")),
    "nadam": (lambda p: optim.Nadam(p), lambda x, g: adam_like(x, g, 2e-3, "ahead", "root")),
    "lion": (lambda p: optim.Lion(p), lion),
    "lion with decay": (lambda p: optim.Lion(p, lr=0.01, betas=(0.95, 0.98), weight_decay=0.3),
                        lambda x, g: lion(x, g, 0.01, 0.95, 0.98, 0.3)),
    "shampoo": (lambda p: optim.Shampoo(p), shampoo),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_rule_is_its_formula(name):
    make, reference = REFERENCES[name]
    starts, given, ends, _ = run(make)
    for x, g, end in zip(starts, given, ends, strict=True):
        torch.testing.assert_close(end, reference(x, g), rtol=1e-10, atol=1e-10)


def test_nesterov_takes_the_gradient_ahead_and_answers_with_the_point_itself():
    curvature = torch.tensor([1.0, 10.0], dtype=torch.float64)
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = optim.Nesterov([p], lr=0.05, momentum=0.8)
    theta, v = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(20):
        p.grad = curvature * p.detach()
        optimizer.step()
        v = 0.8 * v + 0.05 * curvature * (theta - 0.8 * v)
        theta = theta - v
        torch.testing.assert_close(p.detach(), theta - 0.8 * v)
        with optimizer.solution():
            torch.testing.assert_close(p.detach(), theta)
    torch.testing.assert_close(p.detach(), theta - 0.8 * v)


@pytest.mark.parametrize("layerwise", [False, True])
def test_dog_is_distance_over_gradients(layerwise):
    make = optim.LDoG if layerwise else optim.DoG
    starts, given, ends, optimizer = run(lambda p: make(p, reps_rel=1e-3))
    groups = [[i] for i in range(len(SHAPES))] if layerwise else [list(range(len(SHAPES)))]
    size = lambda tensors: math.sqrt(sum(float((t**2).sum()) for t in tensors))
    with optimizer.solution():
        averages = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    for group in groups:
        x0 = [starts[i] for i in group]
        x, radius, total = list(x0), 1e-3 * (1 + size(x0)), 1e-8
        mean = [torch.zeros_like(t) for t in x0]
        for t in range(20):
            g = [given[i][t] for i in group]
            radius = max(radius, size([a - b for a, b in zip(x, x0, strict=True)]))
            total += size(g) ** 2
            x = [a - radius / math.sqrt(total) * b for a, b in zip(x, g, strict=True)]
            weight = 9 / (t + 1 + 8)
            mean = [(1 - weight) * m + weight * a for m, a in zip(mean, x, strict=True)]
        for i, a, m in zip(group, x, mean, strict=True):
            torch.testing.assert_close(ends[i], a, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(averages[i], m, rtol=1e-9, atol=1e-12)


def test_sophia_clips_newton_steps_and_estimates_every_k_steps():
    curvature = torch.tensor([0.5, 4.0, -1.0], dtype=torch.float64)
    problem = fl.Smooth(lambda x: 0.5 * (curvature * x**2).sum(), torch.ones(3, dtype=torch.float64))
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = optim.Sophia([p], lr=0.01, estimator="hutchinson", k=4, weight_decay=0.1, seed=5)
    x, m, h = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(1, 13):
        optimizer.step(problem.bind(p))
        g = curvature * x
        m = 0.96 * m + 0.04 * g
        if t % 4 == 1:
            probe = torch.randn(3, dtype=torch.float64, generator=fl.Key(5).fold(t, "hutchinson").generator())
            h = 0.99 * h + 0.01 * probe * curvature * probe
        x = x - 0.01 * 0.1 * x
        x = x - 0.01 * (m / torch.clamp(0.01 * h, min=1e-12)).clamp(-1, 1)
        torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-12)
    assert problem.counts["hvps"] == 3


def test_sophia_ascends_as_it_descends_the_negative():
    curvature = torch.tensor([0.5, 4.0, -1.0], dtype=torch.float64)
    ends = []
    for sign in (1.0, -1.0):
        problem = fl.Smooth(lambda x, sign=sign: sign * 0.5 * (curvature * x**2).sum(), torch.ones(3, dtype=torch.float64))
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = optim.Sophia([p], lr=0.1, betas=(0.0, 0.0), gamma=1.0, estimator="hutchinson", k=1, maximize=sign < 0)
        for _ in range(5):
            optimizer.step(problem.bind(p))
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_sophia_takes_a_maximised_objective_for_the_likelihood():
    ends = []
    for sign in (1.0, -1.0):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 4)
        objective = fl.Objective(model, lambda out, y, sign=sign: sign * torch.nn.functional.cross_entropy(out, y))
        optimizer = optim.Sophia(model.parameters(), lr=0.1, k=1, maximize=sign < 0)
        for t in range(3):
            optimizer.step(objective(torch.randn(8, 3, generator=fl.Key(t).generator()), torch.arange(8) % 4))
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends)


def test_sophia_says_what_it_needs():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(fl.core.MissingOracle, match=r"Sophia needs .*step\(objective\(batch\)\)"):
        optim.Sophia([p]).step()


@pytest.mark.parametrize("selector", ["svd", "columns", "randk", "random"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_frugal_is_adam_in_the_subspace_and_sign_outside(selector, shape):
    p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = optim.Frugal([p], lr=1.0, density=0.5, update_gap=3, selector=selector)
    first = gradients(0, shape)[1]
    p.grad = first.clone()
    optimizer.step()
    update, basis = -p.detach(), optimizer.state[p]["basis"]
    projector = optimizer.direction.projector
    inside = projector.lift(projector.project(first[None], basis[None]), basis[None], first[None])[0]
    coordinates = projector.project(first[None], basis[None])
    adam = projector.lift(coordinates / (coordinates.abs() + 1e-8), basis[None], first[None])[0]
    torch.testing.assert_close(update, adam + torch.sign(first - inside))
    # A projection: twice is once, and what is inside is orthogonal to the rest.
    again = projector.lift(projector.project(inside[None], basis[None]), basis[None], first[None])[0]
    torch.testing.assert_close(again, inside)
    assert abs(float((inside * (first - inside)).sum())) < 1e-10


def test_frugal_discards_state_with_its_subspace_and_galore_keeps_it():
    for make, kept in ((optim.Frugal, False), (optim.GaLore, True)):
        p = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
        options = {"density": 0.5, "selector": "svd"} if make is optim.Frugal else {"rank": 2}
        optimizer = make([p], lr=0.1, update_gap=2, **options)
        for g in gradients(3, (6, 4))[:3]:
            p.grad = g.clone()
            optimizer.step()
        projected = optimizer.direction.projector.project(p.grad[None], optimizer.state[p]["basis"][None])[0]
        fresh = torch.allclose(optimizer.state[p]["exp_avg"], 0.1 * projected)
        assert fresh is not kept


def test_blockwise_frugal_gives_state_to_matrices_in_turn():
    params = [torch.nn.Parameter(torch.randn(4, 4, dtype=torch.float64)) for _ in range(4)]
    bias = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = optim.Frugal([*params, bias], density=0.25, update_gap=2)
    seen = []
    for t in range(8):
        for p in [*params, bias]:
            p.grad = gradients(t, tuple(p.shape))[0]
        optimizer.step()
        seen.append([i for i, p in enumerate(params) if "exp_avg" in optimizer.state[p]])
        assert "exp_avg" in optimizer.state[bias]
    assert all(len(s) == 1 for s in seen) and {s[0] for s in seen} == {0, 1, 2, 3}
    assert all(seen[i] == seen[i + 1] for i in range(0, 8, 2))


def test_without_state_frugal_is_sign_descent():
    p = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    optimizer = optim.Frugal([p], lr=0.5, density=0.0, selector="svd")
    g = gradients(0, (3, 2))[0]
    p.grad = g.clone()
    optimizer.step()
    assert torch.equal(p.detach(), -0.5 * torch.sign(g))


def test_full_rank_updates_over_two_subspaces():
    for make, options, at_most in ((optim.Frugal, {"rank": 2, "selector": "svd"}, 8), (optim.GaLore, {"rank": 2}, 4)):
        p = torch.nn.Parameter(torch.zeros(8, 10, dtype=torch.float64))
        optimizer = make([p], lr=0.1, update_gap=3, **options)
        for g in gradients(1, (8, 10))[:6]:
            p.grad = g.clone()
            optimizer.step()
        rank = int(torch.linalg.matrix_rank(p.detach()))
        assert rank <= at_most and (make is optim.GaLore or rank >= 7)


def test_roots_can_be_renewed_rarely_and_long_modes_are_diagonal():
    p = torch.nn.Parameter(torch.zeros(6, 3, dtype=torch.float64))
    optimizer = optim.Shampoo([p], root_every=3, max_dim=4)
    roots = []
    for g in gradients(0, (6, 3))[:4]:
        p.grad = g.clone()
        optimizer.step()
        roots.append(optimizer.state[p]["root1"].clone())
    assert "diagonal0" in optimizer.state[p] and "root0" not in optimizer.state[p]
    assert torch.equal(roots[0], roots[1]) and torch.equal(roots[1], roots[2]) and not torch.equal(roots[2], roots[3])


def test_shampoo_momentum_accumulates_preconditioned_updates():
    starts, given, ends, _ = run(lambda p: optim.Shampoo(p, lr=0.1, momentum=0.5))
    for x, g, end in zip(starts, given, ends, strict=True):
        updates = [shampoo(x, g[: t + 1], 1.0) - shampoo(x, g[:t], 1.0) for t in range(20)]
        buffer = torch.zeros_like(x)
        for u in updates:
            buffer = 0.5 * buffer + u
            x = x + 0.1 * buffer
        torch.testing.assert_close(end, x, rtol=1e-9, atol=1e-9)


def test_shampoo_has_a_buffer_where_a_group_has_momentum():
    def gradient(t):
        return torch.randn(3, 3, dtype=torch.float64, generator=fl.Key(t).generator())

    grouped, plain, whole, none = (torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.float64)) for _ in range(4))
    by_group = optim.Shampoo([{"params": [grouped], "momentum": 0.9}, {"params": [plain]}])
    everywhere, nowhere = optim.Shampoo([whole], momentum=0.9), optim.Shampoo([none])
    for t in range(5):
        for p in (grouped, plain, whole, none):
            p.grad = gradient(t)
        by_group.step(), everywhere.step(), nowhere.step()
    assert torch.equal(grouped, whole) and torch.equal(plain, none)
    assert "momentum" not in by_group.state[plain]


def test_shampoo_heeds_a_momentum_raised_by_a_schedule():
    p, q = (torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.float64)) for _ in range(2))
    raised, constant = optim.Shampoo([p]), optim.Shampoo([q], momentum=0.0)
    raised.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))]})
    last = torch.zeros_like(p)
    for t in range(4):
        if t == 2:
            raised.param_groups[0]["momentum"] = 0.5
        before = p.detach().clone()
        p.grad = q.grad = torch.randn(3, 3, dtype=torch.float64, generator=fl.Key(t).generator())
        other = q.detach().clone()
        raised.step(), constant.step()
        moved, update = p.detach() - before, q.detach() - other
        last = update + 0.5 * last if t > 2 else update
        torch.testing.assert_close(moved, last)


@pytest.mark.parametrize("max_dim", [1024, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e25, 1.5e19])
def test_shampoo_names_the_parameter_whose_gradient_is_not_finite_or_overflows(value, max_dim):
    good, bad = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    optimizer = optim.Shampoo([("good", good), ("bad", bad)], max_dim=max_dim)
    good.grad, bad.grad = (torch.randn(4, 4, generator=fl.Key(i).generator()) for i in range(2))
    if math.isfinite(value):
        bad.grad *= value
    else:
        bad.grad[0, 0] = value
    with pytest.raises(fl.core.NonFiniteError, match="'bad'"):
        for _ in range(3):
            optimizer.step()


def test_a_setting_of_adamw_becomes_one_of_lion():
    assert optim.lion_from_adamw(1e-3, 0.1) == (pytest.approx(2e-4), pytest.approx(0.5))


@pytest.mark.parametrize("make, message", [
    (lambda p: optim.Lion(p, betas=(0.9, 1.0)), r"betas\[1\]"),
    (lambda p: optim.Lion(p, lr=-1), "lr must be"),
    (lambda p: optim.Shampoo(p, eps=0.0), "eps"),
    (lambda p: optim.Shampoo(p, root_every=0), "root_every"),
    (lambda p: optim.DoG(p, reps_rel=0.0), "reps_rel"),
    (lambda p: optim.Frugal(p, density=1.5), "density"),
    (lambda p: optim.Frugal(p, selector="best"), "selector"),
    (lambda p: optim.Frugal(p, free="adam"), "free"),
    (lambda p: optim.GaLore(p, rank=0), "rank"),
    (lambda p: optim.Sophia(p, estimator="fisher"), "estimator"),
    (lambda p: optim.Sophia(p, k=0), "k must"),
    (lambda p: optim.Sophia(p, eps=0.0), "eps"),
    (lambda p: optim.Sophia([{"params": p, "eps": 0.0}]), "eps"),
    (lambda p: optim.Shampoo(p, eps=float("inf")), "eps"),
    (lambda p: optim.Shampoo(p, max_dim=2.5), "max_dim"),
    (lambda p: optim.DoG(p, gamma=-1.0), "gamma"),
    (lambda p: optim.Adam8bit(p, block=0), "block"),
    (lambda p: optim.Adam(p, eps=float("nan")), "eps"),
    (lambda p: optim.RMSprop(p, rho=1.5), "rho"),
])
def test_bad_hyperparameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make([torch.nn.Parameter(torch.ones(3, 3))])


def test_a_large_lion_step_without_decay_is_warned_of():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match=r"lr=0\.01"):
        optim.Lion([p], lr=0.01)
    with pytest.warns(UserWarning, match=r"lr=0\.02"):
        optim.Lion([{"params": [p], "lr": 0.02}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optim.Lion([{"params": [p], "lr": 1e-4}, {"params": [torch.nn.Parameter(torch.ones(2))], "weight_decay": 0.1}], lr=0.01)


def test_a_half_precision_momentum_of_lion_stalls_where_the_docstring_says():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = optim.Lion([p], momentum_dtype=torch.bfloat16)
    for _ in range(600):
        p.grad = torch.ones(2)
        optimizer.step()
    assert 0.7 < float(optimizer.state[p]["exp_avg"][0]) < 0.9


def test_t_dog_is_damped_by_the_proof_s_constants():
    x = torch.nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    start, point, total, radius = x.detach().clone(), x.detach().clone(), 0.0, 0.0
    optimizer = optim.TDoG([x], lipschitz=2.0, horizon=50, delta=0.1, reps_rel=1e-2)
    theta = math.log(60 * math.log(300) / 0.1)
    for t in range(1, 6):
        g = point.clone()
        radius = max(radius, float((point - start).norm()), 1e-2 * (1 + float(start.norm())) if t == 1 else 0.0)
        damped = 8**4 * theta**2 * (1 + math.log(1 + t)) ** 2 * (total + 16 * 4)
        total += float(g @ g)
        point = point - radius / math.sqrt(damped) * g
        x.grad = x.detach().clone()
        optimizer.step()
        torch.testing.assert_close(x.detach(), point, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_state_is_carried_to_a_new_subspace(shape):
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = optim.Frugal([p], lr=1.0, rank=2, update_gap=2, selector="svd", renewal="reproject", free_lr_scale=0.0)
    for g in gradients[:2]:
        p.grad = g.clone()
        optimizer.step()
    old = {name: optimizer.state[p][name].clone() for name in ("basis", "exp_avg", "exp_avg_sq")}
    p.grad = gradients[2].clone()
    optimizer.step()
    new = optimizer.state[p]
    rotation = new["basis"].mT @ old["basis"]
    wide = shape[0] <= shape[1]
    turn = lambda r, c: r @ c if wide else c @ r.mT
    seen = new["basis"].mT @ gradients[2] if wide else gradients[2] @ new["basis"]
    torch.testing.assert_close(new["exp_avg"], 0.9 * turn(rotation, old["exp_avg"]) + 0.1 * seen)
    torch.testing.assert_close(new["exp_avg_sq"], 0.999 * turn(rotation.square(), old["exp_avg_sq"]) + 0.001 * seen.square())
    with pytest.raises(ValueError, match="renewal must be 'discard'"):
        optim.Frugal([p], renewal="reproject")
