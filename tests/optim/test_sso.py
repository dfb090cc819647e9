"""SSO against its formulas: the surrogate's scaling, every inner rule, one call of the loss a step."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, softplus

import fallline as fl
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.optim.sso import SSO


def data(n=12, seed=0):
    generator = fl.Key(seed).generator()
    return torch.randn(n, 4, dtype=torch.float64, generator=generator), torch.randint(3, (n,), generator=generator)


def network(*layers):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), *(layers or (nn.Tanh(),)), nn.Linear(5, 3)).double()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def surrogate_steps(model, x, y, eta, m, lr, decay=0.0, sign=1.0):
    """m steps of gradient descent on the surrogate, from its formula."""
    with torch.no_grad():
        targets = model(x)
    logits = targets.clone().requires_grad_()
    (u,) = torch.autograd.grad(sign * cross_entropy(logits, y, reduction="sum"), logits)  # each sample's own gradient
    for _ in range(m):
        z = model(x)
        g = ((u * (z - targets)).sum(1) + ((z - targets) ** 2).sum(1) / (2 * eta)).mean()
        g = g + decay / 2 * sum((p**2).sum() for p in model.parameters())
        gradients = torch.autograd.grad(g, list(model.parameters()))
        with torch.no_grad():
            for p, h in zip(model.parameters(), gradients, strict=True):
                p -= lr * h


@pytest.mark.parametrize(("m", "eta", "decay"), [(1, 2.0, 0.0), (5, 2.0, 0.0), (4, 0.3, 0.05)])
def test_gradient_descent_on_the_surrogate(m, eta, decay):
    ours, reference = network(), network()
    optimizer = SSO(ours.parameters(), lr=0.2, eta=eta, inner_steps=m, inner="gd", weight_decay=decay)
    objective = fl.Objective(ours, cross_entropy)
    for t in range(20):
        x, y = data(12, t)
        loss = cross_entropy(reference(x), y)
        surrogate_steps(reference, x, y, eta, m, 0.2, decay)
        assert float(optimizer.step(objective(x, y))) == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(flat(ours), flat(reference), rtol=1e-10, atol=1e-10)
    assert optimizer.oracle_calls == objective.counts["oracle_calls"] == 20
    assert objective.counts["gradients"] == 20 * m and objective.counts["samples"] == 20 * m * 12


def test_one_step_is_a_step_of_sgd_whatever_eta():
    ours, theirs = network(), network()
    optimizer, sgd = SSO(ours.parameters(), lr=0.3, eta=7.0, inner_steps=1, inner="gd"), torch.optim.SGD(theirs.parameters(), lr=0.3)
    for t in range(5):
        optimizer.step(fl.Objective(ours, cross_entropy)(*data(12, t)))
        sgd.step(fl.Objective(theirs, cross_entropy)(*data(12, t)))
        torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("schedule", "etas"), [("constant", [3, 3, 3]), ("sqrt", [3, 3 / 2**0.5, 3 / 3**0.5]),
                                                ("exponential", [3 * 0.01 ** (t / 100) for t in (1, 2, 3)])])
def test_schedules(schedule, etas):
    optimizer = SSO(network().parameters(), eta=3.0, eta_schedule=schedule, horizon=100)
    assert [optimizer.eta_at(t) for t in (1, 2, 3)] == pytest.approx(etas)
    ours, reference = network(), network()
    optimizer = SSO(ours.parameters(), lr=0.2, eta=3.0, eta_schedule=schedule, horizon=100, inner="gd", inner_steps=3)
    for t, eta in enumerate(etas):
        optimizer.step(fl.Objective(ours, cross_entropy)(*data(12, t)))
        surrogate_steps(reference, *data(12, t), eta, 3, 0.2)
    torch.testing.assert_close(flat(ours), flat(reference), rtol=1e-10, atol=1e-10)


def logistic(z, y):
    return softplus(-y * z[:, 0]).mean()


@pytest.mark.parametrize(("inner", "lr", "m"), [("gd", 0.3, 30), ("armijo", None, 10), ("lbfgs", None, 20), ("adam", 0.01, 10)])
def test_the_full_batch_loss_never_rises(inner, lr, m):
    x, _ = data(40)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0.1).double() * 2 - 1
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    optimizer, objective = SSO(model.parameters(), lr=lr, eta=4.0, inner_steps=m, inner=inner), fl.Objective(model, logistic)
    losses = [float(optimizer.step(objective(x, y))) for _ in range(15)]
    assert all(b <= a for a, b in itertools.pairwise(losses)) and losses[-1] < 0.6 * losses[0]


def test_lbfgs_minimises_the_surrogate_of_a_linear_model():
    x, y = data(30)
    model = nn.Linear(4, 3, bias=False).double()
    before = model.weight.detach().clone()
    logits = (x @ before.T).requires_grad_()
    (u,) = torch.autograd.grad(cross_entropy(logits, y), logits)
    SSO(model.parameters(), eta=2.0, inner="lbfgs", inner_steps=200).step(fl.Objective(model, cross_entropy)(x, y))
    # The least of ⟨u, X d⟩ + ‖X d‖² / (2 η B) is at d = −η B (XᵀX)⁻¹ Xᵀ u
    expected = before - 2 * 30 * torch.linalg.solve(x.T @ x, x.T @ u).T
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_armijo_decreases_the_surrogate_by_half_of_what_its_slope_promises():
    x, y = data()
    model = network()
    before, point = flat(model), [p.detach().clone() for p in model.parameters()]
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))])
    targets = model(x).detach()
    logits = targets.clone().requires_grad_()
    (u,) = torch.autograd.grad(cross_entropy(logits, y), logits)
    SSO(model.parameters(), inner_steps=1).step(fl.Objective(model, cross_entropy)(x, y))
    step = float((before - flat(model)).norm() / gradient.norm())
    torch.testing.assert_close(before - step * gradient, flat(model), rtol=1e-9, atol=1e-9)

    def decrease(factor):
        with torch.no_grad():
            for p, start, end in zip(model.parameters(), point, ends, strict=True):
                p.copy_(start + factor * (end - start))
            z = model(x)
        surrogate = (u * (z - targets)).sum() + ((z - targets) ** 2).sum() / (4 * len(x))
        return float(surrogate + 0.5 * factor * step * (gradient @ gradient))

    ends = [p.detach().clone() for p in model.parameters()]
    assert math.log2(10 / step) == pytest.approx(round(math.log2(10 / step)), abs=1e-6)  # 10, halved some times
    assert decrease(1.0) <= 0 < decrease(2.0)


def test_maximize_ascends():
    x, y = data()
    up, down = network(), network()
    SSO(up.parameters(), maximize=True).step(fl.Objective(up, lambda z, y: -cross_entropy(z, y))(x, y))
    SSO(down.parameters()).step(fl.Objective(down, cross_entropy)(x, y))
    torch.testing.assert_close(flat(up), flat(down))
    with pytest.raises(ValueError, match="maximize must be the same"):
        SSO([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "maximize": True}])


def test_masks_are_the_same_all_through_a_step_and_statistics_move_once():
    x, y = data()
    seen = []

    class Spy(nn.Module):
        def forward(self, z):
            seen.append(z.detach() == 0)
            return z

    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5), Spy())
    optimizer = SSO(model.parameters(), lr=0.1, inner="gd", inner_steps=4)
    optimizer.step(fl.Objective(model, cross_entropy)(x, y))
    optimizer.step(fl.Objective(model, cross_entropy)(x, y))
    assert len(seen) == 8 and all(torch.equal(seen[0], mask) for mask in seen[1:4]) and not torch.equal(seen[0], seen[4])
    assert int(model[1].num_batches_tracked) == 2


def test_the_loss_is_called_once_a_step():
    calls = []

    def loss(z, y):
        calls.append(1)
        return mse_loss(z, y)

    x, _ = data()
    for inner in ("gd", "armijo", "adam", "lbfgs"):
        model = network()
        calls.clear()
        SSO(model.parameters(), inner=inner, inner_steps=6).step(fl.Objective(model, loss)(x, torch.zeros(12, 3, dtype=torch.float64)))
        assert len(calls) == 1


def test_a_training_problem_and_resume(tmp_path):
    def run(steps, checkpoint=None):
        problem = fl.Training(network(), cross_entropy, data(60), batch_size=16)
        method = fl.Train(SSO, inner_steps=3, eta_schedule="sqrt")
        return problem, fl.solve(problem, method, fl.Budget(steps=steps), checkpoint=checkpoint)

    problem, whole = run(12)
    run(5, tmp_path / "c")
    _, rest = run(12, tmp_path / "c")
    assert all(torch.equal(whole.x[name], rest.x[name]) for name in whole.x) and whole.counts == rest.counts
    assert whole.counts["oracle_calls"] == 12 and problem.observe(whole.x)["loss"] < problem.observe(problem.x0)["loss"]


def test_resting_and_foreign_parameters():
    model, (x, y) = network(), data()
    weight, *rest = model.parameters()
    before = weight.detach().clone()
    foreign = nn.Parameter(torch.ones(2))
    for inner in ("gd", "armijo", "adam", "lbfgs"):
        optimizer = SSO([{"params": [weight], "lr": 0.0}, {"params": [*rest, foreign]}], inner=inner)
        optimizer.step(fl.Objective(model, cross_entropy)(x, y))
        assert torch.equal(weight, before) and foreign.grad is None and bool((foreign == 1).all())
    with pytest.raises(ValueError, match="params must be parameters of the objective's model"):
        SSO([foreign]).step(fl.Objective(model, cross_entropy)(x, y))


@pytest.mark.parametrize("inner", ["armijo", "gd", "lbfgs"])
def test_a_surrogate_that_is_not_finite(inner):
    model, (x, y) = network(), data()
    before, batch = flat(model), fl.Objective(model, cross_entropy)(x * math.nan, y)
    with pytest.raises(NonFiniteError, match="surrogate"):
        SSO(model.parameters(), inner=inner).step(batch)
    SSO(model.parameters(), inner=inner, nonfinite="skip").step(batch)
    assert torch.equal(flat(model), before)


def test_what_it_cannot_do_is_refused_by_name():
    model, (x, y) = network(), data()
    optimizer = SSO(model.parameters())
    for closure in (None, lambda: torch.zeros(())):
        with pytest.raises(MissingOracle, match=r"SSO needs the model's outputs.*objective\(batch\)"):
            optimizer.step(closure)
    with pytest.raises(MissingOracle, match=r"SSO\.update"):
        optimizer.update([], [], [])
    with pytest.raises(TypeError, match="loss_fn must return one number"):
        optimizer.step(fl.Objective(model, lambda z, y: cross_entropy(z, y, reduction="none"))(x, y))
    with pytest.raises(TypeError, match="does not require gradients"):
        optimizer.step(fl.Objective(model, lambda z, y: cross_entropy(z.detach(), y))(x, y))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x), x

    pair = Pair()
    with pytest.raises(TypeError, match="outputs must be one tensor"):
        SSO(pair.parameters()).step(fl.Objective(pair, lambda z, y: cross_entropy(z[0], y))(x, y))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"eta": 0.0}, "eta must"), ({"lr": -1.0}, "lr must"), ({"inner_steps": 0}, "inner_steps must"),
    ({"inner": "sgd"}, "inner must be one"),
    ({"eta_schedule": "cosine"}, "schedule must be one"), ({"eta_schedule": "exponential"}, "horizon must be given"),
    ({"horizon": 0}, "horizon")])
def test_bad_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        SSO([nn.Parameter(torch.ones(2))], **arguments)
