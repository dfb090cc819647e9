import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core.curvature import gauss_newton_bartlett, hutchinson_diagonal
from fallline.core.errors import MissingOracle


def network(seed=0, dropout=0.0, norm=False):
    torch.manual_seed(seed)
    layers = [nn.Linear(5, 6), nn.Tanh(), *([nn.BatchNorm1d(6)] if norm else []), nn.Dropout(dropout), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


def batch(n=12, seed=0):
    generator = fl.Key(seed).generator()
    return torch.randn(n, 5, dtype=torch.float64, generator=generator), torch.randint(3, (n,), generator=generator)


def test_a_realisation_is_a_torch_closure():
    model, (x, y) = network(), batch()
    plain = copy.deepcopy(model)
    ours, theirs = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    objective = fl.Objective(model, cross_entropy)
    for _ in range(3):
        ours.step(objective(x, y))
        theirs.zero_grad()
        cross_entropy(plain(x), y).backward()
        theirs.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert objective.counts["gradients"] == 3 and objective.counts["samples"] == 36


@pytest.mark.parametrize("elsewhere", [False, True])
def test_masks_are_reused_and_buffers_move_once(elsewhere):
    model = network(dropout=0.5, norm=True)
    realisation = fl.Objective(model, cross_entropy)(*batch())
    first = realisation.value()
    moved = model[2].running_mean.clone()
    point = {n: p.detach() for n, p in realisation.variables.items()} if elsewhere else None
    assert all(realisation.value(point) == first for _ in range(3))
    assert torch.equal(model[2].running_mean, moved) and int(model[2].num_batches_tracked) == 1
    assert fl.Objective(model, cross_entropy)(*batch()).value() != first


def test_drawn_masks_depend_on_the_key_alone_and_leave_the_global_generator():
    problem = fl.Training(network(dropout=0.5), cross_entropy, batch(40), batch_size=8)
    before = torch.get_rng_state()
    values = [float(problem.draw(fl.Key(s)).value()) for s in (1, 2, 1)]
    assert values[0] == values[2] != values[1] and torch.equal(before, torch.get_rng_state())


def test_oracles_agree_with_each_other():
    model, (x, y) = network(), batch()
    r = fl.Objective(model, cross_entropy)(x, y)
    here, copied = r.gradient(), r.gradient({n: p.detach().clone() for n, p in r.variables.items()})
    per_sample = r.per_sample_gradients(None)
    v = {n: torch.randn_like(p) for n, p in r.variables.items()}
    step = 1e-6
    ahead = r.gradient({n: p.detach() + step * v[n] for n, p in r.variables.items()})
    product = r.hvp(None, v)
    for name in here:
        torch.testing.assert_close(here[name], copied[name])
        torch.testing.assert_close(per_sample[name].mean(0), here[name])
        torch.testing.assert_close(product[name], (ahead[name] - here[name]) / step, rtol=1e-4, atol=1e-6)


def test_curvature_can_be_asked_again_in_evaluation_mode():
    model = network(norm=True).eval()
    realisation = fl.Objective(model, cross_entropy)(*batch())
    v = {n: torch.ones_like(p) for n, p in realisation.variables.items()}
    first, second = realisation.hvp(None, v), realisation.hvp(None, v)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_training_observes_validation_in_evaluation_mode():
    model, data, held_out = network(dropout=0.9), batch(30), batch(10, seed=5)
    problem = fl.Training(model, cross_entropy, data, validation=held_out,
                          metrics={"accuracy": fl.core.objective.accuracy})
    figures = problem.observe(problem.x0)
    model.eval()
    assert figures["loss"] == pytest.approx(cross_entropy(model(held_out[0]), held_out[1]).item())
    assert 0 <= figures["accuracy"] <= 1 and not problem.counts


def test_training_a_copy_leaves_the_model_alone():
    model = network(norm=True)
    before = copy.deepcopy(model.state_dict())
    problem = fl.Training(model, cross_entropy, batch(40), batch_size=8)
    result = fl.solve(problem, fl.Train(torch.optim.Adam, lr=0.05), fl.Budget(steps=60))
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert problem.observe(result.x)["loss"] < problem.observe(problem.x0)["loss"]
    model.load_state_dict(result.x)


def test_schedules_step_and_resume(tmp_path):
    problem = fl.Training(network(dropout=0.2, norm=True), cross_entropy, batch(40), batch_size=8)
    method = fl.Train(torch.optim.AdamW, schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20), lr=0.05)
    whole = fl.solve(problem, method, fl.Budget(steps=20))
    fl.solve(problem, method, fl.Budget(steps=9), checkpoint=tmp_path / "c")
    rest = fl.solve(problem, method, fl.Budget(steps=20), checkpoint=tmp_path / "c")
    assert all(torch.equal(whole.x[n], rest.x[n]) for n in whole.x)


def quadratic_model(curvature):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(len(curvature), dtype=torch.float64))

        def forward(self, x):
            return 0.5 * (curvature * self.w**2).sum() + 0 * x.sum()

    return Model()


def test_hutchinson_is_unbiased_for_the_diagonal():
    curvature = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    r = fl.Objective(quadratic_model(curvature), lambda out, y: out)(torch.ones(1), torch.ones(1))
    draws = torch.stack([hutchinson_diagonal(r, fl.Key(i).generator())["w"] for i in range(4000)])
    assert ((draws.mean(0) - curvature).abs() < 4 * draws.std(0) / 4000**0.5).all()


def test_gauss_newton_bartlett_estimates_the_gauss_newton_diagonal():
    model = nn.Linear(5, 3, bias=False).double()
    x, y = batch(6)
    r = fl.Objective(model, cross_entropy)(x, y)
    p = torch.softmax(model(x), -1).detach()
    # For softmax regression the Gauss-Newton diagonal at W[c, j] is the mean over samples of p_c (1 − p_c) x_j².
    exact = ((p * (1 - p)).T @ x**2) / len(x)
    draws = torch.stack([gauss_newton_bartlett(r, fl.Key(i).generator())["weight"] for i in range(3000)])
    assert (draws >= 0).all()
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 3000**0.5).all()


def test_gauss_newton_bartlett_needs_logits():
    problem = fl.Smooth(lambda x: (x**2).sum(), torch.ones(2))
    with pytest.raises(MissingOracle, match="hutchinson"):
        gauss_newton_bartlett(problem.bind(torch.ones(2)), fl.Key().generator())


@pytest.mark.parametrize("make, message", [
    (lambda: fl.Objective(3, cross_entropy), "nn.Module"),
    (lambda: fl.Objective(nn.Linear(2, 2), "ce"), "loss_fn"),
    (lambda: fl.Training(nn.Linear(5, 3), cross_entropy, batch(4), batch_size=64), "batch_size"),
    (lambda: fl.Train(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)), "already made"),
])
def test_bad_input(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_buffers_are_put_back_when_an_evaluation_fails():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    realisation = fl.Objective(model, lambda out, y: out.sum())(torch.randn(8, 3), torch.zeros(8))
    realisation()
    before = {name: b.clone() for name, b in model.named_buffers()}
    model[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        realisation()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
