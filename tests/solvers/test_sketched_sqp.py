"""Sketched Newton for equality constraints: systems, merit, parameters, and what it refuses."""

import math

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.core.constraints import KKT, LagrangePoint
from fallline.solvers import AdaSketchNewton
from fallline.solvers.sketched_sqp import _merit
from fallline.solvers.sketches import SKETCHES, sketched_solve

D = torch.float64
METHODS = ["exact", *SKETCHES]


def sphere(start=(1.0, 0.5, -0.3)):
    """Nearest point of the unit sphere to (1, 2, 2): (1, 2, 2)/3, with λ = −(1 − 1/3)·3/… from 2(x − a) + 2λx = 0."""
    a = torch.tensor([1.0, 2.0, 2.0], dtype=D)
    smooth = fl.Smooth(lambda x: ((x - a) ** 2).sum(), torch.tensor(start, dtype=D))
    return fl.Constrained(smooth, equality=lambda x: (x**2).sum() - 1)


@pytest.mark.parametrize("sketch", SKETCHES)
def test_sketches_solve_symmetric_systems(sketch):
    K = torch.tensor([[4.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, -2.0]], dtype=D)
    r = torch.tensor([1.0, -2.0, 0.7], dtype=D)
    z, steps = sketched_solve(K, r, torch.zeros(3, dtype=D), sketch, 1e-10, 10_000, np.random.default_rng(0))
    assert float((K @ z - r).norm()) <= 1e-10 and 0 < steps < 10_000
    _, used = sketched_solve(K, r, torch.zeros(3, dtype=D), sketch, 0.0, 7, np.random.default_rng(0))
    assert used == 7


@pytest.mark.parametrize("sketch", METHODS)
@pytest.mark.parametrize("psi", ["bound", "estimate"])
def test_the_solution_and_its_multipliers_are_found(sketch, psi):
    result = fl.solve(sphere(), AdaSketchNewton(sketch, psi), fl.Budget(steps=100), tol=1e-8)
    assert result.success and isinstance(result.certificate, KKT)
    torch.testing.assert_close(result.x, torch.tensor([1.0, 2.0, 2.0], dtype=D) / 3, atol=1e-7, rtol=0)
    assert float(result.certificate.multipliers) == pytest.approx(2.0)  # 2(x − a) + 2λx = 0 at x = a/3
    assert max(result.certificate.stationarity, result.certificate.violation) <= 1e-8


def test_the_merit_functions_slope_is_its_derivative():
    problem, method = sphere(), AdaSketchNewton("exact")
    state = method.init(problem, fl.Key(0))
    state["multipliers"] = torch.tensor([0.7], dtype=D)
    here = LagrangePoint.at(problem, state["x"])
    system = method._system(problem, here, state["multipliers"])
    z, slope, kept = method._direction(problem, here, system, state)

    def along(t):
        point = LagrangePoint.at(problem, here.x + t * z[:3])
        return _merit(point, state["multipliers"] + t * z[3:], kept["eta1"], kept["eta2"])

    assert slope == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=1e-5)
    assert slope <= -kept["eta2"] / 2 * float(system.r @ system.r)
    torch.testing.assert_close(system.K @ z, system.r)


def test_accuracy_is_that_of_the_paper():
    problem, method = sphere(), AdaSketchNewton(theta=0.5)
    state = method.init(problem, fl.Key(0))
    here = LagrangePoint.at(problem, state["x"])
    system = method._system(problem, here, state["multipliers"])
    B, G, H = system.K[:3, :3], here.jacobian, system.H
    assert system.psi == pytest.approx(20 * max(float(B.norm()) ** 2, 1) / (min(float(G.norm()) ** 2, 1) * 0.1))
    assert system.upsilon == pytest.approx(max(float(G.norm()), float(H.norm()), 1))
    z, _, kept = method._direction(problem, here, system, state)
    assert float(system.K.norm()) * system.psi * float((system.K @ z - system.r).norm()) <= 0.5 * kept["delta"] * float(system.r.norm())
    assert kept["delta"] >= 1e-6


