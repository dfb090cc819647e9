"""Linear models: closed forms against autograd, dense against sparse, domains and the door."""

import math

import pytest
import torch

import fallline as fl
from fallline.core.linear_model import LOSSES

LOSS = {
    "squared": lambda z, y: 0.5 * (z - y) ** 2,
    "logistic": lambda z, y: torch.log1p(torch.exp(-y * z)),
    "sigmoid": lambda z, y: 1 / (1 + torch.exp(y * z)),
    "log": lambda z, y: -torch.log(z),
    "kl": lambda z, y: z - y * torch.log(z),
}


def data(loss, n=30, d=6):
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(n, d, dtype=torch.float64, generator=generator)
    if loss in ("squared", "logistic", "sigmoid"):
        A = A - 0.5
    y = torch.rand(n, dtype=torch.float64, generator=generator)
    y = 2 * (y > 0.5).double() - 1 if loss in ("logistic", "sigmoid") else y
    return A, y, torch.linspace(0.2, 1, d, dtype=torch.float64)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_derivatives_are_those_of_the_formula(loss, sparse):
    A, y, x = data(loss)
    w = torch.linspace(0.1, 1, len(A), dtype=torch.float64)
    problem = fl.LinearModel(A.to_sparse() if sparse else A, y, loss, ridge=0.3, weights=w, x0=x)
    plain = fl.Smooth(lambda x: (w * LOSS[loss](A @ x, y)).sum() + 0.15 * (x @ x), x)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    close(problem.value(x), plain.value(x))
    for ours, theirs in zip(problem.value_and_gradient(x), plain.value_and_gradient(x), strict=True):
        close(ours, theirs)
    close(problem.gradient(x), plain.gradient(x))
    close(problem.hessian(x), plain.hessian(x))
    close(problem.hvp(x, y[:6]), plain.hessian(x) @ y[:6])
    close(problem.hessian_operator(x).matvec(y[:6]), plain.hessian(x) @ y[:6])
    close(problem.linear_model.column_curvatures(), LOSSES[loss].largest_curvature * (w @ A**2) + 0.3)


def test_products_and_slopes_of_sparse_models():
    A, y, x = data("logistic")
    dense, sparse = fl.LinearModel(A, y, "logistic", ridge=0.2), fl.LinearModel(A.to_sparse(), y, "logistic", ridge=0.2)
    value, slope = sparse.jvp(x, y[:6])
    torch.testing.assert_close(value, dense.value(x))
    torch.testing.assert_close(slope, dense.gradient(x) @ y[:6])


def test_a_mean_by_default_and_batches_are_unbiased():
    A, y, x = data("squared")
    problem = fl.LinearModel(A, y, ridge=0.1, batch_size=4)
    torch.testing.assert_close(problem.value(x), 0.5 * ((A @ x - y) ** 2).mean() + 0.05 * (x @ x))
    torch.testing.assert_close(problem.per_sample_gradients(x).mean(0), problem.gradient(x))
    parts = torch.stack([part.gradient(x) for part in problem.parts])
    torch.testing.assert_close(parts.mean(0), problem.gradient(x))
    batch = problem.draw(fl.Key(0))
    assert batch.samples == 4
    torch.testing.assert_close(batch.value(x), batch.value(x))


def test_gradients_and_products_are_counted_once():
    A, y, x = data("logistic")
    problem = fl.LinearModel(A, y, "logistic")
    problem.value_and_gradient(x)
    problem.hessian_operator(x).matvec(x)
    problem.hvp(x, x)
    assert problem.counts == {"gradients": 1, "samples": 30, "hvps": 2}


def test_outside_the_domain_the_value_is_infinite():
    A, y, x = data("log")
    assert float(fl.LinearModel(A, loss="log", x0=x).value(-x)) == math.inf
    assert float(fl.LinearModel(A, y, "kl", x0=x).value(-x)) == math.inf


def test_extreme_margins_stay_finite():
    A = torch.tensor([[1000.0], [-1000.0]], dtype=torch.float64)
    problem = fl.LinearModel(A, torch.tensor([1.0, 1.0]), "logistic")
    value, gradient = problem.value_and_gradient(torch.ones(1, dtype=torch.float64))
    assert float(value) == 500 and float(gradient) == 500
    curvature = fl.LinearModel(A / 20, torch.ones(2), "logistic").hessian(torch.ones(1, dtype=torch.float64))
    assert float(curvature) > 0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"loss": "hinge"}, "loss must be one of"),
    ({"targets": torch.zeros(30)}, "must be -1 or 1"),
    ({"targets": torch.ones(3)}, "30 numbers"),
    ({"targets": None}, "needs targets"),
    ({"ridge": -1.0}, "ridge"),
    ({"weights": -torch.ones(30)}, "weights"),
    ({"x0": torch.zeros(2)}, "x0 must have 6"),
    ({"loss": "squared", "targets": torch.full((30,), math.nan)}, "targets must be finite"),
    ({"weights": torch.full((30,), math.inf, dtype=torch.float64)}, "weights must be finite"),
    ({"weights": torch.ones(30, dtype=torch.float32)}, "weights must have the dtype of A, torch.float64, got torch.float32"),
    ({"x0": torch.zeros(6, dtype=torch.float32)}, "x0 must have the dtype of A, torch.float64, got torch.float32"),
    ({"x0": torch.full((6,), math.nan, dtype=torch.float64)}, "x0 must be finite"),
    ({"A": torch.ones(30, 6, dtype=torch.int64)}, "A must have a floating dtype, got torch.int64"),
    ({"A": torch.full((30, 6), math.nan)}, "A must be finite"),
    ({"A": torch.full((30, 6), math.nan).to_sparse()}, "A must be finite"),
    ({"loss": "kl", "targets": -torch.ones(30)}, "must not be negative"),
])
def test_bad_input_is_named(arguments, message):
    A, y, _ = data("logistic")
    with pytest.raises(ValueError, match=message):
        fl.LinearModel(**{"A": A, "targets": y, "loss": "logistic", **arguments})


def test_mini_batches_of_sparse_rows_are_refused():
    A, y, _ = data("logistic")
    with pytest.raises(ValueError, match="dense A"):
        fl.LinearModel(A.to_sparse(), y, "logistic").draw(fl.Key(0))
