"""M-FAC against its dense Fisher matrix, and what the engine promises of rules that see a group as one vector."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim
from fallline.optim.averaging import PolynomialDecay
from fallline.optim.directions.fisher import WindowedFisher
from fallline.optim.engine.parts import DecoupledDecay, Direction
from fallline.optim.engine.state import State, like

SHAPES = ((3, 4), (5,), (), (2, 3, 2))


def parameters(dtype=torch.float64, seed=0):
    return [nn.Parameter(torch.randn(shape, dtype=dtype, generator=fl.Key(seed).fold(i).generator())) for i, shape in enumerate(SHAPES)]


def gradient(p, t, i):
    return torch.randn(p.shape, dtype=p.dtype, generator=fl.Key(t).fold("g", i).generator())


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def m_fac(x, gradients, m, damp, lr, momentum=0.0, decay=0.0):
    """By the dense matrix: rows of zeros until the window is full, decay inside the window, momentum behind it."""
    rows, v = [torch.zeros_like(x)] * m, torch.zeros_like(x)
    for g in gradients:
        g = g + decay * x
        rows = [*rows[1:], g]
        window = torch.stack(rows)
        fisher = damp * torch.eye(len(x), dtype=x.dtype) + window.mT @ window / m
        v = momentum * v + (1 - momentum) * torch.linalg.solve(fisher, g)
        x = x - lr * v
    return x


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"weight_decay": 0.3},
                                      {"damp": 1e-2, "momentum": 0.5, "weight_decay": 0.1}])
def test_steps_are_those_of_the_dense_matrix(settings):
    params = parameters()
    start, m, lr = flat(params), 4, 1e-3
    optimizer = optim.MFAC(params, lr=lr, m=m, **settings)
    given = []
    for t in range(7):
        for i, p in enumerate(params):
            p.grad = gradient(p, t, i)
        given.append(flat([p.grad for p in params]))
        optimizer.step()
    expected = m_fac(start, given, m, settings.get("damp", 1e-5), lr, settings.get("momentum", 0.0), settings.get("weight_decay", 0.0))
    torch.testing.assert_close(flat(params), expected, rtol=1e-7, atol=1e-9)


def test_defaults_are_the_paper_s():
    group = optim.MFAC(parameters()).param_groups[0]
    assert (group["lr"], group["damp"], group["momentum"], group["weight_decay"]) == (1e-3, 1e-5, 0.0, 0.0)
    assert optim.MFAC(parameters()).direction.m == 512


def test_float32_loses_little_at_a_tiny_damping():
    ends = []
    for dtype in (torch.float32, torch.float64):
        params = [p.detach().to(dtype).requires_grad_() for p in parameters(torch.float32)]
        optimizer = optim.MFAC(params, lr=1e-3, m=4, damp=1e-6)
        for t in range(6):
            for i, p in enumerate(params):
                p.grad = gradient(torch.empty(p.shape), t, i).to(dtype)
            optimizer.step()
        ends.append(flat(params).double())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)


def solved(rows, damp):
    """F⁻¹ of the newest row in rational numbers, by elimination."""
    m, d = rows.shape
    whole = [[Fraction(x) for x in row] for row in rows.double().tolist()]
    fisher = [[sum(row[i] * row[j] for row in whole) / m + (i == j) * Fraction(damp) for j in range(d)] for i in range(d)]
    table = [[*row, x] for row, x in zip(fisher, whole[-1], strict=True)]
    for i in range(d):
        table[i] = [x / table[i][i] for x in table[i]]
        for j in (j for j in range(d) if j != i):
            table[j] = [x - table[j][i] * y for x, y in zip(table[j], table[i], strict=True)]
    return torch.tensor([float(row[-1]) for row in table], dtype=torch.float64)


@pytest.mark.parametrize("size", [1e3, 1e5, 1e6])
@pytest.mark.parametrize("make", [lambda p: optim.MFAC(p, lr=1.0, m=4, damp=1e-6),
                                  lambda p: optim.SparseMFAC(p, lr=1.0, m=4, damp=1e-6, density=1.0)])
def test_nearly_parallel_gradients_cost_no_digits_however_small_the_damping(make, size):
    p = nn.Parameter(torch.zeros(6))
    optimizer = make([p])
    generator = fl.Key(0).generator()
    base = torch.randn(6, generator=generator)
    rows = size * (base + 1e-2 * torch.randn(4, 6, generator=generator))
    for g in rows:
        p.data.zero_()
        p.grad = g.clone()
        optimizer.step()
    expected = -solved(rows, 1e-6)
    assert float((p.detach() - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("size", [1.0, 1e6, 1e9])
def test_gradients_that_are_all_the_same_are_divided_by_their_square(size):
    """Where S is singular to the last digit of its own precision, its factor exists all the same."""
    p = nn.Parameter(torch.zeros(100))
    optimizer = optim.MFAC([p], lr=1.0, m=32, damp=1e-5, nonfinite="skip")
    for t in range(1, 41):
        p.data.zero_()
        p.grad = size * torch.ones(100)
        optimizer.step()
        expected = -size / (1e-5 + 100 * size**2 * min(t, 32) / 32)
        torch.testing.assert_close(p.detach(), torch.full((100,), expected), rtol=0.1, atol=0)


def test_memory_is_what_the_state_takes():
    params = parameters(torch.float32)
    optimizer = optim.MFAC([{"params": params[:2]}, {"params": params[2:]}], m=6)
    for i, p in enumerate(params):
        p.grad = gradient(p, 0, i)
    optimizer.step()
    kept = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert optimizer.memory == sum(v.numel() * v.element_size() for v in kept) == 7 * 4 * len(flat(params)) + 2 * 8 * 36


def test_bad_settings_are_refused():
    for settings, said in (({"m": 0}, "m must be a whole number"), ({"m": 2.5}, "got 2.5"),
                           ({"damp": 0.0}, "damp must be a finite number > 0")):
        with pytest.raises(ValueError, match=said):
            optim.MFAC(parameters(), **settings)


# What the engine promises of every such rule.


def test_state_is_shown_in_slices_and_products_with_the_first_parameter():
    params = parameters()
    optimizer = optim.MFAC(params, m=3)
    for t in range(2):
        for i, p in enumerate(params):
            p.grad = gradient(p, t, i)
        optimizer.step()
    for i, p in enumerate(params):
        state = optimizer.state[p]
        assert state["window"].shape == (3, *p.shape) and state["momentum"].shape == p.shape and state["step"] == 2
        torch.testing.assert_close(state["window"][1], gradient(p, 1, i))
        assert ("gram" in state) == (i == 0)
    rows = torch.cat([optimizer.state[p]["window"].reshape(3, -1) for p in params], 1)
    torch.testing.assert_close(optimizer.state[params[0]]["gram"], rows @ rows.mT)


def test_every_group_is_a_vector_of_its_own_whatever_its_rate():
    together, apart = parameters(), parameters()
    one = optim.MFAC([{"params": together[:2]}, {"params": together[2:], "lr": 1e-4}], m=3)
    others = [optim.MFAC(apart[:2], m=3), optim.MFAC(apart[2:], m=3, lr=1e-4)]
    for t in range(5):
        for params in (together, apart):
            for i, p in enumerate(params):
                p.grad = gradient(p, t, i)
        for optimizer in (one, *others):
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 if t == 1 else group["lr"] / 2  # equal rates, and then again as they were
    assert torch.equal(flat(together), flat(apart))


@pytest.mark.parametrize("frozen", [False, True])
def test_without_a_gradient_a_parameter_is_zeros_and_stays(frozen):
    params, start = parameters(), None
    optimizer = optim.MFAC(params, m=4, weight_decay=0.2)
    rests = lambda t: t in (2, 3)
    x, rows = flat(params), [torch.zeros(len(flat(params)), dtype=torch.float64)] * 4
    mask = torch.cat([torch.full((p.numel(),), i != 1) for i, p in enumerate(params)])
    for t in range(6):
        for i, p in enumerate(params):
            p.grad = None if i == 1 and rests(t) else gradient(p, t, i)
        params[1].requires_grad_(not (frozen and rests(t)))
        start = params[1].detach().clone()
        g = flat([gradient(p, t, i) for i, p in enumerate(params)]) + 0.2 * x
        moves = mask | (not rests(t))
        g = g * moves
        rows = [*rows[1:], g]
        window = torch.stack(rows)
        x = x - 1e-3 * moves * torch.linalg.solve(1e-5 * torch.eye(len(x), dtype=x.dtype) + window.mT @ window / 4, g)
        optimizer.step()
        assert torch.equal(start, params[1]) == rests(t)
        assert {s["step"] for s in optimizer.state.values()} == {t + 1}
    torch.testing.assert_close(flat(params), x, rtol=1e-7, atol=1e-9)


def test_frozen_parameters_take_no_memory_and_late_ones_are_sent_to_their_own_group():
    params = parameters()
    params[1].requires_grad_(False)
    optimizer = optim.MFAC(params, m=3)
    assert optimizer.memory == 4 * 8 * (len(flat(params)) - 5) + 8 * 9
    for i, p in enumerate(params):
        p.grad = gradient(p, 0, i) if i != 1 else None
    optimizer.step()
    params[1].requires_grad_(True)
    optimizer.step()
    assert params[1] not in optimizer.state
    params[1].grad = gradient(params[1], 0, 1)
    with pytest.raises(ValueError, match="group of their own with add_param_group"):
        optimizer.step()


def test_a_new_plan_keeps_the_window_where_it_lies():
    params = parameters()
    optimizer = optim.MFAC([{"params": params[:2]}, {"params": params[2:], "lr": 0.0}], m=3)
    windows = []
    changes = (lambda: None, lambda: optimizer.param_groups[1].update(lr=0.1), lambda: setattr(params[0], "grad", None),
               lambda: optimizer.load_state_dict(optimizer.state_dict()),
               lambda: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())))
    for t, change in enumerate(changes):
        for i, p in enumerate(params):
            p.grad = gradient(p, t, i)
        change()
        optimizer.step()
        windows.append(optimizer.state[params[0]]["window"])  # alive, so that no place is used twice
        rows = torch.cat([optimizer.state[p]["window"].reshape(3, -1) for p in params[:2]], 1)
        torch.testing.assert_close(optimizer.state[params[0]]["gram"], rows @ rows.mT)
    places = [window.data_ptr() for window in windows]
    assert places[0] == places[1] == places[2] and len(set(places[2:])) == 3  # what was loaded may be another optimizer's


def test_one_precision_a_group():
    params = [nn.Parameter(torch.ones(2, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"torch\.float32, torch\.float64; make a parameter group of each"):
        optim.MFAC(params, m=2).step()
    mixed = optim.MFAC([params[0], params[2]], lr=0.1, m=2)  # half precision is computed in float32
    mixed.step()
    assert params[2].dtype == torch.bfloat16 and (params[2] < 1).all() and mixed.state[params[2]]["window"].dtype == torch.float32


def test_a_window_of_another_length_is_refused():
    params, others = parameters(), parameters()
    optimizer, other = optim.MFAC(params, m=3), optim.MFAC(others, m=4)
    for group in (params, others):
        for i, p in enumerate(group):
            p.grad = gradient(p, 0, i)
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"'window' has shape \(3, 3, 4\) where \(4, 3, 4\) is needed"):
        other.step()


def test_the_pure_form_leaves_absent_and_frozen_parameters_alone():
    params = parameters()
    params[1].requires_grad_(False)
    optimizer = optim.MFAC(params, m=3, momentum=0.9)
    pure = [p.detach().clone() for p in params]
    state = optimizer.init(pure)
    assert set(state[1]) == {"step"} and state[2]["window"].shape == (3,) and "gram" in state[0] and "gram" not in state[2]
    for t in range(4):
        gradients = [None if i == 1 or (i == 3 and t == 1) else gradient(p, t, i) for i, p in enumerate(params)]
        pure, state = optimizer.update(pure, gradients, state)
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
    torch.testing.assert_close(flat(params), flat(pure), rtol=1e-12, atol=1e-12)


def test_autograd_follows_the_pure_form():
    optimizer = optim.MFAC([nn.Parameter(torch.ones(3, dtype=torch.float64))], m=2)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def end(scale):
        x, state = [torch.ones(3, dtype=torch.float64)], optimizer.init([torch.ones(3, dtype=torch.float64)])
        for t in range(3):
            x, state = optimizer.update(x, [scale * (x[0] ** 2 + t)], state)
        return x[0].sum()

    (slope,) = torch.autograd.grad(end(scale), scale)
    assert float(slope) == pytest.approx(float((end(scale + 1e-5) - end(scale - 1e-5)).detach()) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("pure", [False, True])
def test_averages_and_distances_of_a_resting_parameter_are_those_of_its_point(pure):
    params = parameters()
    optimizer = fl.optim.Optimizer(params, WindowedFisher(3), {"lr": 0.1, "damp": 0.1, "momentum": 0.5, "weight_decay": 0.3,
                                                               "reps_rel": 1e-6, "eps": 1e-8},
                                   move=DecoupledDecay(), average=PolynomialDecay(), step_size=fl.optim.DistanceOverGradients())
    point, x = params[1].detach().clone(), [p.detach().clone() for p in params]
    state = optimizer.init(x)
    for t in range(4):
        gradients = [gradient(p, t, i) for i, p in enumerate(params)]
        gradients[1] = torch.zeros_like(params[1]) if t == 2 else None
        if pure:
            x, state = optimizer.update(x, gradients, state)
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
        if t < 2:
            found = state if pure else [optimizer.state[p] for p in params]
            assert torch.equal(found[1]["start"], point) and torch.allclose(found[1]["average"], point, atol=1e-12)
    if pure:
        torch.testing.assert_close(flat(x), flat(params), rtol=1e-10, atol=1e-10)


class Whole(Direction):
    """Entries of every kind."""

    scope = "joint"

    def init(self, p):
        return {"start": like(p, initial="parameter"), "table": State(rows=2, initial=3.0), "count": State((1,), torch.int32),
                "own": State(rows=1, initial=lambda x, index: x.unsqueeze(0) + index)}

    def __call__(self, g, p, s, c):
        assert s["start"].shape == p.shape and s["table"].shape == (2, *p.shape) and s["count"].dtype == torch.int32
        return g / (1 + g.norm()), {"count": s["count"] + 1, "table": s["table"] + g}


def test_entries_start_and_are_kept_as_they_were_declared():
    params = parameters(torch.float32)
    first = [p.detach().clone() for p in params]
    optimizer = fl.optim.Optimizer(params, Whole(), {"lr": 0.1}, storage=optim.Blockwise8bit(min_size=1))
    for t in range(3):
        for i, p in enumerate(params):
            p.grad = gradient(p, t, i)
        optimizer.step()
        if t == 1:  # another layout of memory does not touch the state
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, x in zip(params, first, strict=True):
        assert torch.equal(optimizer.state[p]["start"], x) and torch.equal(optimizer.state[p]["own"], x.unsqueeze(0))
    assert optimizer.state[params[0]]["count"].tolist() == [3] and "count" not in optimizer.state[params[1]]
    torch.testing.assert_close(optimizer.state[params[1]]["table"], 3 + sum(gradient(params[1], t, 1) for t in range(3)).expand(2, 5))


def test_statistics_of_tensors_are_each_parameter_s_own():
    params = parameters()
    optimizer = fl.optim.WithStepSize(params, "m-fac", fl.optim.DistanceOverGradients(over="tensor"), m=3)
    start = [p.detach().clone() for p in params]
    given = [[gradient(p, t, i) for i, p in enumerate(params)] for t in range(3)]
    for gradients in given:
        far = [(p - x).norm() for p, x in zip(params, start, strict=True)]
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
    for p, x, reached, *own in zip(params, start, far, *given, strict=True):
        torch.testing.assert_close(optimizer.state[p]["gradients"], sum((g**2).sum() for g in own))
        assert optimizer.state[p]["radius"] >= reached * (1 - 1e-12) and not torch.equal(p, x)
