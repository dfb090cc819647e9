"""Saddle-free Newton against its formulas: dense steps, Krylov steps, the search over damping, saddles escaped."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core import tree
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.optim import SaddleFreeNewton, abs_hessian_step

GRID = [10.0**i for i in range(-6, 2)]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def network(*layers):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), *(layers or (nn.Tanh(),)), nn.Linear(5, 3)).double()


def data(seed=0, n=12):
    return normal(n, 4, seed=seed), torch.randint(3, (n,), generator=fl.Key(seed).generator())


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def at(model, x, y):
    """The loss as a function of flat weights."""
    shapes = {n: p.detach() for n, p in model.named_parameters()}
    return lambda v: cross_entropy(torch.func.functional_call(model, tree.unflatten(v, shapes), (x,)), y)


def best_step(f, theta, V, lr=1.0, grid=GRID):
    """The step of the paper in the span of V, from dense derivatives."""
    g, H = torch.func.grad(f)(theta), torch.func.hessian(f)(theta)
    Hs, gs = V.T @ H @ V, V.T @ g
    values, U = torch.linalg.eigh(Hs)
    steps = [-lr * V @ (U @ ((U.T @ gs) / (values.abs() + lam))) for lam in grid]
    losses = [float(f(theta + s)) for s in steps]
    return steps[min(range(len(grid)), key=losses.__getitem__)]


def krylov(f, theta, k, previous=None):
    g, H = torch.func.grad(f)(theta), torch.func.hessian(f)(theta)
    vectors = [g]
    for _ in range(k - 1):
        q = torch.linalg.qr(torch.stack(vectors, 1)).Q
        vectors.append(H @ q[:, -1])
    return torch.linalg.qr(torch.stack([*vectors, *([] if previous is None else [previous])], 1)).Q


def test_the_absolute_step():
    H = normal(6, 6)
    H, g = H + H.T, normal(6, seed=1)
    values, U = torch.linalg.eigh(H)
    assert float(values[0]) < 0
    expected = -torch.linalg.solve(U @ torch.diag(values.abs()) @ U.T + 0.3 * torch.eye(6), g)
    torch.testing.assert_close(abs_hessian_step(H, g, 0.3), expected)
    assert float(abs_hessian_step(H, g) @ g) < 0
    for bad in ((H[:5], g, 0.0), (H, g[:5], 0.0), (H, g, -1.0)):
        with pytest.raises(ValueError, match=r"H must be|lam must be"):
            abs_hessian_step(*bad)


@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_the_whole_space_is_the_dense_step(lr):
    model = network()
    optimizer = SaddleFreeNewton(model.parameters(), lr=lr, krylov=None)
    objective, theta = fl.Objective(model, cross_entropy), flat(model)
    for t in range(5):
        x, y = data(t)
        theta = theta + best_step(at(model, x, y), theta, torch.eye(43, dtype=torch.float64), lr)
        optimizer.step(objective(x, y))
        torch.testing.assert_close(flat(model), theta, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("krylov_size", [1, 4])
def test_the_krylov_step_has_the_previous_step_in_its_space(krylov_size):
    model = network()
    optimizer = SaddleFreeNewton(model.parameters(), krylov=krylov_size)
    objective, theta, previous = fl.Objective(model, cross_entropy), flat(model), None
    for t in range(4):
        x, y = data(t)
        f = at(model, x, y)
        step = best_step(f, theta, krylov(f, theta, krylov_size, previous))
        theta, previous = theta + step, step
        optimizer.step(objective(x, y))
        torch.testing.assert_close(flat(model), theta, rtol=1e-6, atol=1e-7)
    assert objective.counts["hvps"] == 4 * krylov_size + 3 and objective.counts["gradients"] == 8


def test_inner_steps_have_gradients_of_their_own_in_one_space():
    model, (x, y) = network(), data()
    f, theta = at(model, x, y), flat(model)
    V = krylov(f, theta, 6)
    values, U = torch.linalg.eigh(V.T @ torch.func.hessian(f)(theta) @ V)
    for _ in range(3):
        inside = V.T @ torch.func.grad(f)(theta)
        trials = [theta - V @ (U @ ((U.T @ inside) / (values.abs() + lam))) for lam in GRID]
        theta = min(trials, key=lambda v: float(f(v)))
    SaddleFreeNewton(model.parameters(), krylov=6, inner_steps=3).step(fl.Objective(model, cross_entropy)(x, y))
    torch.testing.assert_close(flat(model), theta, rtol=1e-7, atol=1e-8)


def test_only_a_decrease_is_taken_and_damping_grows_until_there_is_one():
    cliff = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    problem = fl.Smooth(lambda x: torch.where(x[0] > 1 - 1e-4, x[0] ** 2, 10.0), cliff.detach())
    SaddleFreeNewton([cliff], damping_grid=(1e-3,)).step(problem.bind(cliff))
    # 2 / (2 + λ) is below 1e-4 for the first time at λ = 1e-3 · 10^8.
    assert cliff.item() == pytest.approx(1 - 2 / (2 + 1e5))
    wall = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    problem = fl.Smooth(lambda x: torch.where(x[0] == 1, x[0] ** 2, math.nan), wall.detach())
    SaddleFreeNewton([wall]).step(problem.bind(wall))
    assert wall.item() == 1


def test_the_loss_of_a_batch_never_rises():
    model, (x, y) = network(), data()
    optimizer, objective = SaddleFreeNewton(model.parameters(), krylov=10), fl.Objective(model, cross_entropy)
    losses = [float(optimizer.step(objective(x, y))) for _ in range(12)]
    assert all(b <= a for a, b in itertools.pairwise(losses)) and losses[-1] < 1e-2


def test_a_saddle_is_left_where_newton_goes_to_it():
    problem = fl.Smooth(lambda x: x[0] ** 2 / 2 + 1e-3 * (x[1] ** 4 / 4 - x[1] ** 2 / 2), torch.tensor([1.0, 1e-3]).double())
    result = fl.solve(problem, fl.Train(SaddleFreeNewton), fl.Budget(steps=30))
    assert abs(abs(float(result.x[1])) - 1) < 1e-3 and abs(float(result.x[0])) < 1e-3
    x = problem.x0
    for _ in range(30):
        x = x - torch.linalg.solve(problem.hessian(x), problem.gradient(x))
    assert float(x.norm()) < 1e-12


def test_at_a_critical_point_nothing_moves():
    x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    SaddleFreeNewton([x]).step(fl.Smooth(lambda x: x[0] ** 2 - x[1] ** 2, x.detach()).bind(x))
    assert not x.any()


def test_maximize_ascends_and_groups_agree_on_it():
    x, y = data()
    up, down = network(), network()
    SaddleFreeNewton(up.parameters(), maximize=True).step(fl.Objective(up, lambda z, y: -cross_entropy(z, y))(x, y))
    SaddleFreeNewton(down.parameters()).step(fl.Objective(down, cross_entropy)(x, y))
    torch.testing.assert_close(flat(up), flat(down))
    with pytest.raises(ValueError, match="maximize must be the same in all groups"):
        SaddleFreeNewton([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "maximize": True}])


def test_a_resting_group_has_no_part_in_the_curvature():
    model, (x, y) = network(), data()
    first, last = list(model[0].parameters()), list(model[2].parameters())
    before = flat(model[0])
    alone = network()
    SaddleFreeNewton([{"params": first, "lr": 0.0}, {"params": last}]).step(fl.Objective(model, cross_entropy)(x, y))
    SaddleFreeNewton(alone[2].parameters()).step(fl.Objective(alone, cross_entropy)(x, y))
    assert torch.equal(flat(model[0]), before)
    torch.testing.assert_close(flat(model), flat(alone))


def test_weight_decay_is_decoupled():
    x, y = data()
    plain, decayed = network(), network()
    before = flat(plain)
    SaddleFreeNewton(plain.parameters()).step(fl.Objective(plain, cross_entropy)(x, y))
    SaddleFreeNewton(decayed.parameters(), weight_decay=0.1).step(fl.Objective(decayed, cross_entropy)(x, y))
    torch.testing.assert_close(flat(decayed), flat(plain) - 0.1 * before)


def test_masks_are_those_of_the_step():
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5))
    optimizer, objective, (x, y) = SaddleFreeNewton(model.parameters()), fl.Objective(model, cross_entropy), data()
    batch = objective(x, y)
    before = float(optimizer.step(batch))
    assert float(batch.value()) < before and int(model[1].num_batches_tracked) == 1


def test_what_is_not_finite_is_left_out_or_raised():
    model, (x, y) = network(), data()
    before = flat(model)
    SaddleFreeNewton(model.parameters(), nonfinite="skip").step(fl.Objective(model, cross_entropy)(x * math.nan, y))
    assert torch.equal(flat(model), before)
    strict = SaddleFreeNewton(model.parameters())
    strict.step(fl.Objective(model, cross_entropy)(x * math.nan, y))
    with pytest.raises(NonFiniteError):
        strict.step(fl.Objective(model, cross_entropy)(x, y))


def test_what_it_cannot_do_is_refused_by_name():
    model = network()
    optimizer = SaddleFreeNewton(model.parameters())
    for closure in (None, lambda: torch.zeros(())):
        with pytest.raises(MissingOracle, match=r"SaddleFreeNewton needs the Hessian.*objective\(batch\)"):
            optimizer.step(closure)
    with pytest.raises(MissingOracle, match=r"SaddleFreeNewton\.update"):
        optimizer.update([], [], [])
    foreign = nn.Parameter(torch.ones(2))
    foreign.grad = torch.ones(2)
    with pytest.raises(MissingOracle, match="of every parameter"):
        SaddleFreeNewton([*model.parameters(), foreign]).step(fl.Objective(model, cross_entropy)(*data()))
    with pytest.raises(MissingOracle, match="whole weights"):
        model[0].weight.device_mesh = None
        optimizer.step(fl.Objective(model, cross_entropy)(*data()))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"krylov": 0}, "krylov must.*or None"), ({"krylov": True}, "krylov must"), ({"damping_grid": ()}, "at least one"),
    ({"damping_grid": (0.0,)}, "damping_grid must"), ({"inner_steps": 0}, "inner_steps must"), ({"lr": -1.0}, "lr must")])
def test_bad_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        SaddleFreeNewton([nn.Parameter(torch.ones(2))], **arguments)


def test_a_hessian_that_is_not_finite_is_left_out_or_raised():
    x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    problem = fl.Smooth(lambda x: (x.abs() ** 1.5).sum() + x.sum(), x.detach())
    SaddleFreeNewton([x], nonfinite="skip").step(problem.bind(x))
    assert not x.any()
    with pytest.raises(NonFiniteError, match="non-finite product"):
        SaddleFreeNewton([x]).step(problem.bind(x))


def test_sparse_gradients_are_refused_by_name():
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = SaddleFreeNewton(model.named_parameters())
    with pytest.raises(RuntimeError, match=r"sparse.*'weight'.*sparse=False"):
        optimizer.step(fl.Objective(model, cross_entropy)(torch.tensor([1, 2]), torch.tensor([0, 1])))
