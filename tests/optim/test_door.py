"""What optimizers refuse at the door, and what state they refuse to load."""

import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim


def parameter(n=4, dtype=torch.float32):
    p = torch.nn.Parameter(torch.ones(n, dtype=dtype))
    p.grad = torch.ones_like(p)
    return p


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"betas": 0.9}, ValueError, "betas must be 2 numbers, got 0.9"),
        ({"betas": (0.9,)}, ValueError, "betas must be 2 numbers"),
        ({"betas": (0.9, 0.99, 0.999)}, ValueError, "betas must be 2 numbers"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\]"),
        ({"lr": "abc"}, ValueError, "lr must be a finite number >= 0, got 'abc'"),
        ({"lr": None}, ValueError, "lr must be"),
        ({"lr": True}, ValueError, "lr must be"),
        ({"lr": math.nan}, ValueError, "lr must be"),
        ({"storage": "bf16"}, ValueError, "storage must be a Storage"),
        ({"storage": optim.BFloat16}, ValueError, "storage must be a Storage"),
        ({"compile": "yes"}, ValueError, "compile must be True or False, got 'yes'"),
        ({"maximize": "no"}, ValueError, "maximize must be True or False, got 'no'"),
        ({"nonfinite": "warn"}, ValueError, "nonfinite must be one of"),
        ({"momentum": 0.9}, TypeError, "Adam has no argument 'momentum'"),
        ({"weigth_decay": 0.1}, TypeError, "did you mean 'weight_decay'"),
    ],
)
def test_an_illegal_argument_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        optim.Adam([parameter()], **arguments)


def test_a_group_is_checked_like_the_constructor():
    with pytest.raises(ValueError, match="maximize must be True or False"):
        optim.Adam([{"params": [parameter()], "maximize": "no"}])
    with pytest.raises(ValueError, match="betas must be 2 numbers"):
        optim.Adam([{"params": [parameter()], "betas": 0.9}])


@pytest.mark.parametrize("arguments", [{"block": 0}, {"min_size": 1.5}, {"block": True}])
def test_a_storage_checks_its_numbers(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be a whole number"):
        optim.Blockwise8bit(**arguments)


@pytest.mark.parametrize("precision", ["bf16", torch.int64])
def test_state_has_a_floating_point_precision(precision):
    with pytest.raises(ValueError, match=r"floating-point torch\.dtype"):
        optim.like(torch.ones(2), precision=precision)


def test_a_rate_that_becomes_nan_is_named():
    optimizer = optim.Adam([parameter()])
    optimizer.step()
    optimizer.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr of a parameter group is nan"):
        optimizer.step()


def test_a_gradient_that_turns_sparse_is_refused_by_name():
    p = parameter()
    optimizer = optim.Adam([("weight", p)])
    optimizer.step()
    p.grad = torch.ones(4).to_sparse()
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients \(parameter 'weight'"):
        optimizer.step()


def test_another_optimizer_s_state_is_refused():
    lion, adam = optim.Lion([parameter()]), optim.Adam([parameter()])
    lion.step()
    with pytest.raises(ValueError, match="not one of Adam: its parameter groups have no eps"):
        adam.load_state_dict(lion.state_dict())


@pytest.mark.parametrize("storages", [(None, None), (optim.Blockwise8bit(block=64), optim.Blockwise8bit(block=32))])
def test_state_of_another_size_is_refused(storages):
    sizes = (8192, 4096) if storages[0] is None else (8192, 8192)
    saved = optim.Adam([parameter(sizes[0])], storage=storages[0])
    saved.step()
    p = parameter(sizes[1])
    loading = optim.Adam([p], storage=storages[1])
    loading.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match=r"the loaded state 'exp_avg(_scale)?' has \d+ numbers where"):
        loading.step()


def test_the_solution_shown_twice_is_the_solution():
    p = parameter()
    optimizer = optim.Nesterov([p], lr=0.1)
    for _ in range(3):
        optimizer.step()
    held = p.detach().clone()
    with optimizer.solution():
        once = p.detach().clone()
        with optimizer.solution():
            assert torch.equal(p, once)
        assert torch.equal(p, once)
    assert torch.equal(p, held)
    assert not torch.equal(once, held)


def test_padding_stays_out_of_a_block_s_scale():
    p = torch.nn.Parameter(torch.randn(5000, generator=torch.Generator().manual_seed(0)))
    optimizer = optim.Adam8bit([p], eps=0.0, weight_decay=0.1)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.isfinite().all()


def test_a_shared_number_is_up_to_date_when_a_parameter_returns():
    generator = torch.Generator().manual_seed(0)
    # The one that rests comes first, so that its copy is the first to be found.
    rests, works = (torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64)) for _ in range(2))
    optimizer = optim.DoG([rests, works], reps_rel=1e-3)
    total = 0.0
    for t in range(9):
        gradients = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        works.grad = gradients[0]
        rests.grad = None if 3 <= t < 6 else gradients[1]
        total += sum(float(p.grad.square().sum()) for p in (rests, works) if p.grad is not None)
        optimizer.step()
        held = [s[name] for s in optimizer.state.values() for name in s if name == "gradients"]
        assert all(float(x) == pytest.approx(total, rel=1e-12) for x in held)
    assert held


def test_an_estimate_that_is_not_finite_is_skipped_or_an_oracle_refused():
    model = torch.nn.Linear(3, 2)
    objective = fl.Objective(model, torch.nn.functional.cross_entropy)
    batch = objective(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0]))
    optimizer = optim.Sophia(model.parameters(), nonfinite="skip")
    optimizer.estimate = lambda name, realisation, t: {p: torch.full_like(p, math.nan) for p in realisation.variables.values()}
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    params = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(fl.MissingOracle, match=r"Sophia.update\(\) takes gradients only"):
        optimizer.update(params, params, optimizer.init(params))


def test_a_hint_is_of_what_can_be_given():
    with pytest.raises(TypeError, match="AdamGS has no argument 'lr'; known: horizon"):
        optim.AdamGS([nn.Parameter(torch.ones(2))], lr=0.1)


def test_group_values_that_come_from_other_arguments_are_checked():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"betas must be 1 numbers, got 0\.9"):
        optim.AdamGS([{"params": [p], "betas": 0.9}])
    with pytest.raises(ValueError, match="max_update must be a finite number > 0, got None"):
        optim.AdaBelief([{"params": [p], "max_update": None}], max_update=10.0)


def test_what_selects_a_rule_may_change_between_steps():
    ends = []
    for late in (False, True):
        p = nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = optim.SGDSaI([p], momentum=0.0 if late else 0.9)
        for t in range(3):
            optimizer.param_groups[0]["momentum"] = 0.9 if t or not late else 0.0
            p.grad = torch.tensor([1.0, 2.0], dtype=torch.float64)
            optimizer.step()
        ends.append(optimizer.state[p])
    assert all("momentum_buffer" in state or any(isinstance(v, torch.Tensor) and v.ndim for v in state.values()) for state in ends)


def test_a_rule_around_another_warns_once():
    with pytest.warns(UserWarning) as found:
        optim.XGrad([nn.Parameter(torch.ones(2))], base="ademamix", warmup_steps=10)
    assert len(found) == 1
