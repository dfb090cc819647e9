"""OptEx: the chain, the forked states and the history against plain loops, and the same results under every executor."""

import copy
import math
import multiprocessing

import numpy as np
import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim
from fallline.core import tree
from fallline.core.errors import NonFiniteError
from fallline.optim import SGD, Adam, DoG, Frugal, Lion, Momentum, OptEx, Shampoo
from fallline.optim.optex import COORDINATES, SCALES

D = 12


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).mean()


def gradient(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(rosenbrock(x), x)[0]


def matern(r):
    return (1 + math.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-math.sqrt(5) * r)


def predict(positions, gradients, query, noise, scale):
    x, g = (np.stack([t.numpy() for t in each]) for each in (positions, gradients))
    r = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    above = np.sort(r[np.triu_indices(len(x), 1)])
    length = scale * above[(len(above) - 1) // 2] if len(x) > 1 else math.inf
    near = matern(np.sqrt(((x - query.numpy()) ** 2).sum(-1)) / length)
    return torch.tensor(near @ np.linalg.solve(matern(r / length) + noise * np.eye(len(x)), g))


def fork(x, optimizer, make):
    """Another parameter at the same point, under an optimizer in the same state."""
    other = nn.Parameter(x.detach().clone())
    forked = make([other])
    forked.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, forked


def plain_loop(make, x0, n, kept, noise, iterations):
    """The three displayed lines of the module, with torch's own optimizers."""
    x = nn.Parameter(x0.clone())
    optimizer = make([x])
    positions, gradients, visited = [], [], []
    for _ in range(iterations):
        chain = [(x, optimizer)]
        for _ in range(n - 1 if positions else 0):
            last, state = chain[-1]
            point, forked = fork(last, state, make)
            point.grad = predict(positions, gradients, last.detach(), noise, SCALES[2])
            forked.step()
            chain.append((point, forked))
        for point, _ in chain:
            positions.append(point.detach().clone())
            gradients.append(gradient(point))
        positions, gradients = positions[-kept:], gradients[-kept:]
        x, optimizer = chain[-1]
        x.grad = gradient(x)
        optimizer.step()
        visited.append(x.detach().clone())
    return visited


SIDES = [(Adam, torch.optim.Adam, {"lr": 0.02}), (Momentum, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9})]


@pytest.mark.parametrize("rule, peer, hyper", SIDES)
@pytest.mark.parametrize("n, kept", [(1, 2), (3, 7), (4, 20)])
def test_it_takes_the_steps_of_a_plain_loop(rule, peer, hyper, n, kept):
    expected = plain_loop(lambda params: peer(params, **hyper), 0.5 * normal(D), n, kept, 1e-4, 9)
    method = OptEx(rule, n=n, history=kept, noise=1e-4, **hyper)
    problem = fl.Smooth(rosenbrock, 0.5 * normal(D))
    state = method.init(problem, fl.Key(0))
    for x in expected:
        state = method.step(problem, state)
        torch.testing.assert_close(state["x"], x, rtol=1e-6, atol=1e-8)
    assert problem.counts["gradients"] == 1 + n * 8 and len(state["positions"]) == min(kept, 1 + n * 8)


@pytest.mark.parametrize("rule", [DoG, Shampoo, Frugal, optim.Adam8bit])
def test_rules_of_any_kind_predict_their_way(rule):
    start = {"w": normal(4, 5), "b": normal(4, seed=1)}
    problem = fl.Smooth(lambda x: (x["w"] ** 2).sum() + (x["b"] ** 2).sum(), start)
    result = fl.solve(problem, OptEx(rule, n=3), fl.Budget(steps=20))
    assert result.status == "budget" and problem.value(result.x) < problem.value(start)


def test_a_rule_that_needs_more_than_gradients_is_refused():
    for rule, need in ((optim.Sophia, "Sophia needs gnb"), (optim.OASIS, "OASIS needs gradient at the previous point, hutchinson"),
                       ("aegd", "AEGD needs the loss"), (optim.GradReg, "GradReg needs the loss")):
        with pytest.raises(ValueError, match=f"optimizer must need gradients only, which are predicted, and {need}"):
            fl.solve(training(), OptEx(rule), fl.Budget(steps=2))


def test_a_chain_of_one_is_the_rule_alone():
    problem = fl.FiniteSum(lambda w, a: ((a @ w - 1) ** 2).mean(), (normal(40, D),), torch.zeros(D, dtype=torch.float64), batch_size=4)
    ours, plain = (fl.solve(problem, m, fl.Budget(steps=15), key=5) for m in (OptEx(n=1, lr=0.1), fl.Train(Adam, lr=0.1)))
    torch.testing.assert_close(ours.x, plain.x, rtol=1e-12, atol=1e-14)


def test_an_iteration_counts_its_gradients_and_makes_more_progress():
    problem = fl.Smooth(rosenbrock, 0.5 * normal(200))
    ours = fl.solve(problem, OptEx(n=4, lr=0.02), fl.Budget(steps=30))
    assert ours.nit == 30 and ours.counts == {"gradients": 1 + 29 * 4}
    alone = fl.solve(problem, fl.Train(Adam, lr=0.02), fl.Budget(steps=60))
    assert problem.value(ours.x) < problem.value(alone.x)
    bounded = fl.solve(problem, OptEx(n=4, lr=0.02), fl.Budget(gradients=20))
    assert bounded.nit == 6 and bounded.counts["gradients"] == 21


def test_best_goes_on_from_the_lowest_loss():
    seen = []

    def bowl(x):
        loss = (x**2).sum()
        seen.append((float(loss.detach()), x.detach().clone()))
        return loss

    problem = fl.Smooth(bowl, normal(3))
    method = OptEx(SGD, n=4, select="best", lr=0.6)  # factors of −0.2 by the true gradient, and wilder by predicted ones
    state = method.init(problem, fl.Key(0))
    chosen = []
    for _ in range(5):
        seen.clear()
        state = method.step(problem, state)
        losses = [value for value, _ in seen]
        best = seen[int(np.argmin(losses))][1]
        chosen.append(int(np.argmin(losses)))
        torch.testing.assert_close(state["x"], -0.2 * best)
        assert float(state["loss"]) == min(losses)
    assert len({*chosen}) > 1


def network(norm=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1)).double()


