"""DoG's start, its average, and the first step that rounding swallows; the same average beside any optimizer."""

import copy
import warnings

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim


def descend(p, optimizer, steps):
    for _ in range(steps):
        p.grad = p.detach() - 1
        optimizer.step()


def start(dtype=torch.float32, size=1000):
    return nn.Parameter(torch.randn(size, generator=fl.Key(0).generator()).to(dtype))


@pytest.mark.parametrize("storage", [optim.BFloat16(), optim.Blockwise8bit(min_size=1)])
@pytest.mark.parametrize("make", [optim.DoG, optim.LDoG])
def test_the_start_is_kept_whole_by_every_storage(make, storage):
    p = start(size=300)
    x0 = p.detach().clone()
    optimizer = make([p], storage=storage)
    descend(p, optimizer, 1)
    assert torch.equal(optimizer.state[p]["start"], x0)
    assert float(optimizer.state[p]["radius"].max()) == pytest.approx(1e-6 * (1 + float(x0.norm())), rel=1e-3)


@pytest.mark.parametrize("make", [optim.DoG, optim.LDoG])
@pytest.mark.parametrize("dtype, reps_rel, silent", [
    (torch.bfloat16, 1e-6, False), (torch.float16, 1e-6, False), (torch.float32, 1e-8, False),
    (torch.float32, 1e-6, True), (torch.float64, 1e-8, True), (torch.bfloat16, 1e-2, True),
])
def test_a_first_step_below_rounding_is_warned_of_once(make, dtype, reps_rel, silent):
    p = start(dtype)
    optimizer = make([p], reps_rel=reps_rel)
    if silent:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            descend(p, optimizer, 2)
        return
    with pytest.warns(UserWarning, match=f"reps_rel={reps_rel:g} .*reps_rel=.* or more") as found:
        descend(p, optimizer, 3)
    assert len(found) == 1


def test_a_start_at_zero_is_not_warned_of():
    p = nn.Parameter(torch.zeros(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        descend(p, optim.DoG([p], reps_rel=1e-8), 1)
    assert bool((p != 0).all())


@pytest.mark.parametrize("gamma", [0.0, 3.0, 8.0])
def test_the_average_is_the_same_inside_dog_and_beside_it(gamma):
    model = nn.Linear(3, 2).double()
    optimizer, average = optim.DoG(model.parameters(), reps_rel=1e-2, gamma=gamma), optim.PolynomialAverage(model, gamma=gamma)
    objective = fl.Objective(model, nn.functional.mse_loss)
    iterates = []
    for t in range(6):
        x = torch.randn(5, 3, dtype=torch.float64, generator=fl.Key(t).generator())
        optimizer.step(objective(x, x[:, :2]))
        average.update_parameters(model)
        iterates.append(model.weight.detach().clone())
    expected = torch.zeros_like(iterates[0])
    for t, w in enumerate(iterates, 1):
        a = (gamma + 1) / (t + gamma)
        expected = (1 - a) * expected + a * w
    torch.testing.assert_close(average.module.weight.detach(), expected)
    with optimizer.solution():
        torch.testing.assert_close(model.weight.detach(), expected)
    if gamma == 0:
        torch.testing.assert_close(expected, torch.stack(iterates).mean(0))


def test_the_average_is_a_module_that_is_copied_saved_and_loaded():
    model = nn.Linear(2, 2)
    average = copy.deepcopy(optim.PolynomialAverage(model))
    average.update_parameters(model)
    other = optim.PolynomialAverage(nn.Linear(2, 2))
    other.load_state_dict(average.state_dict())
    for twin in (average, other):
        with torch.no_grad():
            model.weight.fill_(1.0)
        twin.update_parameters(model)
    assert torch.equal(average.module.weight, other.module.weight)
    with pytest.raises(ValueError, match="gamma must be"):
        optim.PolynomialAverage(model, gamma=-1)
