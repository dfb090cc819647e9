"""What all rules that take their step from a batch's curvature share: flat vectors, state, what is refused."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.optim.whole_batch import WholeBatch, differentiated

RULES = (fl.optim.EGN, fl.optim.SaddleFreeNewton, fl.optim.TNGD)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def realisation(model, sign=1.0):
    x = torch.randn(8, 4, dtype=torch.float64, generator=fl.Key(0).generator())
    return fl.Objective(model, lambda z, y: sign * cross_entropy(z, y))(x, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))


def whole(optimizer, model, sign=1.0):
    batch = differentiated(optimizer, realisation(model, sign), "outputs", "outputs")
    assert isinstance(batch, WholeBatch)
    return batch


def groups(model, **second):
    return [{"params": list(model[0].parameters()), "lr": 0.5}, {"params": list(model[2].parameters()), "lr": 2.0, **second}]


@torch.no_grad()
@pytest.mark.parametrize("maximize", [False, True])
def test_vectors_are_of_what_is_minimised(maximize):
    model = network()
    sign = -1.0 if maximize else 1.0
    batch = whole(fl.optim.SGD(groups(model), maximize=maximize), model, sign)
    plain = realisation(model)
    gradient = torch.cat([g.flatten() for g in plain.gradient().values()])
    torch.testing.assert_close(batch.gradient, gradient)
    assert batch.value() == pytest.approx(float(plain.value()))
    torch.testing.assert_close(batch.hessian().to_dense(), plain.hessian_operator().to_dense())
    dense = batch.gauss_newton().to_dense()
    assert float(torch.linalg.eigvalsh((dense + dense.T) / 2)[0]) > -1e-12
    assert torch.equal(batch.rates, torch.tensor([0.5] * 25 + [2.0] * 18, dtype=torch.float64))
    step = torch.arange(43.0, dtype=torch.float64) / 100
    before = [p.clone() for p in model.parameters()]
    after, slope = batch.value_after(step), batch.slope(1e-7 * step)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    moved = network()
    torch.nn.utils.vector_to_parameters(torch.cat([p.flatten() for p in moved.parameters()]) - batch.rates * step, moved.parameters())
    assert after == pytest.approx(float(realisation(moved).value()))
    torch.testing.assert_close(batch.gradient_after(step), torch.cat([g.flatten() for g in realisation(moved).gradient().values()]))
    assert batch.value_after(1e-7 * step) - batch.value() == pytest.approx(slope, rel=1e-4)


@torch.no_grad()
def test_state_is_kept_by_parameter_and_new_ones_begin_at_zero():
    model = network()
    optimizer = fl.optim.SGD(model[0].parameters())
    batch = whole(optimizer, model)
    assert batch.kept("memory") is None and batch.steps_taken() == [0, 0]
    assert batch.take(batch.gradient, memory=torch.arange(25.0, dtype=torch.float64))
    assert optimizer.state[model[0].bias]["memory"].tolist() == [20.0, 21.0, 22.0, 23.0, 24.0]
    optimizer.add_param_group({"params": list(model[2].parameters())})
    later = whole(optimizer, model)
    assert later.kept("memory").tolist() == [*range(25), *[0.0] * 18]


@torch.no_grad()
def test_a_step_that_is_not_finite_keeps_nothing():
    model = network()
    optimizer = fl.optim.SGD(model.parameters(), nonfinite="skip")
    batch = whole(optimizer, model)
    bad = batch.gradient / 0
    assert not batch.take(bad, memory=batch.gradient) and batch.kept("memory") is None
    assert all(p.grad.isnan().all() for p in model.parameters())
    with batch.left_out():
        raise NonFiniteError("inside")
    strict = whole(fl.optim.SGD(model.parameters()), model)
    with pytest.raises(NonFiniteError, match="SGD met curvature"):
        strict.take(bad)
    with pytest.raises(NonFiniteError, match="inside"), strict.left_out():
        raise NonFiniteError("inside")


class Spoilt(nn.Module):
    """The identity, whose second derivative is NaN once ``factor`` is."""

    factor = 1.0

    def forward(self, x):
        return Once.apply(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return Twice.apply(g)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g):
        return g.clone()

    @staticmethod
    def backward(ctx, g):
        return g * Spoilt.factor


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("rule", [
    fl.optim.TNGD, functools.partial(fl.optim.TNGD, analog_time=1.0), functools.partial(fl.optim.SaddleFreeNewton, krylov=None),
    functools.partial(fl.optim.SaddleFreeNewton, krylov=5)], ids=["digital", "analog", "dense", "krylov"])
def test_curvature_that_becomes_nan_is_not_taken_for_the_last_step_s(rule, nonfinite, monkeypatch):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Spoilt(), nn.Linear(5, 3)).double()
    optimizer = rule(model.parameters(), nonfinite=nonfinite)
    for _ in range(2):
        optimizer.step(realisation(model))
    before = [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr(Spoilt, "factor", math.nan)
    if nonfinite == "raise":
        with pytest.raises(NonFiniteError, match=r"not finite|non-finite"):
            optimizer.step(realisation(model))
    else:
        optimizer.step(realisation(model))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(int(optimizer.state[p]["step"]) == 2 for p in model.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_processes_with_batches_of_their_own_are_refused(rule, monkeypatch):
    monkeypatch.setattr("fallline.optim.whole_batch.DistributedDataParallel", nn.Sequential)
    model = network()
    with pytest.raises(MissingOracle, match=rf"{rule.__name__} takes curvature from this process's samples alone.*bare model"):
        rule(model.parameters()).step(realisation(model))


@pytest.mark.parametrize("rule", RULES)
def test_complex_and_foreign_parameters_are_refused(rule):
    model = network()
    foreign = nn.Parameter(torch.ones(2))
    foreign.grad = torch.ones(2)
    with pytest.raises(MissingOracle, match="of every parameter it optimizes"):
        rule([*model.parameters(), foreign]).step(realisation(model))

    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.complex128))

        def forward(self, x):
            return (x.to(self.weight.dtype) @ self.weight).real

    model = Complex()
    with pytest.raises(RuntimeError, match=r"does not support complex parameters.*view_as_real"):
        rule(model.parameters()).step(realisation(model))


@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_rate_zero_moves_nothing_and_needs_nothing(rule):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = rule(model.parameters(), lr=0.0)
    optimizer.step()
    optimizer.step(realisation(model))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
