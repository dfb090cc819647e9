"""What gradient regularisation does to a diagonal linear network, and that it descends where the objective is maximized."""

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
