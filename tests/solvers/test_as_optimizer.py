"""Composed methods in a training loop of one's own."""

import copy

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.solvers import AsOptimizer, GradRegNewton, LazyNewton, Minimizer, TrustRegionCG
from fallline.solvers.descent import GaussNewtonProducts, RatioTest, TruncatedCG

D = torch.float64


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def data():
    x = torch.randn(64, 3, dtype=D, generator=torch.Generator().manual_seed(1))
    return x, torch.sin(x.sum(1, keepdim=True))


@pytest.mark.parametrize("method", [TrustRegionCG(), GradRegNewton("products"), TrustRegionCG(hvp="gauss_newton"),
                                    Minimizer(TruncatedCG(), RatioTest(), GaussNewtonProducts())])
def test_whole_batches_are_the_method_itself(method):
    model = network()
    whole = fl.solve(fl.Training(model, nn.functional.mse_loss, data(), batch_size=64), method, fl.Budget(steps=5))
    objective = fl.Objective(model, nn.functional.mse_loss)
    optimizer = AsOptimizer(model.parameters(), method)
    losses = [float(optimizer.step(objective(*data()))) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and optimizer.failure == ""
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), whole.x[name])


def test_a_run_goes_on_from_its_state_dict():
    model, objective_of = network(), lambda m: fl.Objective(m, nn.functional.mse_loss)
    optimizer = AsOptimizer(model.parameters(), TrustRegionCG())
    for _ in range(3):
        optimizer.step(objective_of(model)(*data()))
    twin = copy.deepcopy(model)
    other = AsOptimizer(twin.parameters(), TrustRegionCG())
    other.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (twin, other)):
        for _ in range(3):
            o.step(objective_of(m)(*data()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_problems_at_bound_variables_are_taken():
    x0 = {"a": torch.zeros(2, dtype=D), "b": torch.ones(1, dtype=D)}
    problem = fl.Smooth(lambda x: ((x["a"] - 1) ** 2).sum() + (x["b"] ** 4).sum(), x0)
    point = {name: nn.Parameter(x.clone()) for name, x in problem.x0.items()}
    optimizer = AsOptimizer(point.values(), TrustRegionCG())
    for _ in range(30):
        optimizer.step(problem.bind(point))
    torch.testing.assert_close(point["a"].detach(), torch.ones(2, dtype=D))


def test_the_door():
    model = network()
    with pytest.raises(TypeError, match="composed"):
        AsOptimizer(model.parameters(), LazyNewton())
    with pytest.raises(ValueError, match="one group"):
        AsOptimizer([{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}], TrustRegionCG())
    optimizer = AsOptimizer(model[0].parameters(), TrustRegionCG())
    with pytest.raises(ValueError, match="all 4 parameters"):
        optimizer.step(fl.Objective(model, nn.functional.mse_loss)(*data()))
    with pytest.raises(fl.MissingOracle, match=r"step\(objective"):
        optimizer.step(lambda: torch.zeros(()))
    assert "TrustRegionCG" in repr(optimizer)
