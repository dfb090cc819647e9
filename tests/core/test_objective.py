import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core import tree
from fallline.core.counts import Counts
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


def test_masks_of_other_devices_are_reused_and_their_generators_left(monkeypatch):
    generator = {"cuda:1": torch.Generator().manual_seed(3)}  # in the place of a device's
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generator[device].get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generator[device].set_state(state))
    monkeypatch.setattr(fl.core.objective.ModelProblem, "_devices", lambda self: ["cpu", "cuda:1"])

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x * (torch.rand(x.shape, generator=generator["cuda:1"]) < 0.5))

    realisation = fl.Objective(Masked(), cross_entropy)(*batch())
    seen = realisation.observe(realisation.x0)["value"]
    first = realisation.value()
    after = generator["cuda:1"].get_state()
    assert float(first) == seen and all(realisation.value() == first for _ in range(3))
    assert torch.equal(generator["cuda:1"].get_state(), after)
    assert fl.Objective(realisation.model, cross_entropy)(*batch()).value() != first


def test_a_module_under_two_names_keeps_its_parameters_and_buffers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(norm=True)
            self.same = self.inner

        def forward(self, x):
            return self.same(x)

    model = Twice()
    before = [*model.parameters(), *model.buffers()]
    realisation = fl.Objective(model, cross_entropy)(*batch())
    realisation.value({name: t.detach() / 2 for name, t in (*model.named_parameters(), *model.named_buffers())})
    assert all(a is b for a, b in zip(before, [*model.parameters(), *model.buffers()], strict=True))


def test_observing_a_realisation_leaves_no_trace():
    model = network(dropout=0.5, norm=True)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    realisation = fl.Objective(model, cross_entropy)(*batch())
    figures = realisation.observe(realisation.x0)
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and not realisation.counts
    assert figures["value"] == float(realisation.value())
    assert int(model[2].num_batches_tracked) == 1 and realisation.observe(realisation.x0) == figures


def test_views_of_a_realisation_share_its_masks():
    model = network(dropout=0.5, norm=True)
    realisation = fl.Objective(model, cross_entropy)(*batch())
    view = realisation.counted(Counts())
    x = {n: p.detach().clone() for n, p in realisation.variables.items()}
    v = {n: torch.ones_like(p) for n, p in x.items()}
    h = 1e-5
    ahead, behind = (view.gradient({n: x[n] + s * v[n] for n in x}) for s in (h, -h))
    for name, product in view.hvp(x, v).items():
        torch.testing.assert_close(product, (ahead[name] - behind[name]) / (2 * h), rtol=1e-5, atol=1e-7)
    assert view.value(x) == realisation.value(x) and int(model[2].num_batches_tracked) == 1


@pytest.mark.parametrize("make", [lambda model: fl.Training(model, cross_entropy, batch(20)),
                                  lambda model: fl.Training(model, cross_entropy, batch(20)).draw(fl.Key(0)),
                                  lambda model: fl.Objective(model, cross_entropy)(*batch(20))])
def test_the_hessian_under_random_masks_is_that_of_the_values(make):
    problem = make(network(dropout=0.5))
    x = {n: p.detach().clone() for n, p in problem.x0.items()}
    hessian = problem.hessian(x)
    v = {n: torch.ones_like(p) for n, p in x.items()}
    torch.testing.assert_close(tree.flatten(problem.hvp(x, v)), hessian.sum(1))
    assert problem.counts["hessians"] == 1


def test_drawing_outside_a_run_moves_no_buffers():
    problem = fl.Training(network(norm=True), cross_entropy, batch(40), batch_size=8)
    before = copy.deepcopy(problem.model.state_dict())
    for step in range(3):
        problem.draw(fl.Key(step)).gradient(problem.x0)
        problem.draw(fl.Key(step))()
    assert all(torch.equal(a, before[name]) for name, a in problem.model.state_dict().items())


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


def test_values_on_all_data_are_of_one_function():
    model = network(dropout=0.5, norm=True)
    problem = fl.Training(model, cross_entropy, batch(30), batch_size=8)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = problem.value(problem.x0)
    assert all(problem.value(problem.x0) == first for _ in range(2))
    value, gradient = problem.value_and_gradient(problem.x0)
    assert value == first and gradient.keys() == problem.x0.keys()
    problem.draw(fl.Key(0)).value(problem.x0)
    assert problem.value(problem.x0) == first
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())


