import random

import numpy as np
import pytest
import torch

import fallline as fl
from fallline import problems
from fallline.core import tree
from fallline.core.errors import UnknownName


@pytest.mark.parametrize("name", problems.names())
def test_every_problem_says_what_it_is_and_can_be_descended(name):
    generators = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    make = problems.makers()[name]
    problem = make(0)
    assert problem.budget is not None and problem.name == name
    assert (getattr(make, "func", make).__doc__ or problems.cutest.__doc__).strip()
    again, other = make(0), make(1)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(problem.x0), tree.leaves(again.x0), strict=True))
    assert random.getstate() == generators[0]
    assert (np.random.get_state()[1] == generators[1]).all() and torch.equal(torch.get_rng_state(), generators[2])
    start = problem.observe(problem.x0)
    assert start == again.observe(again.x0)
    assert other.name == name
    if "best_value" in problem.facts:
        assert start["value"] > problem.facts["best_value"]
    if problem.has("gradient"):
        small = 0.003 if "cutest" in name else 0.01
        end = problem.observe(fl.solve(problem, fl.Train(torch.optim.Adam, lr=small), fl.Budget(steps=15)).x)
        first = next(iter(start))
        assert end[first] < start[first]


def test_best_values_are_stationary():
    logistic = problems.logistic()
    found = fl.minimize(logistic._oracles["value"], logistic.x0, tol=1e-10)
    assert found.success and found.fun == pytest.approx(logistic.facts["best_value"], abs=1e-12)
    squares = problems.least_squares(condition=1e4)
    assert float(tree.norm(squares.gradient(squares.facts["solution"]))) < 1e-10
    eigenvalues = torch.linalg.eigvalsh(squares.hessian(squares.x0))
    assert float(eigenvalues[-1] / eigenvalues[0]) == pytest.approx(1e4, rel=1e-6)
    assert float(eigenvalues[-1]) == pytest.approx(squares.facts["L"])


def test_the_least_value_with_an_l1_penalty_is_what_accelerated_proximal_steps_come_to():
    problem = problems.logistic_l1()
    x = ahead = problem.x0
    step, t = 0.25, 1.0
    for _ in range(3_000):
        new = problem.prox(ahead - step * problem.smooth.gradient(ahead), step)
        t = 1.0 if float((ahead - new) @ (new - x)) > 0 else (1 + (1 + 4 * t * t) ** 0.5) / 2
        x, ahead = new, new + (t - 1) / (t + 1) * (new - x)
    assert abs(problem.observe(x)["gap"]) < 1e-10


@pytest.mark.parametrize("name", problems.CUTEST)
def test_seeds_move_the_start_of_the_collections_problems_a_little(name):
    start, *others = [problems.cutest(name)(seed) for seed in range(4)]
    for other in others:
        moved = ((other.x0 - start.x0) / torch.where(start.x0 == 0, 1.0, start.x0)).abs()
        assert float(moved.min()) > 0 and float(moved.max()) < 0.6 and torch.isfinite(other.value(other.x0))
        assert torch.equal(start.x0, problems.cutest(name)(0).x0) and other.name == start.name


def test_the_judged_figure_is_observed():
    for name in ("matrix-sensing", "digits-mlp"):
        problem = problems.make(name)
        assert problem.metric is None or problem.metric in problem.observe(problem.x0)
    assert problems.make("matrix-sensing").metric == "relative_error"


@pytest.mark.parametrize("name", ["BEALE", "HELIX", "POWELLSG", "DIXMAANA1"])
def test_known_minima_of_the_collection_are_reached(name):
    problem = problems.cutest(name)(0)
    result = fl.solve(problem, fl.solvers.LazyCubicNewton(period=1), fl.Budget(steps=300), tol=1e-8)
    assert result.fun == pytest.approx(problem.facts["best_value"], abs=1e-6)


def test_names_are_suggested():
    with pytest.raises(UnknownName, match="digits-mlp"):
        problems.make("digit-mlp")
    with pytest.raises(ValueError, match="BEALE"):
        problems.cutest("BEAL")
    with pytest.raises(ValueError, match="bounds or inequalities"):
        problems.cutest("HS21")


def test_equality_constrained_problems_of_the_collection_have_their_derivatives():
    for name in ("HS42", "BT11", "HS28"):
        problem = problems.cutest(name)(0)
        assert problem.kind == "constrained" and name in problems.CUTEST_EQUALITY
        x, lam = problem.x0 + 0.1, torch.linspace(-1, 2, len(problem.equality(problem.x0)), dtype=torch.float64)
        step = 1e-6 * torch.eye(len(x), dtype=torch.float64)
        G = torch.stack([(problem.equality(x + e) - problem.equality(x - e)) / 2e-6 for e in step], 1)
        torch.testing.assert_close(problem.equality_jacobian(x), G, rtol=1e-6, atol=1e-6)
        H = torch.stack([(problem.equality_jacobian(x + e).T @ lam - problem.equality_jacobian(x - e).T @ lam) / 2e-6 for e in step], 1)
        torch.testing.assert_close(problem.equality_hessian(x, lam), H, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: problems.least_squares(condition=0.5), lambda: problems.rosenbrock(d=1)])
def test_bad_parameters_are_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()
