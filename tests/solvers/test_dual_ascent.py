"""Dual ascent: its iterates, its report, exact resume, and levels that cannot be met."""

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.core.errors import WrongProblem
from fallline.core.sets import Box
from fallline.solvers import DualAscent, FeasibilityReport

D = torch.float64


class Exactly(fl.Method):
    """argmin of a one-dimensional quadratic, from two gradients."""

    def init(self, problem, key):
        return {"x": problem.x0}

    def step(self, problem, state):
        at_0, at_1 = (problem.gradient(torch.full_like(problem.x0, end)) for end in (0.0, 1.0))
        return {"x": at_0 / (at_0 - at_1)}

    def report(self, problem, state):
        return fl.Report(state["x"])


def curve(level=0.25):
    """min (1 − s)² subject to s² ≤ c: s = √c, λ = 1/√c − 1, since L is least at s = 1/(1 + λ)."""
    smooth = fl.Smooth(lambda s: ((1 - s) ** 2).sum(), torch.full((1,), 0.3, dtype=D))
    return fl.Constrained(smooth, inequality=lambda s: s**2 - level)


def network(level, validation=True, layers=()):
    generator = fl.Key(1).generator()
    x = torch.randn(60, 3, generator=generator)
    y = x[:, :1] + x[:, 1:2] ** 2 + 0.1 * torch.randn(60, 1, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), *layers, nn.Tanh(), nn.Linear(8, 1))
    training = fl.Training(model, nn.functional.mse_loss, (x[:40], y[:40]), validation=(x[40:], y[40:]) if validation else None,
                           batch_size=10)
    small = lambda model, x, y: model(x).square().mean()
    return fl.ConstrainedTraining(training, {"size": (small, level)})


def test_iterates_are_those_of_the_formulas():
    problem, method = curve(), DualAscent(Exactly(), dual_lr=0.7, primal_steps=1)
    state, multiplier, excesses = method.init(problem, fl.Key(0)), 0.0, []
    for t in range(1, 12):
        state = method.step(problem, state)
        s = 1 / (1 + multiplier)
        excesses.append(s**2 - 0.25)
        multiplier = max(multiplier + 0.7 * excesses[-1], 0)
        report = method.report(problem, state)
        assert float(report.resolve()) == pytest.approx(s) and float(report.value) == pytest.approx((1 - s) ** 2)
        found = report.certificate
        assert float(found.multipliers) == pytest.approx(multiplier) and float(found.excess) == pytest.approx(excesses[-1])
        start = {1: 0, 2: 1, 3: 1}.get(t, 2 if t < 8 else 4)
        assert float(found.mixture) == pytest.approx(sum(excesses[start:]) / (t - start))
    assert found.held_out is None and "multiplier" in repr(found)


def test_it_converges_to_the_multiplier_and_the_level():
    result = fl.solve(curve(), DualAscent(Exactly(), dual_lr=0.7, primal_steps=1), fl.Budget(steps=200))
    assert result.status == "budget" and float(result.x) == pytest.approx(0.5) and result.fun == pytest.approx(0.25)
    assert float(result.certificate.multipliers) == pytest.approx(1.0) and abs(float(result.certificate.mixture)) < 1e-6


def test_a_slack_constraint_has_no_multiplier():
    result = fl.solve(curve(4.0), DualAscent(Exactly(), primal_steps=1), fl.Budget(steps=40))
    assert result.status == "budget" and float(result.certificate.multipliers) == 0 and float(result.x) == pytest.approx(1.0)


def test_levels_that_no_point_meets_end_the_run_as_failed():
    result = fl.solve(curve(-0.1), DualAscent(Exactly(), dual_lr=5.0, primal_steps=1), fl.Budget(steps=10_000))
    assert result.status == "failed" and not result.success and result.nit < 5_000
    assert "'0' seems to be infeasible" in result.message and "relax its level" in result.message
    small = DualAscent(fl.Train(torch.optim.Adam, lr=0.02), dual_lr=5.0, primal_steps=10)
    result = fl.solve(network(-0.5), small, fl.Budget(steps=2_000))
    assert result.status == "failed" and "'size' seems to be infeasible" in result.message


@pytest.mark.parametrize("dual_lr", [1e-4, 0.01, 0.5])
def test_slow_ascent_is_not_taken_for_infeasible(dual_lr):
    result = fl.solve(curve(0.01), DualAscent(Exactly(), dual_lr=dual_lr, primal_steps=1), fl.Budget(steps=600))
    assert result.status == "budget"


