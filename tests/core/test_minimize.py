"""``minimize`` keeps SciPy's habits."""

import warnings

import numpy as np
import pytest
import torch

import fallline as fl


def bowl(x):
    return ((x - 3) ** 2).sum()


@pytest.mark.parametrize("start", [1.0, 2, [1.0, 2.0], (1, 2), [[1.0, 2.0], [3.0, 4.0]], np.ones(3, dtype=np.float32), np.float64(1.0),
                                   torch.tensor([1, 2])])
def test_starting_points_become_float64_tensors(start):
    result = fl.minimize(bowl, start)
    expected = np.asarray(start, dtype=np.float64)
    assert result.success and result.x.dtype == torch.float64 and result.x.shape == expected.shape
    torch.testing.assert_close(result.x, torch.full(expected.shape, 3.0, dtype=torch.float64))


def test_nested_starting_points_may_hold_numbers_and_arrays():
    result = fl.minimize(lambda z: bowl(z["a"]) + bowl(z["b"][0]), {"a": 1.0, "b": [np.zeros(2), torch.zeros(1)]}, maxiter=20)
    torch.testing.assert_close(result.x["b"][0], torch.full((2,), 3.0, dtype=torch.float64))


def numpy_cosh(x):
    return torch.tensor(np.cosh(x.detach().numpy() - 1).sum())


def test_a_function_outside_of_torch_needs_only_its_gradient():
    result = fl.minimize(numpy_cosh, torch.zeros(3, dtype=torch.float64), jac=lambda x: torch.sinh(x - 1))
    assert result.success
    torch.testing.assert_close(result.x, torch.ones(3, dtype=torch.float64))
    with pytest.raises(fl.core.MissingOracle, match=r"'fun' cannot be differentiated.*torch operations.*jac="):
        fl.minimize(numpy_cosh, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("method", ["adamw", "lazy-newton", "lazy-cubic-newton", "consensus-based", "consensus-hopping"])
def test_fun_is_the_objective_at_x(method):
    start = torch.full((2,), 1.5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the theory's contraction")
        result = fl.minimize(bowl, start, method, maxiter=7)
    assert result.fun == float(bowl(result.x))


def test_an_evaluation_at_the_end_is_counted():
    assert fl.minimize(bowl, [1.0], "adamw", maxiter=7).nfev == 8


def test_a_tolerance_that_cannot_act_is_warned_of():
    with pytest.warns(UserWarning, match=r"tol=0.001 has no effect: Train\(AdamW"):
        fl.minimize(bowl, [1.0], "adamw", maxiter=3, tol=1e-3)


@pytest.mark.parametrize("options, message", [
    ({"jac": True}, "jac must be a function"),
    ({"hess": "2-point"}, "hess must be a function"),
    ({"jac": lambda x: torch.ones(3)}, r"the gradient of 'fun' must be a tensor of shape \(2,\), got shape \(3,\)"),
    ({"jac": lambda x: "steep"}, "the gradient of 'fun' must be a tensor.*a str"),
    ({"jac": lambda x: [1.0, 2.0, 3.0]}, r"the gradient of 'fun' must be a tensor of shape \(2,\), got shape \(3,\)"),
    ({"hess": lambda x: torch.ones(3, 3)}, r"the Hessian of 'fun' must be a tensor of shape \(2, 2\)"),
    ({"x0": "one"}, "x0 must be a tensor, .* got a str"),
    ({"x0": [[1.0], [1.0, 2.0]]}, "x0 must hold real numbers in equal rows"),
])
def test_bad_input(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fl.minimize(bowl, **{"x0": [1.0, 2.0], **options})


def test_functions_of_numpy_may_answer_with_its_numbers():
    target = np.array([1.0, -2.0, 3.0])
    r = fl.minimize(lambda x: float(((x.numpy() - target) ** 2).sum()), np.zeros(3), jac=lambda x: 2 * (x.numpy() - target),
                    hess=lambda x: 2 * np.eye(3))
    assert r.success
    np.testing.assert_allclose(r.x, target, atol=1e-8)
    r = fl.minimize(lambda x: np.float64((x.numpy() ** 2).sum()), [1.0, 2.0], jac=lambda x: (2 * x.numpy()).tolist())
    assert r.success


def test_further_arguments_come_after_the_usual_ones():
    def fun(x, a, b):
        return ((x - a) ** 2).sum() + b

    r = fl.minimize(fun, torch.zeros(2, dtype=torch.float64), args=(3.0, 7.0), hessp=lambda x, v, a, b: 2 * v)
    assert r.fun == pytest.approx(7.0)
    torch.testing.assert_close(r.x, torch.full((2,), 3.0, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"args must be a tuple, got 3"):
        fl.minimize(fun, [0.0], args=3)


@pytest.mark.parametrize("name", ["bounds", "constraints"])
def test_bounds_belong_to_the_problem(name):
    with pytest.raises(TypeError, match=rf"takes no {name}.*Constrained"):
        fl.minimize(lambda x: (x**2).sum(), [1.0], **{name: [(0, 1)]})
