"""TNGD against dense natural gradients and powers of the Euler step: digital, analog, noisy, delayed, and under Adam."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fallline as fl
from fallline.core.errors import MissingOracle
from fallline.optim import SGD, TNGD, Adam


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def network(*layers):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), *(layers or (nn.Tanh(),)), nn.Linear(5, 3)).double()


def data(seed=0, n=8):
    return normal(n, 4, seed=seed), torch.randint(3, (n,), generator=fl.Key(seed).generator())


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fisher(model, x, y):
    """The gradient and E[∇ log p ∇ log pᵀ] over labels from the model: the definition of the Fisher matrix."""
    parameters = dict(model.named_parameters())
    names = list(parameters)
    flatten = lambda g: torch.cat([g[n].reshape(-1) for n in names])

    def loss(w, row, label):
        return cross_entropy(torch.func.functional_call(model, w, (row.unsqueeze(0),)), label.unsqueeze(0))

    w = {n: p.detach() for n, p in parameters.items()}
    probabilities = model(x).detach().softmax(1)
    F = torch.zeros(43, 43, dtype=torch.float64)
    for row, p in zip(x, probabilities, strict=True):
        for label in range(3):
            g = flatten(torch.func.grad(loss)(w, row, torch.tensor(label)))
            F += p[label] * torch.outer(g, g) / len(x)
    gradients = [flatten(torch.func.grad(loss)(w, row, label)) for row, label in zip(x, y, strict=True)]
    return torch.stack(gradients).mean(0), F


def relaxed(A, g, x0, t, dt):
    exact = torch.linalg.solve(A, g)
    return exact + torch.linalg.matrix_power(I - dt * A, round(t / dt)) @ (x0 - exact)


I = torch.eye(43, dtype=torch.float64)  # noqa: E741


def test_digital_is_the_damped_natural_gradient():
    model = network()
    optimizer, objective, theta = TNGD(model.parameters(), lr=0.3, tol=1e-12), fl.Objective(model, cross_entropy), flat(network())
    for t in range(4):
        x, y = data(t)
        g, F = fisher(model, x, y)
        theta = theta - 0.3 * torch.linalg.solve(F + 0.1 * I, g)
        optimizer.step(objective(x, y))
        torch.testing.assert_close(flat(model), theta, rtol=1e-8, atol=1e-10)
    assert optimizer.device_time == 0 and objective.counts["matvecs"] > 0


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("delay", [0.0, 0.7])
def test_the_device_relaxes_from_where_it_stands(warm, delay):
    model = network()
    optimizer = TNGD(model.parameters(), lr=0.3, analog_time=0.5, dt=0.05, warm_start=warm, delay=delay)
    objective, theta, stands = fl.Objective(model, cross_entropy), flat(network()), None
    for t in range(3):
        x, y = data(t)
        g, F = fisher(model, x, y)
        read = relaxed(F + 0.1 * I, g, g if stands is None or not warm else stands, 0.5, 0.05)
        stands = relaxed(F + 0.1 * I, g, read, delay, 0.05)
        theta = theta - 0.3 * read
        optimizer.step(objective(x, y))
        torch.testing.assert_close(flat(model), theta, rtol=1e-9, atol=1e-10)
    assert optimizer.device_time == pytest.approx(3 * (0.5 + delay))
    assert objective.counts["matvecs"] >= round(3 * (0.5 + delay) / 0.05)


def test_no_time_is_the_base_and_long_time_the_natural_gradient():
    ends = {}
    for name, make in {"sgd": lambda p: SGD(p, lr=0.3), "none": lambda p: TNGD(p, lr=0.3, analog_time=0.0, warm_start=False),
                       "long": lambda p: TNGD(p, lr=0.3, analog_time=200.0), "digital": lambda p: TNGD(p, lr=0.3, tol=1e-12)}.items():
        model = network()
        optimizer = make(model.parameters())
        for t in range(3):
            optimizer.step(fl.Objective(model, cross_entropy)(*data(t)))
        ends[name] = flat(model)
    torch.testing.assert_close(ends["none"], ends["sgd"])
    torch.testing.assert_close(ends["long"], ends["digital"], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ends["sgd"], ends["digital"], atol=1e-3)


def test_adam_takes_the_natural_gradient_for_its_gradient():
    ours, theirs = network(), network()
    optimizer, adam = TNGD(ours.parameters(), base="adam", lr=0.01, tol=1e-12), Adam(theirs.parameters(), lr=0.01)
    for t in range(4):
        x, y = data(t)
        g, F = fisher(theirs, x, y)
        natural = torch.linalg.solve(F + 0.1 * I, g)
        for p, part in zip(theirs.parameters(), natural.split([p.numel() for p in theirs.parameters()]), strict=True):
            p.grad = part.view_as(p)
        adam.step()
        optimizer.step(fl.Objective(ours, cross_entropy)(x, y))
        torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-7, atol=1e-9)
    assert {"exp_avg", "exp_avg_sq", "natural_gradient"} <= set(optimizer.state[next(iter(ours.parameters()))])


def test_noise_has_the_device_s_temperature_and_repeats():
    def ends(beta_inv, seed=0):
        model = network()
        optimizer = TNGD(model.parameters(), lr=1.0, analog_time=8.0, beta_inv=beta_inv, seed=seed, damp=1.0)
        optimizer.step(fl.Objective(model, cross_entropy)(*data()))
        return flat(model)

    quiet = ends(0.0)
    assert torch.equal(ends(1e-2, 3), ends(1e-2, 3)) and not torch.equal(ends(1e-2, 3), ends(1e-2, 4))
    deviations = torch.stack([ends(1e-2, seed) - quiet for seed in range(20)])
    _, F = fisher(network(), *data())
    expected = 1e-2 * float(torch.linalg.inv(F + I).trace())
    assert float((deviations**2).sum(1).mean()) == pytest.approx(expected, rel=0.25)


def test_the_average_is_quieter():
    def distance(average):
        model = network()
        optimizer = TNGD(model.parameters(), lr=1.0, analog_time=40.0, beta_inv=0.01, damp=1.0, average=average)
        optimizer.step(fl.Objective(model, cross_entropy)(*data()))
        exact = network()
        TNGD(exact.parameters(), lr=1.0, damp=1.0).step(fl.Objective(exact, cross_entropy)(*data()))
        return float((flat(model) - flat(exact)).norm())

    assert distance(True) < 0.5 * distance(False)


def test_a_copy_and_a_loaded_state_go_on_alike():
    options = {"analog_time": 0.5, "beta_inv": 1e-3, "delay": 0.2, "lr": 0.1}
    model = network()
    optimizer = TNGD(model.parameters(), **options)
    optimizer.step(fl.Objective(model, cross_entropy)(*data()))
    twin, copied = copy.deepcopy((model, optimizer))
    other = network()
    other.load_state_dict(model.state_dict())
    loaded = TNGD(other.parameters(), **options)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, copied), (other, loaded)):
        o.step(fl.Objective(m, cross_entropy)(*data(1)))
        assert torch.equal(flat(m), flat(model)) and o.device_time == pytest.approx(1.4)


def test_maximize_and_resting_groups():
    x, y = data()
    up, down = network(), network()
    TNGD(up.parameters(), maximize=True).step(fl.Objective(up, lambda z, y: -cross_entropy(z, y))(x, y))
    TNGD(down.parameters()).step(fl.Objective(down, cross_entropy)(x, y))
    torch.testing.assert_close(flat(up), flat(down))
    model, alone = network(), network()
    first, last = list(model[0].parameters()), list(model[2].parameters())
    TNGD([{"params": first, "lr": 0.0}, {"params": last}]).step(fl.Objective(model, cross_entropy)(x, y))
    TNGD(alone[2].parameters()).step(fl.Objective(alone, cross_entropy)(x, y))
    torch.testing.assert_close(flat(model), flat(alone))


def test_a_resting_group_s_state_stays_as_it_is():
    model, (x, y) = network(), data()
    optimizer = TNGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], base="adam", lr=0.1)
    optimizer.step(fl.Objective(model, cross_entropy)(x, y))
    assert all(not optimizer.state.get(p) and p.grad is None for p in model[0].parameters())
    before = [p.detach().clone() for p in model[0].parameters()]
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step(fl.Objective(model, cross_entropy)(x, y))
    for p, old in zip(model[0].parameters(), before, strict=True):  # the first step of Adam
        torch.testing.assert_close((p - old).detach().abs(), torch.full_like(p, 0.1), rtol=1e-4, atol=0.0)


def test_batch_normalisation_is_fine_where_no_sample_s_jacobian_is_asked():
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.2))
    optimizer = TNGD(model.parameters())
    optimizer.step(fl.Objective(model, cross_entropy)(*data()))
    assert int(model[1].num_batches_tracked) == 1


def test_what_is_not_finite_is_left_out():
    model, (x, y) = network(), data()
    before = flat(model)
    optimizer = TNGD(model.parameters(), nonfinite="skip", analog_time=1.0)
    optimizer.step(fl.Objective(model, cross_entropy)(x * math.nan, y))
    assert torch.equal(flat(model), before) and optimizer.device_time == 0


def test_what_it_cannot_do_is_refused_by_name():
    model = network()
    optimizer = TNGD(model.parameters())
    for closure in (None, lambda: torch.zeros(())):
        with pytest.raises(MissingOracle, match=r"TNGD needs the model's outputs.*objective\(batch\)"):
            optimizer.step(closure)
    with pytest.raises(MissingOracle, match=r"TNGD\.update"):
        optimizer.update([], [], [])
    for base in ("oasis", "psps", "smb", "sophia"):
        with pytest.raises(TypeError, match="needs gradients only"):
            TNGD(model.parameters(), base=base)
    with pytest.raises(ValueError, match="must be convex"):
        TNGD(model.parameters(), damp=1e-3).step(fl.Objective(model, lambda z, y: -mse_loss(z, y))(data()[0], normal(8, 3)))
    with pytest.raises(ValueError, match="damp must be the same"):
        TNGD([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "damp": 2.0}])
    assert TNGD(model.parameters(), base=functools.partial(Adam, betas=(0.8, 0.9))).param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"damp": 0.0}, "damp must"), ({"tol": 0.0}, "tol must"), ({"analog_time": -1.0}, "analog_time must"),
    ({"analog_time": 1.0, "dt": 0.0}, "dt must"), ({"beta_inv": 0.1}, "give analog_time"), ({"delay": 0.1}, "give analog_time"),
    ({"average": True}, "give analog_time"), ({"analog_time": 1.0, "delay": -1.0}, "delay must"), ({"seed": 0.5}, "seed must"),
    ({"warm_start": 1}, "warm_start must")])
def test_bad_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        TNGD([nn.Parameter(torch.ones(2))], **arguments)