def test_the_users_model_may_go_on_without_the_problem():
    model = network()
    problem = fl.Training(model, cross_entropy, batch(30))
    start, value = copy.deepcopy(problem.x0), problem.value(problem.x0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(torch.equal(a, start[n]) for n, a in problem.x0.items()) and problem.value(problem.x0) == value


class Stochastic(fl.Method):
    """Gradient descent that holds parameters only; the network's buffers are the run's business."""

    def __init__(self, lr):
        self.lr = lr

    def init(self, problem, key):
        return {"x": problem.x0, "key": key, "t": 0}

    def step(self, problem, state):
        gradient = problem.draw(state["key"].fold(state["t"])).gradient(state["x"])
        return {**state, "x": {n: x - self.lr * gradient[n] for n, x in state["x"].items()}, "t": state["t"] + 1}

    def report(self, problem, state):
        return fl.Report(state["x"])


def test_buffers_belong_to_the_run_and_come_with_its_solution(tmp_path):
    model = network(dropout=0.2, norm=True)
    problem = fl.Training(model, cross_entropy, batch(40), batch_size=8)
    seen = []
    first = fl.solve(problem, Stochastic(0.05), fl.Budget(steps=6), callback=lambda m: seen.append(m.report.resolve()))
    assert first.x.keys() == model.state_dict().keys() == seen[-1].keys()
    assert int(first.x["2.num_batches_tracked"]) == 6 and int(seen[3]["2.num_batches_tracked"]) == 3
    model.load_state_dict(first.x)
    model.eval()
    figures = problem.observe(first.x)
    assert figures["loss"] == pytest.approx(cross_entropy(model(problem.data[0]), problem.data[1]).item())
    at_start = problem.observe(problem.x0)
    fl.solve(problem, Stochastic(0.5), fl.Budget(steps=5), key=3)
    assert problem.observe(first.x) == figures and problem.observe(problem.x0) == at_start
    fl.solve(problem, Stochastic(0.05), fl.Budget(steps=3), checkpoint=tmp_path / "c")
    again = fl.solve(problem, Stochastic(0.05), fl.Budget(steps=6), checkpoint=tmp_path / "c")
    assert all(torch.equal(first.x[n], again.x[n]) for n in first.x)


class Cached(nn.Module):
    """A layer with a buffer that no state_dict has, and one that grows at the first call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3).double()
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.register_buffer("grown", None, persistent=False)

    def forward(self, x):
        self.calls += 1
        self.grown = torch.ones(3) if self.grown is None else self.grown
        return self.layer(x) * (1 + 0.1 * self.calls) * self.grown


@pytest.mark.parametrize("method", [Stochastic(0.05), fl.Train(torch.optim.SGD, lr=0.05)])
def test_buffers_that_are_not_persistent_are_kept_but_no_part_of_a_solution(tmp_path, method):
    torch.manual_seed(0)
    model = Cached()
    problem = fl.Training(model, cross_entropy, batch(40), batch_size=8)
    whole = fl.solve(problem, method, fl.Budget(steps=10))
    fl.solve(problem, method, fl.Budget(steps=5), checkpoint=tmp_path / "c")
    rest = fl.solve(problem, method, fl.Budget(steps=10), checkpoint=tmp_path / "c")
    assert whole.x.keys() == rest.x.keys() == model.state_dict().keys()
    assert all(torch.equal(whole.x[n], rest.x[n]) for n in whole.x)


def test_a_solution_with_buffers_can_be_asked_for_gradients_and_is_not_written_to():
    problem = fl.Training(network(norm=True), cross_entropy, batch(40), batch_size=8)
    x = fl.solve(problem, fl.Train(torch.optim.SGD, lr=0.1), fl.Budget(steps=4)).x
    before = copy.deepcopy(x)
    gradient = problem.gradient(x)
    problem.draw(fl.Key(1)).gradient(x)
    assert all(torch.equal(a, before[name]) for name, a in x.items())
    parameters = {name: x[name] for name in problem.x0}
    for name, g in problem.gradient(parameters).items():
        torch.testing.assert_close(gradient[name], g)


def test_observing_leaves_every_modules_mode():
    model = network(norm=True)
    model[2].eval()
    problem = fl.Training(model, cross_entropy, batch(20))
    problem.observe(problem.x0)
    assert [m.training for m in problem.model.modules()] == [m.training for m in model.modules()]


def test_samples_of_the_training_data_are_its_parts():
    problem = fl.Training(network(), cross_entropy, batch(10), batch_size=4)
    x = problem.x0
    assert len(problem.parts) == 10
    torch.testing.assert_close(sum(part.weight * part.value(x) for part in problem.parts), problem.value(x))
    per_sample, gradient = problem.per_sample_gradients(x), problem.gradient(x)
    for name in x:
        torch.testing.assert_close(per_sample[name].mean(0), gradient[name])


def test_samples_with_several_inputs_have_their_gradients():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3).double()

        def forward(self, a, b):
            return self.layer(a + b)

    x, y = batch()
    realisation = fl.Objective(Sum(), cross_entropy)((x, 2 * x), y)
    gradient = realisation.gradient()
    for name, each in realisation.per_sample_gradients(None).items():
        torch.testing.assert_close(each.mean(0), gradient[name])


def test_a_model_that_cannot_be_copied_is_refused_with_a_remedy():
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.utils.weight_norm(nn.Linear(5, 3).double())
    model(batch()[0])
    with pytest.raises(TypeError, match=r"copy\.deepcopy.*Linear.*parametrizations\.weight_norm"):
        fl.Training(model, cross_entropy, batch())


@pytest.mark.parametrize("options, message", [({"size": 0}, "size"), ({"size": -1}, "size"), ({"indices": [-1]}, "indices"),
                                              ({"indices": []}, "indices")])
def test_bad_draws_are_refused(options, message):
    problem = fl.Training(network(), cross_entropy, batch(10), batch_size=4)
    with pytest.raises(ValueError, match=message):
        problem.draw(fl.Key(), **options)


def test_a_loss_cut_off_from_the_weights_is_refused():
    realisation = fl.Objective(network(), lambda outputs, y: outputs.detach().sum())(*batch(4))
    with pytest.raises(MissingOracle, match="cannot be differentiated"):
        realisation()


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