def test_a_network_meets_its_level_and_the_report_speaks_of_held_out_data():
    problem = network(0.5)
    method = DualAscent(fl.Train(torch.optim.Adam, lr=0.01), dual_lr=0.5, primal_steps=10)
    free = fl.solve(problem.lagrangian(torch.zeros(1)), method.primal, fl.Budget(steps=600), every=600)
    assert float(problem.inequality(free.x).detach()) > 0.2
    result = fl.solve(problem, method, fl.Budget(steps=80))
    found = result.certificate
    assert isinstance(found, FeasibilityReport) and found.names == ("size",) and result.status == "budget"
    assert abs(float(found.excess)) < 0.1 and abs(float(found.mixture)) < 0.05 and float(found.multipliers) > 0.1
    torch.testing.assert_close(found.excess, problem.inequality(result.x).detach())
    torch.testing.assert_close(found.held_out, problem.held_out(result.x))
    assert "held out" in repr(found) and "size" in repr(found)
    assert fl.solve(network(0.5, False), method, fl.Budget(steps=1)).certificate.held_out is None


@pytest.mark.parametrize("layers", [(), (nn.BatchNorm1d(8), nn.Dropout(0.2))])
def test_resume_is_exact(layers, tmp_path):
    method = DualAscent(fl.Train(torch.optim.Adam, lr=0.01), dual_lr=1.0, primal_steps=3)
    whole = fl.solve(network(0.3, layers=layers), method, fl.Budget(steps=9))
    fl.solve(network(0.3, layers=layers), method, fl.Budget(steps=5), checkpoint=tmp_path / "c")
    rest = fl.solve(network(0.3, layers=layers), method, fl.Budget(steps=9), checkpoint=tmp_path / "c")
    assert whole.x.keys() == rest.x.keys() and all(torch.equal(whole.x[name], rest.x[name]) for name in whole.x)
    assert torch.equal(whole.certificate.multipliers, rest.certificate.multipliers) and whole.counts == rest.counts
    assert torch.equal(whole.certificate.held_out_mixture, rest.certificate.held_out_mixture)
    with pytest.raises(fl.core.CheckpointError, match="dual_lr=2"):
        fl.solve(network(0.3, layers=layers), DualAscent(method.primal, 2.0, 3), fl.Budget(steps=9), checkpoint=tmp_path / "c")
    assert "lr: 0.01" in method.identity(network(0.3))["primal optimizer"]


def test_bad_settings_and_wrong_problems_are_refused():
    with pytest.raises(TypeError, match="primal must be a Method, got 3"):
        DualAscent(3)
    with pytest.raises(ValueError, match="dual_lr must be a finite number > 0, got 0"):
        DualAscent(dual_lr=0)
    with pytest.raises(ValueError, match="primal_steps must be a whole number"):
        DualAscent(primal_steps=0)
    smooth = fl.Smooth(lambda x: x.sum(), torch.ones(2))
    with pytest.raises(WrongProblem, match="inequalities alone"):
        fl.solve(fl.Constrained(smooth, Box(0.0, 1.0), inequality=lambda x: x), DualAscent())
    with pytest.raises(fl.MissingOracle, match="'inequality'"):
        fl.solve(fl.Constrained(smooth, Box(0.0, 1.0)), DualAscent())


@pytest.mark.parametrize("dual_lr", [0.01, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("curvature", [1.0, 100.0])
def test_a_multiplier_that_must_become_large_is_not_taken_for_infeasible(curvature, dual_lr):
    """min k x² subject to x ≥ 1: the excess 1 − λ/2k falls hardly at all before λ is near 2k."""
    smooth = fl.Smooth(lambda x: curvature * (x**2).sum(), torch.zeros(1, dtype=D))
    problem = fl.Constrained(smooth, inequality=lambda x: 1 - x)
    result = fl.solve(problem, DualAscent(Exactly(), dual_lr=dual_lr, primal_steps=1), fl.Budget(steps=1_024), every=64)
    assert result.status == "budget"


def test_a_single_constraint_may_be_a_number():
    smooth = fl.Smooth(lambda s: ((1 - s) ** 2).sum(), torch.full((1,), 0.3, dtype=D))
    problem = fl.Constrained(smooth, inequality=lambda s: s.square().sum() - 0.25)
    result = fl.solve(problem, DualAscent(Exactly(), dual_lr=0.7, primal_steps=1), fl.Budget(steps=200))
    assert float(result.x) == pytest.approx(0.5) and result.certificate.multipliers.shape == (1,) and "0" in repr(result.certificate)
