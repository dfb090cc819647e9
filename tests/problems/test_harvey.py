"""The function that spoils the last iterate, against its matrix written out."""

import math

import pytest
import torch

from fallline.problems.harvey import harvey_function


def rows(T):
    """h_1, …, h_{T+1}, from the formulas."""
    h = torch.zeros(T + 1, T, dtype=torch.float64)
    for i in range(1, T + 2):
        for j in range(1, T + 1):
            if j < i:
                h[i - 1, j - 1] = 1 / (8 * (T - j + 1))
            elif j == i:
                h[i - 1, j - 1] = -math.sqrt(i) / (2 * math.sqrt(T))
    return h


@pytest.mark.parametrize("T", [1, 2, 7, 32])
def test_values_and_subgradients_are_those_of_the_matrix(T):
    problem, h = harvey_function(T), rows(T)
    generator = torch.Generator().manual_seed(T)
    for _ in range(20):
        x = torch.randn(T, dtype=torch.float64, generator=generator)
        products = h @ x
        assert float(problem.value(x)) == pytest.approx(float(products.max()), abs=1e-14)
        torch.testing.assert_close(problem.gradient(x), h[products.argmax()], rtol=0, atol=1e-15)


def test_of_equals_the_smallest_index_answers():
    T = 16
    problem, h = harvey_function(T), rows(T)
    assert torch.equal(problem.gradient(problem.x0), h[0])  # at 0 all are equal
    x = torch.zeros(T, dtype=torch.float64)
    x[0] = 0.3  # then all but the first are
    assert torch.equal(problem.gradient(x), h[1])


def test_it_is_on_the_unit_ball_and_counts():
    problem = harvey_function(8)
    outside = torch.ones(8, dtype=torch.float64)
    assert float(problem.project(outside).norm()) == pytest.approx(1)
    problem.gradient(problem.x0)
    assert problem.counts["gradients"] == 1 and problem.kind == "constrained"
    assert rows(64).norm(dim=1).max() < 1


def test_the_step_that_the_theory_warns_of_is_the_worse():
    T = 64
    found = {}
    for name, step in (("root", lambda t: t**-0.5), ("linear", lambda t: (T - t + 1) / T**1.5)):
        problem = harvey_function(T)
        x = problem.x0
        for t in range(1, T + 1):
            x = problem.project(x - step(t) * problem.gradient(x))
        found[name] = float(problem.value(x)) * T**0.5
    assert found["root"] > 4 * found["linear"] > 0


@pytest.mark.parametrize("T", [0, -1, 2.5, True])
def test_bad_lengths_are_refused(T):
    with pytest.raises(ValueError, match="T must be a whole number >= 1"):
        harvey_function(T)
