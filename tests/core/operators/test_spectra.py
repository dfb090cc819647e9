"""Lanczos, power iteration and top eigenvalues against dense eigendecompositions."""

from __future__ import annotations

import pytest
import torch

from fallline.core.counts import Counts
from fallline.core.errors import NonFiniteError
from fallline.core.operators import LinearOperator, lanczos, power_iteration, top_eigenvalues


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    A = torch.randn(n, n, generator=generator(3), dtype=dtype)
    return (A + A.mH) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_lanczos_relation_and_orthonormal_basis(dtype: torch.dtype) -> None:
    A = symmetric(40, dtype)
    found = lanczos(LinearOperator.from_tensor(A), 25, generator=generator())
    V, T = found.basis, found.tridiagonal.to(dtype)
    assert found.iterations == 25 and not found.converged
    torch.testing.assert_close(V.mH @ V, torch.eye(25, dtype=dtype), atol=1e-13, rtol=0)
    torch.testing.assert_close(V.mH @ A @ V, T, atol=1e-12, rtol=0)
    rest = A @ V - V @ T
    assert float(rest[:, :-1].abs().max()) < 1e-12
    assert float(torch.linalg.vector_norm(rest[:, -1])) == pytest.approx(found.residual_norm)


def test_lanczos_on_the_whole_space_finds_every_eigenvalue() -> None:
    A = symmetric(30)
    found = lanczos(LinearOperator.from_tensor(A), 100, generator=generator())
    assert found.iterations == 30
    torch.testing.assert_close(torch.linalg.eigvalsh(found.tridiagonal), torch.linalg.eigvalsh(A), atol=1e-10, rtol=0)


def test_lanczos_stops_on_an_invariant_space() -> None:
    A = torch.diag(torch.arange(1.0, 7.0).double())
    start = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 0.0]).double()
    found = lanczos(LinearOperator.from_tensor(A), 6, start=start)
    assert found.converged and found.iterations == 2 and "invariant" in repr(found)
    torch.testing.assert_close(torch.linalg.eigvalsh(found.tridiagonal), torch.tensor([2.0, 5.0]).double())
    zero = lanczos(LinearOperator.from_tensor(torch.zeros(4, 4)), 3, generator=generator())
    assert zero.converged and zero.iterations == 1 and zero.tridiagonal.shape == (1, 1)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("k", [1, 4])
def test_top_eigenvalues(which: str, k: int) -> None:
    A = symmetric(80)
    values, vectors = torch.linalg.eigh(A)
    order = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which].argsort()[:k]
    found = top_eigenvalues(LinearOperator.from_tensor(A), k, which=which, tol=1e-11, generator=generator())  # type: ignore[arg-type]
    assert found.converged
    torch.testing.assert_close(found.values, values[order], atol=1e-10, rtol=0)
    overlaps = (found.vectors * vectors[:, order]).sum(0).abs()
    torch.testing.assert_close(overlaps, torch.ones(k).double(), atol=1e-9, rtol=0)
    residuals = torch.linalg.vector_norm(A @ found.vectors - found.vectors * found.values, dim=0)
    torch.testing.assert_close(residuals, found.residual_norm, atol=1e-11, rtol=0)


def test_top_eigenvalues_needs_fewer_products_than_the_dimension() -> None:
    counts = Counts()
    values = torch.cat([torch.linspace(0, 1, 997), torch.tensor([5.0, 8.0, 10.0])]).double()
    operator = LinearOperator((1000, 1000), lambda v: values * v, dtype=torch.float64, counts=counts)
    found = top_eigenvalues(operator, 3, tol=1e-10, generator=generator())
    assert found.converged and counts["matvecs"] == found.iterations <= 40
    torch.testing.assert_close(found.values, torch.tensor([10.0, 8.0, 5.0]).double(), atol=1e-10, rtol=0)


def test_repeated_eigenvalues_after_exhaustion() -> None:
    A = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0]).double())
    found = top_eigenvalues(LinearOperator.from_tensor(torch.eye(5).double()), 3, generator=generator())
    torch.testing.assert_close(found.values, torch.ones(3).double())
    torch.testing.assert_close(found.vectors.mT @ found.vectors, torch.eye(3).double())
    whole = top_eigenvalues(LinearOperator.from_tensor(A), 5, start=torch.ones(5).double())
    torch.testing.assert_close(whole.values, torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0]).double())


def test_power_iteration_finds_the_largest_magnitude_with_its_sign() -> None:
    A = torch.diag(torch.tensor([1.0, -4.0, 3.0]).double())
    found = power_iteration(LinearOperator.from_tensor(A), tol=1e-12, generator=generator())
    assert found.converged
    assert found.value == pytest.approx(-4.0, abs=1e-10)
    assert float(found.vector[1].abs()) == pytest.approx(1.0, abs=1e-10)


def test_power_iteration_reports_when_it_did_not_converge() -> None:
    A = torch.diag(torch.tensor([1.0, -1.0]).double())
    found = power_iteration(LinearOperator.from_tensor(A), max_iterations=20, start=torch.tensor([1.0, 2.0]).double())
    assert not found.converged and found.iterations == 20 and "not converged" in repr(found)
    zero = power_iteration(LinearOperator.from_tensor(torch.zeros(2, 2)), generator=generator())
    assert zero.value == 0 and zero.converged


def test_results_depend_on_the_generator_only() -> None:
    operator = LinearOperator.from_tensor(symmetric(20))
    before = torch.random.get_rng_state()
    first, second = (lanczos(operator, 5, generator=generator(1)).basis for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_errors_at_the_door() -> None:
    operator = LinearOperator.from_tensor(torch.eye(3))
    rectangular = LinearOperator.from_tensor(torch.ones(2, 3))
    for function in (lambda A, **options: lanczos(A, 2, **options), power_iteration, top_eigenvalues):
        with pytest.raises(ValueError, match="square operator"):
            function(rectangular, generator=generator())
        with pytest.raises(ValueError, match=r"either start= .* or generator="):
            function(operator)
        with pytest.raises(ValueError, match="start must have 3 entries"):
            function(operator, start=torch.ones(2))
        with pytest.raises(ValueError, match="finite nonzero"):
            function(operator, start=torch.zeros(3))
    with pytest.raises(ValueError, match="steps must be >= 1"):
        lanczos(operator, 0, generator=generator())
    with pytest.raises(ValueError, match="tol must be > 0"):
        power_iteration(operator, tol=-1, generator=generator())
    with pytest.raises(ValueError, match="tol must be > 0"):
        top_eigenvalues(operator, tol=0, generator=generator())
    with pytest.raises(ValueError, match="k must be between 1 and 3"):
        top_eigenvalues(operator, 4, generator=generator())
    with pytest.raises(ValueError, match="which must be"):
        top_eigenvalues(operator, which="top", generator=generator())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_iterations must be >= k"):
        top_eigenvalues(operator, 2, max_iterations=1, generator=generator())
    broken = LinearOperator((3, 3), lambda v: v / 0)
    with pytest.raises(NonFiniteError, match="non-finite product at Lanczos step 1"):
        lanczos(broken, 2, generator=generator())
