"""NOTEARS: the constraint against its definition, where it ends, and what it finds."""

import math

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.graphs import NOTEARS, LeastSquaresScore, Notears, StructureLearning, erdos_renyi
from fallline.graphs.notears import acyclicity


def test_the_constraint_is_the_trace_of_the_exponential():
    W = np.random.default_rng(0).normal(size=(4, 4)) / 2
    series = sum(np.trace(np.linalg.matrix_power(W * W, k)) / math.factorial(k) for k in range(1, 40))
    value, gradient = acyclicity(W)
    assert value == pytest.approx(series, rel=1e-12)
    V = torch.tensor(W, requires_grad=True)
    torch.linalg.matrix_exp(V * V).trace().backward()
    np.testing.assert_allclose(gradient, V.grad.numpy(), rtol=1e-10)
    assert acyclicity(erdos_renyi(5, 7).weights.numpy())[0] == pytest.approx(0, abs=1e-12)


def test_a_step_is_one_minimisation_and_raises_rho_where_cycles_do_not_fall():
    problem = StructureLearning(erdos_renyi(5, 8, 1).sample(300), LeastSquaresScore(0.05))
    method = Notears()
    state = method.step(problem, method.init(problem, fl.Key(0)))
    assert state["rho"] == 1 and state["alpha"] == pytest.approx(state["cycles"])
    while state["rho"] == 1:
        kept = state
        state = method.step(problem, state)
    assert state["rho"] == 10 and torch.equal(state["W"], kept["W"]) and state["alpha"] == kept["alpha"]


def test_it_ends_without_cycles_and_finds_an_easy_graph(tmp_path):
    true = erdos_renyi(6, 8, 2)
    X = true.sample(1000)
    learner = NOTEARS()
    dag = learner.fit(X)
    assert dag.compare(true)["shd"] <= 1 and learner.result_.success and learner.result_.gap <= 1e-8
    assert acyclicity(learner.W_.numpy())[0] <= 1e-8 and bool((learner.W_.diagonal() == 0).all())
    problem = StructureLearning(X, learner.score)
    fl.solve(problem, Notears(), fl.Budget(steps=3), checkpoint=tmp_path / "c")
    assert torch.equal(fl.solve(problem, Notears(), checkpoint=tmp_path / "c").x, learner.W_)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="tol must be"):
        Notears(tol=0)
