"""Cyclic blocks against loops written from the formulas, with whole and with sampled gradients; networks, terms, the door."""

import math

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.terms import L1, L2, GroupL2
from fallline.solvers import CyclicBlocks, CyclicBlockVR


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A, Y = normal(40, 7), normal(40, seed=1).sign()
BLOCKS = [[0, 4], [1, 2, 6], [3, 5]]


def linear(term=None, loss="sigmoid"):
    problem = fl.LinearModel(A, Y, loss, x0=normal(7, seed=2))
    return fl.Composite(problem, term) if term else problem


def autograd(term=None):
    problem = fl.FiniteSum(lambda x, a, y: torch.sigmoid(-y * (a @ x)).mean(), (A, Y), normal(7, seed=2))
    return fl.Composite(problem, term) if term else problem


def prox(term, u, step):
    return u if term is None else term.prox(u, step)


@pytest.mark.parametrize("make", [linear, autograd])
@pytest.mark.parametrize("term", [None, L1(0.05)])
def test_a_cycle_is_its_formula(make, term):
    problem, x = make(term), normal(7, seed=2)
    smooth = problem.smooth if term else problem
    scales, lr = (1.0, 2.0, 0.5), 0.7
    for _ in range(4):
        before, squared = x.clone(), 0.0
        for block, scale in zip(BLOCKS, scales, strict=True):
            g = smooth.gradient(x)[block]
            x = x.clone()
            x[block] = prox(term, before[block] - lr / scale * g, lr / scale)
            squared += float((scale / lr * (x[block] - before[block])).square().sum())
    result = fl.solve(make(term), CyclicBlocks(lr, BLOCKS, scales), fl.Budget(steps=4))
    torch.testing.assert_close(result.x, x, rtol=1e-12, atol=1e-12)
    assert result.gap == pytest.approx(math.sqrt(squared))


@pytest.mark.parametrize("make", [linear, autograd])
@pytest.mark.parametrize("term", [None, L1(0.05)])
@pytest.mark.parametrize("options", [{}, {"batch": 9, "small_batch": 3, "p": 0.4}])
def test_sampled_gradients_are_their_formula(make, term, options):
    lr, key, coins = 0.5, fl.Key(7), []
    b, small = options.get("batch"), options.get("small_batch", 6)  # √40 = 6.3
    p = options.get("p", 6 / 46)
    whole = make(term)
    smooth = whole.smooth if term else whole
    points, g = [normal(7, seed=2)], torch.zeros(7, dtype=torch.float64)

    def hybrid(first, then, j):
        """The point whose blocks before j are those of ``then``."""
        x = first.clone()
        for block in BLOCKS[:j]:
            x[block] = then[block]
        return x

    for t in range(12):
        fold = key.fold(t)
        fresh = t == 0 or float(torch.rand((), generator=fold.fold("coin").generator())) < p
        coins.append(fresh)
        drawn = smooth if fresh and b is None else smooth.draw(fold.fold("samples"), size=b if fresh else small)
        x, g_old = points[-1].clone(), g.clone()
        for j, block in enumerate(BLOCKS):
            now = drawn.gradient(hybrid(points[-1], x, j))[block]
            g[block] = now if fresh else g_old[block] + now - drawn.gradient(hybrid(points[-2], points[-1], j))[block]
            x[block] = prox(term, points[-1][block] - lr * g[block], lr)
        points.append(x)
    assert 1 < sum(coins) < 12
    result = fl.solve(make(term), CyclicBlockVR(lr, BLOCKS, **options), fl.Budget(steps=12), key=key)
    torch.testing.assert_close(result.x, points[-1], rtol=1e-11, atol=1e-11)
    assert result.counts["component_gradients"] == sum((b or 40) if fresh else 2 * small for fresh in coins)


def test_one_block_is_proximal_gradient_descent_and_p_one_is_exact():
    problem, x = linear(L1(0.05)), normal(7, seed=2)
    for _ in range(3):
        x = L1(0.05).prox(x - 0.5 * problem.smooth.gradient(x), 0.5)
    for method in (CyclicBlocks(0.5, 1), CyclicBlocks(0.5), CyclicBlockVR(0.5, 1, p=1.0)):
        torch.testing.assert_close(fl.solve(problem, method, fl.Budget(steps=3)).x, x)
    assert fl.solve(problem, CyclicBlocks(0.5, 3), fl.Budget(steps=5)).counts == {"gradients": 5, "samples": 200}


def test_variance_vanishes_at_the_solution():
    problem = linear(L1(0.01), loss="logistic")
    result = fl.solve(problem, CyclicBlockVR(0.5, 3), fl.Budget(steps=20_000), tol=1e-9, key=1)
    x = result.x
    assert result.success and float((x - L1(0.01).prox(x - problem.smooth.gradient(x), 1.0)).norm()) < 1e-6


