"""Mixed-integer programs with networks in them, against the networks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fallline.core.keys import Key
from fallline.core.modules import seeded
from fallline.solvers.relu_milp import Affine, Program


def network(seed, *widths):
    parts = [part for ends in pairwise(widths) for part in (nn.Linear(*ends), nn.ReLU())][:-1]
    return seeded(lambda: nn.Sequential(*parts), Key(seed)).double()


def value(layers, point):
    with torch.no_grad():
        return layers(torch.as_tensor(point)).numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_optimum_over_a_box_is_the_networks(seed, sign):
    layers = network(seed, 2, 8, 6, 1)
    program = Program()
    x = program.variables(np.array([-2.0, -1.0]), np.array([1.0, 3.0]))
    program.require(x.then(np.array([[-1.0, -1.0]]), 2.5))  # x₁ + x₂ ≤ 2.5
    program.charge(program.network(layers, x), sign)
    found, optimum = program.solve(mip_rel_gap=0.0)
    point = found[x.variables]
    assert float(sign * value(layers, point)[0]) == pytest.approx(optimum, abs=1e-5)
    grid = np.stack(np.meshgrid(np.linspace(-2, 1, 151), np.linspace(-1, 3, 151)), -1).reshape(-1, 2)
    grid = grid[grid.sum(1) <= 2.5]
    best = float((sign * value(layers, grid)).min())
    assert best - 0.05 <= optimum <= best + 1e-6 and program.binaries <= 14


def test_only_open_signs_cost_a_binary():
    program = Program()
    x = program.variables(np.zeros(1), np.ones(1))
    function = x.then(np.array([[1.0], [-1.0], [2.0]]), np.array([0.5, -0.5, -1.0]))  # in [0.5, 1.5], [−1.5, −0.5], [−1, 1]
    h = program.relu(function)
    assert program.binaries == 1
    for fixed in (0.0, 0.3, 0.5, 0.9, 1.0):
        again = Program()
        x = again.variables(np.array([fixed]), np.array([fixed]))
        h = again.relu(x.then(np.array([[1.0], [-1.0], [2.0]]), np.array([0.5, -0.5, -1.0])))
        again.charge(h, -1.0)
        found, most = again.solve()
        expected = [fixed + 0.5, 0.0, max(2 * fixed - 1, 0)]
        np.testing.assert_allclose(again.at(h, found), expected, atol=1e-7)
        assert most == pytest.approx(-sum(expected))


def test_ranges_bound_and_affine_functions_compose():
    program = Program()
    x, y = program.variables(np.array([-1.0, 2.0]), np.array([1.0, 3.0])), program.variables(np.zeros(1), np.ones(1), integer=True)
    both = Affine.stack([x, y]).then(np.array([[1.0, -2.0, 3.0]]), 5.0)
    low, high = program.range(both)
    assert low[0] == pytest.approx(-1 - 6 + 5) and high[0] == pytest.approx(1 - 4 + 3 + 5)
    assert low[0] <= -2 and high[0] >= 5  # rounding does not narrow them
    program.charge(both)
    found, value = program.solve()
    assert value == pytest.approx(-2.0) and program.at(both, found)[0] == pytest.approx(-2.0)
    program.require(both, 4.5)
    assert program.solve()[1] == pytest.approx(4.5)


def test_programs_without_a_solution_and_other_layers_are_refused():
    program = Program()
    x = program.variables(np.zeros(1), np.ones(1))
    with pytest.raises(TypeError, match="layers must be Linear or ReLU, got Tanh"):
        program.network(nn.Sequential(nn.Tanh()), x)
    program.require(x, 2.0)
    with pytest.raises(ValueError, match="the program has no solution"):
        program.solve()
