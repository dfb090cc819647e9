"""The Hessian as an operator: of problems, of bound ones, of networks and of some of their parameters."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.core import tree


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def rosenbrock(x):
    return ((1 - x["a"]) ** 2).sum() + 10 * ((x["b"] - x["a"] ** 2) ** 2).sum()


def test_of_a_smooth_problem_with_one_gradient_for_all_products():
    point = {"a": normal(3), "b": normal(3, seed=1)}
    problem = fl.Smooth(rosenbrock, point)
    operator = problem.hessian_operator(point)
    expected = problem.hessian(point)
    problem.counts.restore({})
    torch.testing.assert_close(operator.to_dense(), expected)
    assert problem.counts["hvps"] == 6 and problem.counts["gradients"] == 0
    problem.hessian_operator(point)
    assert problem.counts["gradients"] == 1


def test_of_a_problem_with_its_own_products_or_gradients():
    A = normal(4, 4)
    A = A + A.T
    for given in ({"hvp": lambda x, v: A @ v}, {"gradient": lambda x: A @ x}):
        problem = fl.Smooth(lambda x: x @ A @ x / 2, normal(4, seed=2), **given)
        torch.testing.assert_close(problem.hessian_operator(problem.x0).to_dense(), A, rtol=1e-6, atol=1e-6)
        assert "hvps" in problem.counts or "gradients" in problem.counts


def test_of_a_function_that_is_linear_in_some_or_all_variables():
    problem = fl.Smooth(lambda x: (x["a"] ** 3).sum() + x["b"].sum(), {"a": normal(2), "b": normal(2)})
    found = problem.hessian_operator(problem.x0).to_dense()
    torch.testing.assert_close(found, torch.diag(torch.cat([6 * problem.x0["a"], torch.zeros(2, dtype=torch.float64)])))
    linear = fl.Smooth(lambda x: x.sum(), normal(2))
    assert not linear.hessian_operator(linear.x0).to_dense().any()


def test_of_bound_variables_and_of_some_of_them():
    point = [normal(2), normal(3, seed=1)]
    problem = fl.Smooth(lambda x: (x[0].sum() * x[1].prod()) ** 2, point)
    bound = problem.bind(point)
    expected = problem.hessian(point)
    torch.testing.assert_close(bound.hessian_operator().to_dense(), expected)
    torch.testing.assert_close(bound.hessian_operator({"1": point[1]}).to_dense(), expected[2:, 2:])


def test_of_a_network_under_its_masks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    batch = fl.Objective(model, cross_entropy)(normal(5, 3), torch.tensor([0, 1, 1, 0, 1]))
    batch()
    operator = batch.hessian_operator()
    v = {name: normal(*p.shape, seed=9) for name, p in batch.variables.items()}
    torch.testing.assert_close(operator.matvec(tree.flatten(v)), tree.flatten(batch.hvp(None, v)))
    assert batch.counts["hvps"] == 2 and batch.counts["gradients"] == 2
    last = {name: p for name, p in batch.variables.items() if name.startswith("3")}
    whole = operator.to_dense()
    torch.testing.assert_close(batch.hessian_operator(last).to_dense(), whole[16:, 16:])


def test_half_precision_is_computed_in_float32():
    problem = fl.Smooth(lambda x: (x**4).sum(), torch.ones(3, dtype=torch.bfloat16))
    assert problem.hessian_operator(problem.x0).matvec(torch.ones(3)).dtype is torch.float32


def test_an_operator_can_be_shifted():
    A = fl.core.operators.LinearOperator.from_tensor(torch.ones(2, 2))
    torch.testing.assert_close(A.shifted(3.0).to_dense(), torch.tensor([[4.0, 1.0], [1.0, 4.0]]))
    with pytest.raises(ValueError, match="not square"):
        fl.core.operators.LinearOperator.from_tensor(torch.ones(2, 3)).shifted(1.0)
