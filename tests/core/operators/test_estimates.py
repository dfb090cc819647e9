"""Stochastic estimates: exact cases, unbiasedness within their own error bars, quadrature."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from fallline.core.operators import LinearOperator, hutchinson_diagonal, hutchinson_trace, spectral_density


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(n: int) -> torch.Tensor:
    A = torch.randn(n, n, generator=generator(3), dtype=torch.float64)
    return (A + A.mT) / 2


def test_exact_for_diagonal_matrices() -> None:
    values = torch.arange(1.0, 9.0).double()
    operator = LinearOperator.from_tensor(torch.diag(values))
    trace = hutchinson_trace(operator, 2, generator())
    torch.testing.assert_close(trace.value, values.sum())
    assert float(trace.standard_error) == 0
    torch.testing.assert_close(hutchinson_diagonal(operator, 1, generator()).value, values)
    assert "±" in repr(trace)


def test_trace_is_unbiased_with_the_stated_variance() -> None:
    A, samples = symmetric(15), 20_000
    found = hutchinson_trace(LinearOperator.from_tensor(A), samples, generator())
    variance = 2 * (A - torch.diag(A.diagonal())).square().sum() / samples
    assert abs(float(found.value - A.trace())) < 4 * math.sqrt(variance)
    assert float(found.standard_error) == pytest.approx(math.sqrt(variance), rel=0.05)


def test_diagonal_is_unbiased_with_the_stated_variance() -> None:
    A, samples = symmetric(10), 10_000
    found = hutchinson_diagonal(LinearOperator.from_tensor(A), samples, generator())
    deviation = (A - torch.diag(A.diagonal())).square().sum(1).div(samples).sqrt()
    assert ((found.value - A.diagonal()).abs() < 4 * deviation).all()
    torch.testing.assert_close(found.standard_error, deviation, rtol=0.1, atol=0)


def test_one_sample_has_no_error_bar() -> None:
    assert hutchinson_trace(LinearOperator.from_tensor(symmetric(4)), 1, generator()).standard_error == math.inf


def test_quadrature_is_exact_for_low_powers_of_one_sample() -> None:
    A = symmetric(30)
    density = spectral_density(LinearOperator.from_tensor(A), 5, 1, generator(4))
    z = (2 * torch.randint(0, 2, (30,), generator=generator(4)) - 1).double()
    for power in range(10):
        exact = z @ torch.linalg.matrix_power(A, power) @ z
        torch.testing.assert_close(density.trace(partial(torch.pow, exponent=power)), exact, rtol=1e-10, atol=1e-10)


def test_density_of_a_diagonal_matrix() -> None:
    # Random signs weigh all eigenvectors of a diagonal matrix alike, so n steps give the spectrum itself.
    values = torch.tensor([-2.0, 0.5, 1.0, 4.0, 7.0]).double()
    density = spectral_density(LinearOperator.from_tensor(torch.diag(values)), 5, 3, generator())
    assert float(density.weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(density.trace(torch.exp), values.exp().sum(), rtol=1e-10, atol=0)
    grid = torch.linspace(-20, 20, 4001).double()
    smooth = density.density(grid, 0.3)
    assert float(torch.trapezoid(smooth, grid)) == pytest.approx(1, abs=1e-8)
    exact = torch.exp(-(((grid[:, None] - values) / 0.3) ** 2) / 2).mean(1) / (0.3 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(smooth, exact, atol=1e-8, rtol=0)
    assert (density.nodes.diff() >= 0).all() and "nodes=15" in repr(density)


def test_log_determinant() -> None:
    A = symmetric(60) @ symmetric(60) + 5 * torch.eye(60).double()
    found = spectral_density(LinearOperator.from_tensor(A), 40, 200, generator()).trace(torch.log)
    assert float(found) == pytest.approx(float(torch.logdet(A)), rel=0.01)


def test_errors_at_the_door() -> None:
    rectangular = LinearOperator.from_tensor(torch.ones(2, 3))
    for function in (hutchinson_trace, hutchinson_diagonal, lambda A, s, g: spectral_density(A, 2, s, g)):
        with pytest.raises(ValueError, match="square operator"):
            function(rectangular, 2, generator())
        with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
            function(LinearOperator.from_tensor(torch.eye(2)), 0, generator())
    density = spectral_density(LinearOperator.from_tensor(torch.eye(2)), 2, 1, generator())
    with pytest.raises(ValueError, match="width must be > 0"):
        density.density(torch.zeros(1), 0)
