"""Terms that are sums over entries: their parts, steps for single entries, restrictions."""

import math

import pytest
import torch

from fallline.core.sets import Box, NonNegative, Simplex
from fallline.core.terms import L1, L2, MCP, SCAD, ElasticNet, GroupL2, SquaredL2, Zero

X = torch.tensor([[-2.0, 0.1, 0.0], [0.4, 3.0, -0.7]], dtype=torch.float64)
SEPARABLE = [L1(0.5), SquaredL2(0.3), ElasticNet(0.2, 0.4), MCP(0.5), SCAD(0.5), 3 * L1(0.1), Zero(), Box(-2.0, 3.0)]


@pytest.mark.parametrize("term", SEPARABLE, ids=repr)
def test_entries_sum_to_the_value_and_take_steps_of_their_own(term):
    assert term.separable
    entries = term.entries(X)
    assert entries.shape == X.shape and float(entries.sum()) == pytest.approx(float(term.value(X)))
    for i, x in enumerate(X.reshape(-1)):
        assert float(entries.reshape(-1)[i]) == pytest.approx(float(term.value(x[None])))
    steps = torch.linspace(0.1, 0.9, 6, dtype=torch.float64).view(2, 3)
    one_by_one = torch.stack([term.prox(x[None], float(s))[0] for x, s in zip(X.reshape(-1), steps.reshape(-1), strict=True)])
    torch.testing.assert_close(term.prox(X, steps).reshape(-1), one_by_one)


@pytest.mark.parametrize("term", [L2(), GroupL2(3), Simplex(), 2 * L2()], ids=repr)
def test_other_terms_have_no_entries(term):
    assert not term.separable
    with pytest.raises(TypeError, match="not a sum over entries"):
        term.entries(X)


def test_a_restricted_box_has_the_bounds_of_its_entries():
    index = torch.tensor([3, 0])
    box = Box(torch.tensor([-1.0, 0, 0, -3]), 5.0).restricted(index)
    assert box.low.tolist() == [-3, -1] and box.high.tolist() == [5, 5]
    assert NonNegative().restricted(index).low == 0 and L1(0.5).restricted(index).weight == 0.5
    assert (2 * Box(torch.tensor([-1.0, 0, 0, -3]), 5.0)).restricted(index).term.low.tolist() == [-3, -1]


def test_entries_of_a_box_are_infinite_outside():
    outside = Box(0.0, torch.tensor([1.0, 2.0])).entries(torch.tensor([-0.5, 1.5]))
    assert outside.tolist() == [math.inf, 0]
