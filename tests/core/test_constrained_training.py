"""Networks under constraints: what their Lagrangian is, on which data, masks and buffers."""

import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.core.constraints import lagrangian
from fallline.core.counts import Counts

D = torch.float64


def gap(model, x, y):
    """Mean squared change of the output when the first input changes sign."""
    return (model(x) - model(x * torch.tensor([-1.0, 1, 1], dtype=x.dtype))).square().mean()


def size(model, x, y):
    return model(x).square().mean()


def problem(*layers, validation=True, **options):
    generator = fl.Key(1).generator()
    x = torch.randn(30, 3, dtype=D, generator=generator)
    y = torch.randn(30, 1, dtype=D, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), *layers, nn.Tanh(), nn.Linear(4, 1)).double()
    held_out = (x[:10] + 1, y[:10]) if validation else None
    training = fl.Training(model, nn.functional.mse_loss, (x, y), validation=held_out, batch_size=8, name="regression")
    return fl.ConstrainedTraining(training, {"gap": (gap, 0.01), "size": (size, 0.2)}, **options)


def by_hand(made, x, inputs, targets, multipliers):
    model = lambda z: torch.func.functional_call(made.model, x, (z,))
    loss = nn.functional.mse_loss(model(inputs), targets)
    return loss + multipliers[0] * (gap(model, inputs, targets) - 0.01) + multipliers[1] * (size(model, inputs, targets) - 0.2)


def test_the_lagrangian_is_loss_plus_weighted_excess_on_all_data_and_on_a_batch():
    made, multipliers = problem(), torch.tensor([2.0, 0.5], dtype=D)
    x = {name: p + 0.1 for name, p in made.x0.items()}
    whole = lagrangian(made, multipliers)
    assert whole.kind == "training" and made.kind == "constrained"
    torch.testing.assert_close(whole.value(x), by_hand(made, x, *made.data, multipliers))
    indices = torch.tensor([3, 3, 17])
    drawn = whole.draw(fl.Key(4), indices=indices)
    rows = made.data[0][indices], made.data[1][indices]
    torch.testing.assert_close(drawn.value(x), by_hand(made, x, *rows, multipliers))
    point = {name: p.clone().requires_grad_() for name, p in x.items()}
    expected = torch.autograd.grad(by_hand(made, point, *rows, multipliers), list(point.values()))
    for found, g in zip(drawn.gradient(x).values(), expected, strict=True):
        torch.testing.assert_close(found, g)
    assert not drawn.has("per_sample_gradients") and made.draw(fl.Key(4), indices=indices).has("per_sample_gradients")


def test_inequalities_are_those_of_training_and_of_held_out_data():
    made = problem()
    model = made.model
    for data, found in ((made.data, made.inequality(made.x0)), (made.validation, made.held_out(made.x0))):
        expected = torch.stack([gap(model, *data) - 0.01, size(model, *data) - 0.2])
        torch.testing.assert_close(found.detach(), expected.detach())
    observed = made.observe(made.x0)
    assert observed["excess_gap"] == pytest.approx(float(made.held_out(made.x0)[0])) and "loss" in observed
    assert problem(validation=False).held_out(made.x0) is None
    torch.testing.assert_close(made.value(made.x0), nn.functional.mse_loss(model(made.data[0]), made.data[1]).detach())


def test_masks_are_the_same_for_loss_and_constraints_and_off_where_constraints_are_judged():
    made = problem(nn.Dropout(0.5))
    multipliers = torch.tensor([0.5, 1.0], dtype=D)
    drawn = lagrangian(made, multipliers).draw(fl.Key(2), size=16)
    zero = made.draw(fl.Key(2), size=16)
    assert torch.equal(drawn.value(made.x0), drawn.value(made.x0))
    outputs = zero.outputs(made.x0)  # the masks of this key
    other = made.draw(fl.Key(2), size=16)
    other.inputs = zero.inputs * torch.tensor([-1.0, 1, 1], dtype=D)
    change = (outputs - other.outputs(made.x0)).square().mean()
    expected = nn.functional.mse_loss(outputs, zero.targets) + 0.5 * (change - 0.01) + outputs.square().mean() - 0.2
    torch.testing.assert_close(drawn.value(made.x0), expected.detach())
    assert torch.equal(made.inequality(made.x0), made.inequality(made.x0))
    made.model.eval()
    torch.testing.assert_close(made.inequality(made.x0)[1], size(made.model, *made.data) - 0.2)


def test_buffers_move_with_the_loss_alone():
    made = problem(nn.BatchNorm1d(4).double())
    model = made.model
    run = lagrangian(made, torch.ones(2, dtype=D)).on(model)
    drawn = run.draw(fl.Key(3))
    hidden = model[0](drawn.inputs)
    drawn.gradient(made.x0)
    drawn.gradient(made.x0)
    torch.testing.assert_close(model[1].running_mean, 0.1 * hidden.mean(0).detach())
    before = model[1].running_mean.clone()
    made.on(model).inequality(made.x0)
    made.on(model).held_out(made.x0)
    assert torch.equal(model[1].running_mean, before) and int(model[1].num_batches_tracked) == 1


def test_a_view_counts_on_its_own_bill():
    made, counts = problem(), Counts()
    lagrangian(made.counted(counts), torch.ones(2, dtype=D)).draw(fl.Key(0)).gradient(made.x0)
    made.counted(counts).inequality(made.x0)
    assert counts["gradients"] == 1 and counts["samples"] == 8 and counts["inequality"] == 1 and not made.counts


def test_lagrangians_of_other_problems():
    data = torch.arange(6.0, dtype=D).reshape(6, 1)
    smooth = fl.FiniteSum(lambda x, rows: (x - rows).square().mean(), data, torch.zeros(1, dtype=D), batch_size=2)
    made = lagrangian(fl.Constrained(smooth, inequality=lambda x: torch.stack([x[0] - 1, 2 - x[0]])), torch.tensor([3.0, 1.0]).double())
    x = torch.tensor([0.5], dtype=D)
    assert float(made.value(x)) == pytest.approx(float((x - data).square().mean()) + 3 * -0.5 + 1.5)
    assert float(made.draw(fl.Key(0), indices=[4]).value(x)) == pytest.approx(3.5**2)
    given = fl.Smooth(lambda x: float(x[0]) ** 2, torch.ones(1, dtype=D), gradient=lambda x: 2 * x)
    made = lagrangian(fl.Constrained(given, inequality=lambda x: x - 1), torch.tensor([3.0], dtype=D))
    assert float(made.gradient(x)) == pytest.approx(2 * 0.5 + 3)


def test_bad_constraints_are_refused():
    training = fl.Training(nn.Linear(3, 1), nn.functional.mse_loss, (torch.ones(5, 3), torch.ones(5, 1)))
    with pytest.raises(TypeError, match="training must be a Training problem, got Linear"):
        fl.ConstrainedTraining(nn.Linear(3, 1), {"gap": (gap, 0.1)})
    with pytest.raises(ValueError, match="constraints must be one or more pairs"):
        fl.ConstrainedTraining(training, {})
    with pytest.raises(TypeError, match=r"constraints\['gap'\] must be a function of"):
        fl.ConstrainedTraining(training, {"gap": gap})
    with pytest.raises(ValueError, match=r"level of constraints\['gap'\] must be finite, got inf"):
        fl.ConstrainedTraining(training, {"gap": (gap, math.inf)})
    rows = fl.ConstrainedTraining(training, {"gap": (lambda model, x, y: model(x), 0.1)})
    with pytest.raises(TypeError, match="a constraint must return a tensor with one element"):
        rows.inequality(rows.x0)
