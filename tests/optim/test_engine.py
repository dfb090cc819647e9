"""What the engine does between a rule and torch: plans, packing, alarms, compiled kernels."""

import math

import pytest
import torch
from torch import nn

from fallline import optim
from fallline.core.errors import NonFiniteError


def parameter(*shape, dtype=torch.float32, gradient=1.0):
    p = nn.Parameter(torch.ones(shape, dtype=dtype))
    p.grad = torch.full_like(p, gradient)
    return p


@pytest.mark.parametrize("compile", [False, True])
def test_autograd_notices_that_parameters_have_moved(compile):
    small, large = nn.Linear(16, 16), nn.Linear(300, 300)
    optimizer = optim.Adam([*small.parameters(), *large.parameters()], compile=compile)
    x = small(torch.ones(2, 16, requires_grad=True)).sum() ** 2
    x.backward(retain_graph=True)
    large(torch.ones(2, 300)).sum().backward()
    before = [p._version for p in optimizer.param_groups[0]["params"]]
    optimizer.step()
    assert all(p._version > v for p, v in zip(optimizer.param_groups[0]["params"], before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.backward()


def test_storage_stays_the_user_s():
    p = parameter(10)
    optim.Adam([p]).step()
    p.data.resize_(100)
    assert p.untyped_storage().nbytes() == 400


@pytest.mark.parametrize("block", [64, 1024, 2048, 2**20, 2**21])
def test_compiled_blocks_of_any_size(block):
    moved = []
    for compile in (False, True):
        p = nn.Parameter(torch.randn(3 * 2048, generator=torch.Generator().manual_seed(0)))
        start = p.detach().clone()
        optimizer = optim.SGDM8bit([p], lr=0.01, block=block, min_size=1, compile=compile)
        for t in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
            optimizer.step()
        moved.append(p.detach() - start)
    assert moved[0].abs().mean() > 1e-3
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-3, atol=1e-3)


def test_a_parameter_put_in_another_s_place_is_the_one_that_moves():
    old = parameter(10)
    optimizer = optim.Adam([old], lr=0.1)
    optimizer.step()
    new = parameter(10)
    optimizer.state[new] = optimizer.state.pop(old)
    optimizer.param_groups[0]["params"][0] = new
    stays = old.detach().clone()
    optimizer.step()
    assert torch.equal(old, stays)
    assert (new < 1).all()


def test_a_state_can_be_loaded_again_and_again():
    p = parameter(10)
    optimizer = optim.Adam([p])
    for _ in range(3):
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[p]["step"] == 3


@pytest.mark.parametrize("n", [4, 300])
def test_data_that_is_transposed_or_cut_in_place_is_followed(n):
    ours, theirs = parameter(n, n), parameter(n, n)
    one, two = optim.Momentum([ours], lr=0.1, momentum=0.0), torch.optim.SGD([theirs], lr=0.1)
    for change in (lambda t: t, lambda t: t.t(), lambda t: t[: n // 2]):
        for p, optimizer in ((ours, one), (theirs, two)):
            p.data = change(p.data)
            p.grad = torch.arange(p.numel(), dtype=p.dtype).view(p.shape) / p.numel()
            if change(torch.ones(n, n)).shape != (n, n):
                optimizer.state.clear()
            optimizer.step()
        torch.testing.assert_close(ours.detach(), theirs.detach())


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("make", [optim.Adam, optim.RMSprop])
@pytest.mark.parametrize("n", [100, 100_000])
def test_an_average_that_overflows_is_reported(make, compile, n):
    p = parameter(n, gradient=1e25)
    optimizer = make([p], compile=compile)
    optimizer.step()
    with pytest.raises(NonFiniteError):
        optimizer.step()


def test_a_half_precision_point_that_overflows_is_reported():
    p = nn.Parameter(torch.full((10,), 65000.0, dtype=torch.float16))
    p.grad = torch.full_like(p, -100.0)
    optimizer = optim.SGD([p], lr=100.0)
    optimizer.step()
    with pytest.raises(NonFiniteError):
        optimizer.step()


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 2e38), (torch.float64, 1e200)])
def test_large_finite_gradients_are_not_skipped(dtype, value):
    params = [parameter(4, dtype=dtype, gradient=value) for _ in range(3)]
    optimizer = optim.Lion(params, nonfinite="skip")
    optimizer.step()
    assert all((p != 1).all() for p in params)
    params[0].grad[0] = math.nan
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("n", [10, 100_000])
def test_gradients_more_precise_than_parameters_stay_so(n):
    p = nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    p.grad = torch.full((n,), 1.001)
    optimizer = optim.Adagrad([p])
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["sum"], torch.full((n,), 1.001**2))


@pytest.mark.parametrize("make", [optim.Shampoo, lambda p: optim.GaLore(p, rank=2), lambda p: optim.Frugal(p, selector="svd")])
def test_autocast_does_not_reach_the_rule(make):
    points = []
    for enabled in (False, True):
        p = nn.Parameter(torch.ones(6, 5))
        optimizer = make([p])
        for t in range(3):
            p.grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(t))
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step()
        points.append(p.detach())
    assert torch.equal(*points)


def test_groups_that_torch_s_averaging_schedule_marked_make_an_optimizer():
    optimizer = optim.Adam([parameter(4)])
    torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05)
    assert optim.Adam(optimizer.param_groups).param_groups[0]["swa_lr"] == 0.05


@pytest.mark.parametrize(("name", "value", "words"), [
    ("lr", -1.0, "lr must be"), ("betas", (2, 3), "betas"), ("maximize", "no", "maximize must be"), ("amsgrad", True, "amsgrad=True"),
])
def test_values_in_a_state_dictionary_are_checked(name, value, words):
    optimizer = optim.Adam([parameter(4)])
    saved = optimizer.state_dict()
    saved["param_groups"][0][name] = value
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(saved)


def test_momentum_starts_anew_when_it_returns():
    p = parameter(3, 3)
    optimizer = optim.Shampoo([p], lr=1.0, momentum=0.9)
    optimizer.step()
    p.grad = torch.zeros_like(p)
    for momentum in (0.0, 0.9):
        optimizer.param_groups[0]["momentum"] = momentum
        before = p.detach().clone()
        optimizer.step()
        assert torch.equal(p, before)


def test_the_pure_form_starts_what_an_override_adds():
    p = torch.eye(3)
    optimizer = optim.Shampoo([nn.Parameter(p.clone())])
    state = optimizer.init([p])
    new, state = optimizer.update([p], [torch.ones(3, 3)], state, momentum=0.9)
    assert new[0].isfinite().all()
    assert "momentum" in state[0]


@pytest.mark.parametrize("side", [2, 3, 32])
@pytest.mark.parametrize("selector", ["svd", "random", "columns", "randk"])
def test_the_smallest_density_keeps_one_dimension(selector, side):
    p = parameter(side, side)
    optimizer = optim.Frugal([p], selector=selector, density=0.001)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].numel() >= 1


@pytest.mark.parametrize("seed", [1.5, None, "a", True])
def test_a_seed_is_a_whole_number(seed):
    for make in (optim.Sophia, optim.Frugal):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            make([parameter(3, 3)], seed=seed)


def test_the_suggested_first_step_is_not_warned_of(recwarn):
    p = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="use reps_rel=") as found:
        optim.DoG([p], lr=0.1, reps_rel=1e-9).step()
    suggested = float(str(found[0].message).split("use reps_rel=")[1].split()[0])
    recwarn.clear()
    optim.DoG([p], lr=0.1, reps_rel=suggested).step()
    assert not recwarn.list
