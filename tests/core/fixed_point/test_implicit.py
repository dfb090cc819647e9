import math
import warnings

import pytest
import torch

import fallline as fl
from fallline.core.counts import Counts
from fallline.core.errors import NonFiniteError
from fallline.core.fixed_point import attach, implicit_fixed_point, iterate


def parameters():
    generator = fl.Key(0).generator()
    A = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    A = (0.7 * A / torch.linalg.matrix_norm(A, 2)).requires_grad_()
    return A, torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()


def solved(A, b):
    return implicit_fixed_point(lambda x: torch.tanh(A @ x + b), torch.zeros(6, dtype=torch.float64), tol=1e-13)


def test_it_stops_where_the_map_moves_by_the_tolerance():
    found = iterate(lambda x: x / 2, torch.tensor([8.0]), tol=0.5)
    assert found.iterations == 4 and float(found.x) == found.residual_norm == 0.5 and found.converged  # moves by 4, 2, 1, 0.5
    assert not iterate(lambda x: x / 2, torch.tensor([8.0]), tol=0.5, max_iterations=3).converged
    # Relative to the point where that is larger than 1, and throughout with a floor of 0.
    assert iterate(lambda x: x / 2 + 500, torch.tensor([0.0]), tol=0.5).iterations == 2
    assert iterate(lambda x: x / 2, torch.tensor([8.0]), tol=0.5, max_iterations=50, floor=0.0).iterations == 50


def test_a_tolerance_of_zero_ends_where_nothing_changes():
    found = iterate(lambda x: torch.floor(x / 2), torch.tensor([8.0]), tol=0)
    assert found.iterations == 5 and float(found.x) == 0 and found.converged


def test_the_gradient_is_that_of_the_equation():
    A, b = parameters()
    assert torch.autograd.gradcheck(solved, (A, b))


def test_the_gradient_is_that_of_unrolled_iterations():
    A, b = parameters()
    x = torch.zeros(6, dtype=torch.float64)
    for _ in range(200):
        x = torch.tanh(A @ x + b)
    weights = torch.arange(6.0, dtype=torch.float64)
    for mine, theirs in zip(torch.autograd.grad(weights @ solved(A, b), (A, b)), torch.autograd.grad(weights @ x, (A, b)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_what_is_kept_does_not_grow_with_the_iterations():
    A, b = parameters()
    saved = []
    for tol in (1e-2, 1e-12):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            implicit_fixed_point(lambda x: torch.tanh(A @ x + b), torch.zeros(6, dtype=torch.float64), tol=tol)
        saved.append(sum(kept))
    assert saved[0] == saved[1]


def test_nested_tensors_go_in_and_come_out():
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    start = {"u": torch.zeros((), dtype=torch.float64), "w": [torch.zeros((), dtype=torch.float64)]}
    out = implicit_fixed_point(lambda x: {"u": a * x["w"][0] + 1, "w": [a * x["u"]]}, start, tol=1e-14)
    (slope,) = torch.autograd.grad(out["w"][0], a)  # w = a / (1 − a²)
    assert out["w"][0].item() == pytest.approx(0.5 / 0.75) and slope.item() == pytest.approx((1 + 0.25) / 0.75**2)


def test_counts_of_both_passes():
    A, b = parameters()
    counts = Counts()
    out = attach(lambda x: torch.tanh(A @ x + b), iterate(lambda x: torch.tanh(A @ x + b), b, counts=counts).x, counts=counts)
    before = counts["maps"]
    out.sum().backward()
    assert before > 3 and counts["adjoint_maps"] > 3 and counts["maps"] == before


def test_a_map_without_parameters_or_without_an_argument():
    plain = implicit_fixed_point(lambda x: x / 2 + 1, torch.zeros(2), tol=1e-9)
    assert not plain.requires_grad
    a = torch.ones(2, requires_grad=True)
    implicit_fixed_point(lambda x: a * 3, torch.zeros(2)).sum().backward()
    assert torch.equal(a.grad, torch.full((2,), 3.0))


def test_too_few_iterations_are_said_in_both_passes():
    a = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match=r"residual of the fixed point is .* after 3 iterations"):
        out = implicit_fixed_point(lambda x: a * x + 1, torch.zeros((), dtype=torch.float64), max_iterations=3)
    with pytest.warns(UserWarning, match="implicit gradient changed by"):
        out.backward()


def test_small_gradients_are_as_accurate():
    A, b = parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, small = (torch.autograd.grad(scale * solved(A, b).sum(), b)[0] for scale in (1.0, 1e-9))
    torch.testing.assert_close(small, 1e-9 * one, rtol=1e-10, atol=0)


@pytest.mark.parametrize("T", [lambda x: 2 * x + 1, lambda x: x * math.nan])
def test_divergence_is_an_error(T):
    with pytest.raises(NonFiniteError, match="contraction"):
        iterate(T, torch.ones(2), max_iterations=10_000)


def test_bad_input():
    with pytest.raises(ValueError, match="tol must be a number of at least 0, got -1"):
        iterate(lambda x: x, torch.ones(2), tol=-1)
    with pytest.raises(ValueError, match="max_iterations must be a whole number"):
        iterate(lambda x: x, torch.ones(2), max_iterations=0)
    with pytest.raises(ValueError, match=r"the value of T must be a tensor of shape \(2,\)"):
        iterate(lambda x: x[0], torch.ones(2))


def test_parts_of_the_image_without_a_gradient_are_left_out_with_their_adjoints():
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    constant = torch.ones((), dtype=torch.float64)
    for first in (True, False):
        def T(z, first=first):
            half = z[1 if first else 0] / 2 + a
            return (constant, half) if first else (half, constant)

        found = implicit_fixed_point(T, (0 * constant, 0 * constant), tol=1e-13)
        (gradient,) = torch.autograd.grad(found[1 if first else 0], a)
        assert float(gradient) == pytest.approx(2)  # z = 2a