def test_estimated_gradients_certify_nothing():
    """Where the term holds x a sample's mapping is 0, wherever the solution is."""
    rows = torch.where(normal(200, 6) > 1.2, normal(200, 6, seed=1), 0.0)
    problem = fl.Composite(fl.LinearModel(rows, rows @ torch.ones(6, dtype=torch.float64)), L1(0.01))
    for key in range(5):
        result = fl.solve(problem, CyclicBlockVR(0.5, 3), fl.Budget(steps=3_000), tol=1e-6, key=key)
        x = result.x
        assert result.success and float((x - L1(0.01).prox(x - problem.smooth.gradient(x), 1.0)).norm()) < 1e-5
        with pytest.warns(UserWarning, match="no gap"):
            sampled = fl.solve(problem, CyclicBlockVR(0.5, 3, batch=2, small_batch=1), fl.Budget(steps=50), tol=1e-6, key=key)
        assert sampled.status == "budget" and sampled.gap is None


def network(normalised=False):
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(5, 6), *([nn.BatchNorm1d(6)] if normalised else []), nn.Tanh(), nn.Linear(6, 1)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    data = torch.randn(60, 5, generator=generator), torch.randn(60, 1, generator=generator)
    return fl.Training(model, nn.functional.mse_loss, data, batch_size=10)


def test_layers_of_a_network_are_blocks():
    problem = network()
    blocks = CyclicBlocks()._blocks(problem)
    assert [len(block.index) for block in blocks] == [36, 7] and blocks[0].shapes == ((6, 5), (6,))
    for method in (CyclicBlocks(0.2), CyclicBlockVR(0.2, small_batch=10)):
        for each in (problem, fl.Composite(problem, L2(1e-3))):
            result = fl.solve(each, method, fl.Budget(steps=60))
            assert result.x.keys() == problem.x0.keys() and result.x["0.weight"].shape == (6, 5)
            assert float(each.value(result.x)) < 0.8 * float(each.value(each.x0))


def test_tensors_of_nested_variables_are_blocks():
    start = {"a": torch.ones(2, 3, dtype=torch.float64), "b": [torch.ones(4, dtype=torch.float64)]}
    problem = fl.Smooth(lambda x: (x["a"] ** 2).sum() + (x["a"].sum() - x["b"][0].sum()) ** 2 / 10, start)
    a, b = start["a"], start["b"][0]
    a = a - 0.1 * (2 * a + (a.sum() - b.sum()) / 5)
    b = b + 0.1 * (a.sum() - b.sum()) / 5
    result = fl.solve(problem, CyclicBlocks(0.1), fl.Budget(steps=1))
    torch.testing.assert_close(result.x, {"a": a, "b": [b]})


def test_batch_norm_is_refused():
    for method in (CyclicBlocks(), CyclicBlockVR()):
        for problem in (network(True), fl.Composite(network(True), L1(0.1))):
            with pytest.raises(WrongProblem, match=r"normalises by its batch.*GroupNorm"):
                fl.solve(problem, method, fl.Budget(steps=1))


@pytest.mark.parametrize("options, message", [
    ({"lr": 0.0}, "lr must"), ({"blocks": "leaves"}, "blocks must"), ({"blocks": 0}, "blocks"),
    ({"scales": (1.0, -1.0)}, "scales must"),
    ({"p": 0.0}, "p must"), ({"p": 1.5}, "p must"), ({"batch": 0}, "batch"), ({"small_batch": 0}, "small_batch"),
])
def test_settings_at_the_door(options, message):
    with pytest.raises(ValueError, match=message):
        CyclicBlockVR(**options)


def test_problems_at_the_door():
    with pytest.raises(ValueError, match="one number for each of the 3 blocks, got 2"):
        fl.solve(linear(), CyclicBlocks(blocks=BLOCKS, scales=(1.0, 2.0)))
    with pytest.raises(ValueError, match="overlap"):
        fl.solve(linear(), CyclicBlocks(blocks=[[0, 1], [1, 2, 3, 4, 5, 6]]))
    with pytest.raises(WrongProblem, match="sum over its blocks"):
        fl.solve(linear(GroupL2([[0, 1]])), CyclicBlocks(blocks=BLOCKS))
    with pytest.raises(WrongProblem, match="1-D tensor"):
        fl.solve(network(), CyclicBlocks(blocks=2))
    with pytest.raises((MissingOracle, WrongProblem)):
        fl.solve(fl.LinearSystem(torch.eye(2), torch.ones(2)), CyclicBlockVR())