def training(**options):
    return fl.Training(network(**options), nn.functional.mse_loss, (normal(64, 6), normal(64, 1, seed=1)), batch_size=16)


def test_executors_agree_on_functions():
    target = normal(D)
    results = [fl.solve(fl.Smooth(lambda x: ((x["a"] - target) ** 2).sum() + x["b"].cosh().sum(), {"a": normal(D), "b": normal(2, 2)}),
                        OptEx(n=3, lr=0.05, executor=executor), fl.Budget(steps=8)) for executor in ("serial", "threads", "processes")]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(results[0].x), tree.leaves(other.x), strict=True))
        assert other.counts == results[0].counts and other.nit == 8
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("norm", [False, True])
def test_processes_agree_on_networks_with_random_masks_and_buffers(norm):
    problem = training(norm=norm)
    before = torch.get_rng_state()
    serial, forked = (fl.solve(problem, OptEx(n=3, lr=0.01, executor=executor), fl.Budget(steps=6), key=2)
                      for executor in ("serial", "processes"))
    assert all(torch.equal(serial.x[name], forked.x[name]) for name in serial.x)
    assert serial.counts == forked.counts and serial.counts["samples"] == 16 * serial.counts["gradients"]
    assert torch.equal(torch.get_rng_state(), before)
    if norm:  # buffers move once an iteration
        assert int(serial.x["1.num_batches_tracked"]) == 6
    with pytest.raises(ValueError, match="threads' does not work for networks"):
        fl.solve(training(), OptEx(executor="threads"))


def test_every_evaluation_draws_a_realisation_of_its_own():
    drawn = []

    def sample(problem, key, size, indices, at):
        drawn.append(key)
        return fl.Smooth(rosenbrock, problem.x0)

    fl.solve(fl.Smooth(rosenbrock, normal(D), sampler=sample), OptEx(n=3, lr=0.01), fl.Budget(steps=4), key=9)
    assert drawn == [fl.Key(9).fold(i) for i in range(10)]


