import pytest
import torch

import fallline as fl


def test_maps_are_counted_and_observed_residuals_are_not():
    problem = fl.FixedPoint(lambda x: x / 2, torch.tensor([3.0, 4.0]))
    assert torch.equal(problem.map(problem.x0), torch.tensor([1.5, 2.0])) and problem.counts["maps"] == 1
    assert problem.observe(problem.x0) == {"residual_norm": 2.5} and problem.counts["maps"] == 1


def test_the_norm_is_the_problem_s_own():
    problem = fl.FixedPoint(lambda x: x / 2, torch.tensor([3.0, 4.0]), norm=lambda x: x.abs().max())
    assert problem.observe(problem.x0)["residual_norm"] == 2.0 and float(problem.norm(problem.x0)) == 4.0


def test_nothing_records_a_graph():
    a = torch.ones(2, requires_grad=True)
    assert not fl.FixedPoint(lambda x: a * x, torch.ones(2)).map(torch.ones(2)).requires_grad


def test_bad_input():
    with pytest.raises(TypeError, match="T must be a function"):
        fl.FixedPoint(torch.eye(2), torch.ones(2))
    with pytest.raises(ValueError, match="radius must be a positive number"):
        fl.FixedPoint(lambda x: x, torch.ones(2), radius=0)
    with pytest.raises(ValueError, match="the value of T must be a tensor"):
        fl.FixedPoint(lambda x: x[:1], torch.ones(2)).map(torch.ones(2))
    with pytest.raises(fl.MissingOracle, match="FixedPoint"):
        fl.Smooth(lambda x: x.sum(), torch.ones(2)).require("map")