def test_indefinite_lagrangians_are_shifted():
    problem = fl.Constrained(fl.Smooth(lambda x: -(x**2).sum(), torch.ones(3, dtype=D)), equality=lambda x: x.sum() - 1)
    method = AdaSketchNewton("exact")
    state = method.init(problem, fl.Key(0))
    system = method._system(problem, LagrangePoint.at(problem, state["x"]), state["multipliers"])
    t = 0.1 + float(system.H.norm())
    torch.testing.assert_close(system.K[:3, :3], system.H + t * torch.eye(3, dtype=D))


def test_parameters_change_until_the_direction_descends():
    problem = sphere(start=(0.1, 0.0, 0.0))
    result = fl.solve(problem, AdaSketchNewton(eta1=1e-3, eta2=10.0), fl.Budget(steps=200), tol=1e-6)
    assert result.success


def test_dependent_and_inconsistent_constraints_never_converge():
    smooth = fl.Smooth(lambda x: (x**2).sum(), torch.ones(3, dtype=D))
    twice = fl.Constrained(smooth, equality=lambda x: torch.stack([x.sum() - 1, 2 * x.sum() - 2]))
    result = fl.solve(twice, AdaSketchNewton(), fl.Budget(steps=5))
    assert result.status == "failed" and "dependent" in result.message
    impossible = fl.Constrained(smooth, equality=lambda x: (x**2).sum() + 1)
    result = fl.solve(impossible, AdaSketchNewton("exact"), fl.Budget(steps=50), tol=1e-6)
    assert not result.success
    with pytest.raises(ValueError, match="cannot be independent"):
        fl.solve(fl.Constrained(smooth, equality=lambda x: torch.cat([x, x])), AdaSketchNewton(), fl.Budget(steps=1))


def test_undefined_trial_points_shorten_the_step():
    problem = fl.Constrained(fl.Smooth(lambda x: -x.log().sum(), torch.tensor([0.9, 0.02], dtype=D)), equality=lambda x: x.sum() - 1)
    result = fl.solve(problem, AdaSketchNewton("exact"), fl.Budget(steps=60), tol=1e-8)
    assert result.success
    torch.testing.assert_close(result.x, torch.full((2,), 0.5, dtype=D))


def test_nested_variables_are_solved_as_one_vector():
    x0 = {"a": torch.ones(2, dtype=D), "b": torch.zeros(1, dtype=D)}
    smooth = fl.Smooth(lambda x: ((x["a"] - 2) ** 2).sum() + (x["b"] ** 2).sum(), x0)
    problem = fl.Constrained(smooth, equality=lambda x: x["a"].sum() + x["b"] - 1)
    result = fl.solve(problem, AdaSketchNewton("exact"), fl.Budget(steps=20), tol=1e-10)
    assert result.success and float(result.x["b"]) == pytest.approx(-1.0) and math.isclose(float(result.x["a"][0]), 1.0)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"sketch": "rows"}, "sketch"), ({"psi": "exact"}, "psi"), ({"beta": 0.5}, "beta"), ({"nu": 1.0}, "nu"), ({"theta": 0.0}, "theta"),
    ({"eta2": -1.0}, "eta2"), ({"theta_power": -1.0}, "theta_power"), ({"max_sketches": 0}, "max_sketches"),
])
def test_bad_hyperparameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaSketchNewton(**arguments)


def test_a_problem_without_equalities_is_refused():
    from fallline.core.sets import Box

    with pytest.raises(fl.MissingOracle, match="equality"):
        fl.solve(fl.Constrained(fl.Smooth(lambda x: (x**2).sum(), torch.ones(3, dtype=D)), Box(0.0, 1.0)), AdaSketchNewton())
