"""What gradient regularisation does to a diagonal linear network, and that it descends where the objective is maximized."""

import functools

import pytest
import torch
from torch import nn

import fallline as fl
from fallline import optim, problems
from fallline.optim.gradient_regularization import MODES
from fallline.problems.diagonal import sparse_regression

CURVATURE = torch.tensor([1.0, 4.0, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("level", [0.1, 100.0])
@pytest.mark.parametrize("mode", MODES)
def test_maximize_is_minimize_of_the_negative(mode, level):
    ends = []
    for sign in (1.0, -1.0):
        problem = fl.Smooth(lambda x, sign=sign: sign * ((x**4).sum() / 4 + (CURVATURE * x**2).sum() / 2),
                            torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
        p = nn.Parameter(problem.x0.clone())
        settings = {"gamma": 0.1, "eps": 0.05, "mode": mode, "level": sign * level, "lr": 0.01, "maximize": sign < 0}
        optimizer = optim.GradReg([p], **settings)
        for _ in range(3):
            optimizer.step(problem.bind(p))
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["forward", "backward", "double"])
def test_the_effective_alpha_of_a_diagonal_network_falls_as_the_flow_says(mode):
    """(log u v)' = −8 γ q², and −η² q² each step of gradient descent itself."""
    problem = problems.diagonal_linear_net(d=20, n=10, k=3)
    point = {name: nn.Parameter(x.clone()) for name, x in problem.x0.items()}
    inputs, answers, _ = sparse_regression(0, 20, 10, 3)
    q = inputs.T @ (inputs @ (point["u"] ** 2 - point["v"] ** 2).detach() - answers) / (2 * 10)
    gamma, lr = 0.01, 1e-6
    optim.GradReg(point.values(), gamma=gamma, eps=1e-5, mode=mode, lr=lr).step(problem.bind(point))
    fallen = 2 * (optim.effective_alpha(point["u"], point["v"]) / 0.1).log()
    torch.testing.assert_close(fallen.detach() / lr, -8 * gamma * q**2, rtol=2e-2, atol=0.0)


def test_gradient_descent_keeps_the_effective_alpha():
    problem = problems.diagonal_linear_net()
    x = fl.solve(problem, fl.Train(optim.SGD, lr=1e-5), fl.Budget(steps=200)).x
    torch.testing.assert_close(optim.effective_alpha(x["u"], x["v"]), torch.full((100,), 0.1, dtype=torch.float64), rtol=1e-4, atol=0.0)


def test_the_diagonal_network_is_its_formula():
    problem = problems.diagonal_linear_net(3, d=30, n=12, k=4, alpha=0.2)
    inputs, answers, solution = sparse_regression(3, 30, 12, 4)
    assert inputs.shape == (12, 30) and torch.allclose(answers, inputs[:, :4].sum(1) / 2)
    x = {"u": solution.sqrt(), "v": torch.zeros(30, dtype=torch.float64)}
    assert problem.observe(x) == {"value": pytest.approx(0.0, abs=1e-20), "squared_error": pytest.approx(0.0, abs=1e-20)}
    start = problem.observe(problem.x0)
    assert start["value"] == pytest.approx(float((answers**2).sum()) / (4 * 12)) and start["squared_error"] == pytest.approx(1.0)
    entries = sparse_regression(0, 500, 400, 5)[0]
    assert float(entries.mean()) == pytest.approx(5, abs=0.05) and float(entries.var()) == pytest.approx(5, abs=0.1)
    with pytest.raises(ValueError, match="k must be between 1 and d = 30, got 31"):
        problems.diagonal_linear_net(d=30, k=31)


@pytest.mark.parametrize(("base", "name"), [(functools.partial(optim.MARS, exact=True), "MARS"), (optim.OASIS, "OASIS")])
def test_a_rule_that_compares_gradients_itself_is_refused(base, name):
    with pytest.raises(TypeError, match=f"GradReg cannot go over {name} as it is set: it compares gradients at its own points"):
        optim.GradReg([nn.Parameter(torch.ones(2, 2))], base=base)


def test_there_is_no_pure_form():
    p = nn.Parameter(torch.ones(2))
    optimizer = optim.GradReg([p])
    with pytest.raises(fl.MissingOracle, match=r"GradReg.update\(\) takes gradients only"):
        optimizer.update([p], [torch.ones(2)], optimizer.init([p]))


@pytest.mark.parametrize("mode", ["forward", "double"])
def test_gradients_of_parameters_of_others_are_as_after_one_evaluation(mode):
    point = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2))}
    problem = fl.Smooth(lambda x: (x["a"] ** 2 * x["b"]).sum(), {n: p.detach().clone() for n, p in point.items()})
    optim.GradReg([point["a"]], mode=mode).step(problem.bind(point))
    torch.testing.assert_close(point["b"].grad, torch.ones(2))


def test_double_asks_for_an_objective_of_its_parameters():
    inside, outside = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    outside.grad = torch.ones(2)
    problem = fl.Smooth(lambda x: (x**2).sum(), inside.detach().clone())
    with pytest.raises(fl.MissingOracle, match="Hessian-vector products of every parameter it optimizes"):
        optim.GradReg([inside, outside], mode="double").step(problem.bind(inside))


@pytest.mark.parametrize(("base", "group", "message"), [
    (optim.StochasticAGD, {"mu": 200.0}, "mu must be at most smoothness, got 200.0 and 100.0"),
    (optim.AdamW, {"betas": 0.9}, "betas must be 2 numbers, got 0.9"), (optim.EXAdam, {"eps": 0.0}, "eps must be a finite number > 0"),
    (optim.AEGD, {"c": 3.0}, "c must be the same in all groups"),
])
def test_groups_are_checked_as_the_base_checks_them(base, group, message):
    optimizer = optim.GradReg([nn.Parameter(torch.ones(2))], base=base)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **group})
    assert len(optimizer.param_groups) == 1
    state = optimizer.state_dict()
    if base is not optim.StochasticAGD and base is not optim.AEGD:  # pairs of values and groups are checked where they are made
        state["param_groups"][0].update(group)
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)


def test_it_does_not_leave_a_manifold():
    geoopt = pytest.importorskip("geoopt")
    sphere = geoopt.Sphere()
    p = geoopt.ManifoldParameter(sphere.random(3), manifold=sphere)
    with pytest.raises(TypeError, match="GradReg cannot go over RiemannianAdam here: its move is a Geodesic"):
        optim.GradReg([p], base=optim.RiemannianAdam)