def test_a_checkpoint_made_by_processes_is_taken_up_in_turn(tmp_path):
    problem = fl.Smooth(rosenbrock, normal(D))
    make = lambda: OptEx(Lion, n=3, lr=0.001, executor="processes")
    whole = fl.solve(problem, make(), fl.Budget(steps=25))
    fl.solve(problem, make(), fl.Budget(steps=11), checkpoint=tmp_path / "c")
    assert torch.equal(fl.solve(problem, make(), fl.Budget(steps=25), checkpoint=tmp_path / "c").x, whole.x)


def test_the_scale_is_chosen_every_ten_iterations():
    method, problem = OptEx(n=2, lr=0.01), fl.Smooth(lambda x: torch.sin(8 * x).sum(), normal(D))
    state, scales = method.init(problem, fl.Key(0)), []
    for _ in range(31):
        state = method.step(problem, state)
        scales.append(state["scale"])
    assert set(scales[:10]) == {SCALES[2]} and {*scales[10:]} <= {*SCALES}
    assert len({*scales[10:20]}) == len({*scales[20:30]}) == 1


def test_many_variables_are_told_apart_by_some_of_them():
    method, problem = OptEx(n=3, lr=0.01), fl.Smooth(lambda x: (x**2).sum(), normal(COORDINATES + 50))
    state = method.init(problem, fl.Key(0))
    for _ in range(4):
        state = method.step(problem, state)
    assert state["positions"].shape == (10, COORDINATES) and state["gradients"].shape == (10, COORDINATES + 50)
    chosen = state["coordinates"]
    assert len(chosen.unique()) == COORDINATES and not torch.equal(chosen, torch.arange(COORDINATES))
    expected = state["x"] + 0  # the newest row is where the last true gradient was taken
    assert (state["positions"][-1] - expected[chosen]).abs().max() <= 0.011


def test_values_that_are_not_finite_end_the_run():
    calls = []

    def overflowing(x):
        calls.append(1)
        return (x**2).sum() * (math.inf if len(calls) == 6 else 1.0)

    result = fl.solve(fl.Smooth(overflowing, normal(D)), OptEx(n=3, lr=0.01), fl.Budget(steps=9))
    assert result.status == "nonfinite" and "point 2 of 3" in result.message and tree.all_finite(result.x)
    method, problem = OptEx(n=3, lr=0.01), fl.Smooth(rosenbrock, normal(D))
    state = method.step(problem, method.init(problem, fl.Key(0)))
    state["gradients"][0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="predicted at point 1"):
        method.step(problem, state)


def test_a_point_that_does_not_move_needs_noise():
    problem = fl.Smooth(lambda x: (x**2).sum(), torch.zeros(3, dtype=torch.float64))
    assert fl.solve(problem, OptEx(SGD, n=3, lr=0.1), fl.Budget(steps=5)).status == "budget"
    with pytest.raises(ValueError, match="noise=0 leaves the kernel matrix"):
        fl.solve(problem, OptEx(SGD, n=3, lr=0.1, noise=0.0), fl.Budget(steps=5))


def test_bad_input_is_refused():
    for arguments, message in (
        ({"n": 0}, "n must be a whole number of at least 1"),
        ({"n": 8, "history": 7}, "history must be a whole number of at least 8 .*got 7"),
        ({"n": 1, "history": 1}, "history must be a whole number of at least 2"),
        ({"kernel": "cubic"}, "kernel must be"),
        ({"noise": -1e-3}, "noise must be"),
        ({"select": "first"}, "select must be 'last' or 'best', got 'first'"),
        ({"executor": "gpu"}, "executor must be"),
    ):
        with pytest.raises(ValueError, match=message):
            OptEx(**arguments)
    problem = fl.Smooth(rosenbrock, normal(D))
    with pytest.raises(TypeError, match=r"optimizer of fallline\.optim, which has a pure form, got SGD"):
        fl.solve(problem, OptEx(torch.optim.SGD, lr=0.1))
    with pytest.raises(TypeError, match="real variables"):
        fl.solve(fl.Smooth(lambda z: z.abs().sum(), torch.zeros(2, dtype=torch.complex128)), OptEx())
    with pytest.raises(TypeError, match="Adam has no argument 'momentum'"):
        fl.solve(problem, OptEx(momentum=0.9))
    assert "OptEx(Adam, n=4, history=20, kernel='matern52'" in repr(OptEx(lr=0.3)) and "lr=0.3" in repr(OptEx(lr=0.3))
    assert OptEx(DoG).space == dict(DoG.space)
