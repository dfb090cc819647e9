"""FRUGAL's turns: who has state and for how long, in place and in the pure form."""

import copy

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim
from fallline.optim.directions.averages import Numerator
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.scalings import Squares
from fallline.optim.directions.signed import MappedMomentum
from fallline.optim.directions.subspace import blocks_in_turn, share


def matrices(count, size=3):
    return [nn.Parameter(torch.randn(size, size, dtype=torch.float64, generator=fl.Key(i).generator())) for i in range(count)]


def has_state(optimizer, params):
    return [i for i, p in enumerate(params) if "exp_avg" in optimizer.state.get(p, {})]


@pytest.mark.parametrize("missed", [0, 2, 4, 5, 9])
def test_debiasing_starts_anew_with_the_state_also_after_missed_gradients(missed):
    early, late = matrices(2)
    optimizer = optim.Frugal([early, late], lr=1.0, density=1.0, update_gap=5)
    for t in range(17):
        before = [early.detach().clone(), late.detach().clone()]
        early.grad, late.grad = torch.ones(3, 3).double(), None if t == missed else torch.ones(3, 3).double()
        optimizer.step()
        # A constant gradient of 1 makes every debiased step 1.
        for p, start in zip((early, late), before, strict=True):
            expected = 0.0 if p is late and t == missed else 1.0
            torch.testing.assert_close(start - p.detach(), torch.full((3, 3), expected).double())
    assert optimizer.state[early]["step"] == 17 and optimizer.state[late]["step"] == 16


@pytest.mark.parametrize("missing", [(), (1, 2, 5), (3, 4)])
def test_the_pure_form_takes_the_same_turns(missing):
    params = matrices(4)
    optimizer = optim.Frugal(params, lr=0.1, density=0.5, update_gap=3)
    pure = [p.detach().clone() for p in params]
    state = optimizer.init(pure)
    assert [i for i, s in enumerate(state) if "exp_avg" in s]
    for t in range(13):
        grads = [torch.randn(3, 3, dtype=torch.float64, generator=fl.Key(t).fold(i).generator()) for i in range(4)]
        if t in missing:
            grads[0] = None
        pure, state = optimizer.update(pure, grads, state)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        for p, q, s in zip(params, pure, state, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-14)
            assert s["step"] == optimizer.state.get(p, {}).get("step", 0)


def test_the_pure_form_differentiates_through_turns():
    params = matrices(2)
    optimizer = optim.Frugal(params, lr=0.1, density=0.5, update_gap=2)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    point, state = [p.detach() for p in params], optimizer.init(params)
    for _ in range(5):
        point, state = optimizer.update(point, [2 * p for p in point], state, lr=lr)
    sum(p.square().sum() for p in point).backward()
    assert torch.isfinite(lr.grad) and lr.grad != 0


def test_a_run_that_is_resumed_within_a_period_goes_on_alike():
    whole, half = matrices(5), matrices(5)

    def train(optimizer, params, steps):
        for t in steps:
            for i, p in enumerate(params):
                p.grad = None if i == 0 and t in (1, 4, 5) else torch.randn(3, 3, generator=fl.Key(t).fold(i).generator()).double()
            optimizer.step()

    make = lambda params: optim.Frugal(params, density=0.4, update_gap=4)
    train(make(whole), whole, range(20))
    first = make(half)
    train(first, half, range(10))
    second = make(half)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, half, range(10, 20))
    assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))


@pytest.mark.parametrize("order", ["random", "ascending"])
@pytest.mark.parametrize("count, density", [(3, 0.67), (5, 0.4), (4, 0.75), (7, 0.3), (1, 0.25), (2, 0.1), (6, 1), (4, 0), (0, 0.5)])
def test_every_period_has_its_share_of_blocks_and_every_block_its_share_of_turns(count, density, order):
    chosen = share(density, count)
    assert chosen >= (density > 0 and count > 0)
    turns = [blocks_in_turn(period, count, density, order) for period in range(count * 2)]
    assert all(len(set(blocks)) == len(blocks) == chosen for blocks in turns)
    seen = [sum(b in blocks for blocks in turns) for b in range(count)]
    assert len(set(seen)) <= 1


def test_one_matrix_keeps_state_at_the_default_density_and_none_at_zero():
    for density, expected in ((None, [0]), (0.0, [])):
        (p,) = params = matrices(1)
        optimizer = optim.Frugal(params, density=density)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert has_state(optimizer, params) == expected


def test_blocks_take_turns_as_a_whole_in_their_order():
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(3)]
    model = nn.Sequential(nn.Embedding(5, 4), *blocks, nn.Linear(4, 5))
    optimizer = optim.Frugal.for_model(model, blocks=blocks, update_gap=1, density=0.34, order="ascending")
    weights = [[layer.weight for layer in block if isinstance(layer, nn.Linear)] for block in blocks]
    for t in range(6):
        optimizer.zero_grad()
        model(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
        for i, pair in enumerate(weights):
            assert has_state(optimizer, pair) == ([0, 1] if i == t % 3 else [])
        assert has_state(optimizer, [model[0].weight, model[-1].weight]) == [0, 1]


def test_the_rule_with_state_can_be_another():
    for options in ({"selector": "columns", "density": 1.0}, {"density": 1.0}):
        ours, theirs = matrices(1)[0], matrices(1)[0]
        optimizer = optim.Frugal([ours], lr=0.1, betas=(0.9, 0.99), update_gap=100, full=MappedMomentum(), **options)
        lion = optim.Lion([theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=1e-12)
        for t in range(4):
            ours.grad = theirs.grad = torch.randn(3, 3, generator=fl.Key(t).generator()).double()
            optimizer.step(), lion.step()
        torch.testing.assert_close(ours, theirs)


def test_hooks_run_once_in_a_process_with_a_plain_engine_optimizer():
    p = matrices(1)[0]
    optim.Optimizer(matrices(1), optim.engine.Gradient(), {"lr": 0.1})
    optimizer, calls = optim.Frugal([p]), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert calls == [1]


@pytest.mark.parametrize("make, message", [
    (lambda p: optim.Frugal(p, rank=2), "rank=2 has no effect with blocks"),
    (lambda p: optim.Frugal(p, rank=2, density=0.5, selector="svd"), r"rank=2 has no effect with density=0\.5"),
    (lambda p: optim.Frugal(p, selector="svd", order="ascending"), "order must be"),
    (lambda p: optim.Frugal(p, order="descending"), "order must be"),
    (lambda p: optim.Frugal(p, full=Quotient(Numerator(), Squares())), "'rho'"),
    (lambda p: optim.GaLore(p, rank=None), "rank must be a whole number"),
])
def test_what_would_have_no_effect_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(matrices(1))


def test_a_rule_with_state_is_a_direction():
    with pytest.raises(TypeError, match="full must be an elementwise Direction"):
        optim.Frugal(matrices(1), full=torch.optim.Adam)
