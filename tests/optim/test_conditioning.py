"""Weight conditioning: equilibrated matrices, the gradient through the norms, and what torch does with parametrized modules."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import fallline as fl
from fallline.optim import Adam, condition, condition_report, remove_conditioning
from fallline.optim.conditioning import equilibrate


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()


@pytest.mark.parametrize("mode", ["row", "col", "row_col"])
def test_equilibrated_matrices_against_numpy(mode):
    w = normal(4, 6).numpy()
    expected = w
    if mode != "col":
        expected = expected / np.sqrt((expected**2).sum(1, keepdims=True))
    if mode != "row":
        expected = expected / np.sqrt((expected**2).sum(0, keepdims=True))
    np.testing.assert_allclose(equilibrate(torch.tensor(w), mode).numpy(), expected, rtol=1e-14)


def test_the_gradient_is_projected_and_divided_by_the_norm():
    w, g = normal(4, 6).requires_grad_(), normal(4, 6, seed=1)
    equilibrate(w).backward(g)
    rows, norms = w.detach(), w.detach().norm(dim=1, keepdim=True)
    unit = rows / norms
    torch.testing.assert_close(w.grad, (g - (g * unit).sum(1, keepdim=True) * unit) / norms, rtol=1e-13, atol=1e-15)
    detached = rows.clone().requires_grad_()
    equilibrate(detached, detach=True).backward(g)
    torch.testing.assert_close(detached.grad, g / norms, rtol=1e-13, atol=0)


@pytest.mark.parametrize("mode", ["row", "col", "row_col"])
def test_second_derivatives(mode):
    w = normal(3, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: equilibrate(x, mode), (w,))


def test_a_zero_row_stays_and_its_gradients_are_of_the_scale_of_the_others():
    w = normal(3, 4)
    w[1] = 0
    w.requires_grad_()
    out = equilibrate(w)
    first, = torch.autograd.grad((out**3).sum() + out[:, 0].sum(), w, create_graph=True)
    second, = torch.autograd.grad((first**2).sum(), w)
    assert torch.equal(out[1], torch.zeros(4)) and torch.equal(first[1], torch.tensor([1.0, 0, 0, 0]))
    assert torch.isfinite(second).all()


def test_hidden_layers_are_conditioned_and_the_output_is_not():
    plain = network()
    model = condition(copy.deepcopy(plain))
    weights = [plain[i].weight.detach() for i in (0, 2)]
    x = normal(7, 3)
    h = x
    for i, w in zip((0, 2), weights, strict=True):
        h = torch.tanh(h @ (w / w.norm(dim=1, keepdim=True)).T + plain[i].bias)
    torch.testing.assert_close(model(x), plain[4](h), rtol=1e-13, atol=1e-15)
    assert not parametrize.is_parametrized(model[4])
    layer = nn.Linear(3, 3)
    assert condition(layer) is layer and parametrize.is_parametrized(layer, "weight")


def test_a_kernel_is_the_matrix_out_by_in_k_k():
    model = condition(convolutional())
    rows = model[0].weight.detach().reshape(4, -1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4).double())
    columns = condition(convolutional(), mode="col")[0].weight.detach().reshape(4, -1)
    torch.testing.assert_close(columns.norm(dim=0), torch.ones(18).double())


@pytest.mark.parametrize("make, shape", [(network, (6, 3)), (convolutional, (6, 2, 4, 4))])
def test_removing_bakes_the_weights_and_keeps_the_parameters(make, shape):
    model, x = make(), normal(*shape)
    parameters = list(model.parameters())
    names = list(model.state_dict())
    before = condition(model, mode="row_col")(x).detach()
    assert {id(p) for p in model.parameters()} == {id(p) for p in parameters}
    remove_conditioning(model)
    assert torch.equal(model(x), before) and sorted(model.state_dict()) == sorted(names)
    assert all(a is b for a, b in zip((model[0].weight, model[0].bias), parameters[:2], strict=True))


def test_an_optimizer_made_before_moves_the_same_parameters_and_remembers_the_old_moments():
    model, x = network(), normal(8, 3)
    optimizer = Adam(model.parameters(), lr=0.01)
    weight = model[0].weight

    def descend():
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    descend()
    moment = optimizer.state[weight]["exp_avg"].clone()
    condition(model)
    assert model[0].parametrizations.weight.original is weight
    assert torch.equal(optimizer.state[weight]["exp_avg"], moment)
    outputs = model(x).detach()
    descend()
    assert not torch.equal(model(x), outputs)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], 0.9 * moment + 0.1 * weight.grad)


def test_copies_state_dicts_and_functional_calls():
    model, x = condition(network()), normal(5, 3)
    other = condition(network())
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.7)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))
    assert "0.parametrizations.weight.original" in model.state_dict()
    # The outputs do not depend on the lengths of the rows.
    longer = {n: 3 * p if n.endswith("original") else p for n, p in model.named_parameters()}
    torch.testing.assert_close(functional_call(model, longer, (x,)), model(x), rtol=1e-13, atol=1e-15)


def test_it_trains_as_a_problem_with_second_derivatives():
    problem = fl.Training(condition(network()), nn.functional.mse_loss, (normal(32, 3), normal(32, 2, seed=1)), batch_size=32)
    start = problem.observe(problem.x0)["loss"]
    result = fl.solve(problem, fl.Train(Adam, lr=0.01), fl.Budget(steps=30))
    assert problem.observe(result.x)["loss"] < start
    direction = {n: p.detach() if n.endswith("original") else torch.zeros_like(p) for n, p in problem.x0.items()}
    rows = problem.gradient(problem.x0)["0.parametrizations.weight.original"] * problem.x0["0.parametrizations.weight.original"]
    torch.testing.assert_close(rows.sum(1), torch.zeros(5).double(), rtol=0, atol=1e-14)
    # The loss is invariant to row lengths, so its gradient is homogeneous of degree −1: H w = −g in those blocks.
    product, gradient = problem.hvp(problem.x0, direction), problem.gradient(problem.x0)
    for name in direction:
        if name.endswith("original"):
            torch.testing.assert_close(product[name], -gradient[name], rtol=1e-10, atol=1e-14)


def test_the_report_has_condition_numbers_of_both():
    model = network()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 10, 100])).repeat(2, 1)[:5])
    report = condition_report(condition(model))
    assert list(report.before) == ["0.weight", "2.weight"]
    # Rows (1, 10, 100, 1, 10) along the axes: singular values √2, 10√2, 100; then √2, √2, 1.
    assert report.before["0.weight"] == pytest.approx(100 / 2**0.5) and report.after["0.weight"] == pytest.approx(2**0.5)
    assert "0.weight" in repr(report) and "70.71" in repr(report) and "1.414" in repr(report)
    with torch.no_grad():
        model[0].parametrizations.weight.original[:, 0] = 0
    assert condition_report(model).after["0.weight"] > 1e15


def test_bad_input_changes_nothing():
    model = network()
    for arguments, message in (
        ({"names": ["0.weight", "0.bias"]}, "'0.bias' of shape \\(5,\\)"),
        ({"names": ["weight"]}, "no parameter; known are 0.weight, 0.bias"),
        ({"names": "0.weight"}, "names=\\['0.weight'\\]"),
        ({"names": []}, "at least one"),
        ({"mode": "rows"}, "mode must be 'row', 'col', 'row_col', got 'rows'"),
    ):
        with pytest.raises(ValueError, match=message):
            condition(model, **arguments)
    assert not any(map(parametrize.is_parametrized, model.modules()))
    with pytest.raises(ValueError, match="Sequential has none; name other weights"):
        condition(nn.Sequential(nn.LayerNorm(3)))
    for function in (remove_conditioning, condition_report):
        with pytest.raises(ValueError, match="call condition\\(module\\)"):
            function(model)


def test_conditioning_twice_is_refused():
    model = condition(network())
    for names in (None, ["0.weight"]):
        with pytest.raises(ValueError, match="parametrised already"):
            condition(model, names)
    remove_conditioning(model)
    condition(model)


def test_shared_grouped_and_transposed_weights_are_refused():
    tied = network()
    tied[2] = nn.Linear(3, 5).double()
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"0\.weight and 2\.weight are one weight"):
        condition(tied, ["0.weight"])
    twice = nn.Linear(3, 3)
    condition(nn.ModuleList([twice, twice]), ["0.weight", "1.weight"])
    assert len(twice.parametrizations.weight) == 1
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match="groups=2; use mode='row'"):
        condition(grouped, mode="col")
    condition(grouped)
    with pytest.raises(ValueError, match="transposed"):
        condition(nn.ConvTranspose2d(2, 3, 3), ["weight"])
