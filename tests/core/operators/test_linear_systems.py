"""Conjugate gradient and MINRES against dense solves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fallline.core.counts import Counts
from fallline.core.operators import LinearOperator, Solution, conjugate_gradient, minres

Solver = Callable[..., Solution]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_eigenvalues(values: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    Q = torch.linalg.qr(draw(len(values), len(values), seed=7, dtype=dtype)).Q
    return (Q * values.to(dtype)) @ Q.mH


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_digits(solver: Solver, dtype: torch.dtype) -> None:
    A, b = with_eigenvalues(torch.logspace(-1, 1, 40), dtype), draw(40, dtype=dtype)
    found = solver(LinearOperator.from_tensor(A), b, tol=1e-13)
    assert found.converged and found.status == "converged"
    torch.testing.assert_close(found.solution, torch.linalg.solve(A, b), rtol=1e-10, atol=1e-10)
    assert found.residual_norm == pytest.approx(float(torch.linalg.vector_norm(b - A @ found.solution)), rel=0.5)
    assert "converged" in repr(found)


def test_minres_on_an_indefinite_system() -> None:
    values = torch.cat([-torch.logspace(-1, 1, 15), torch.logspace(-1, 1, 20)])
    A, b = with_eigenvalues(values), draw(35)
    found = minres(LinearOperator.from_tensor(A), b, tol=1e-13)
    assert found.converged
    torch.testing.assert_close(found.solution, torch.linalg.solve(A, b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_iterates_are_optimal_over_the_krylov_space(solver: Solver, steps: int) -> None:
    A, b = with_eigenvalues(torch.linspace(1, 30, 12)), draw(12)
    K = torch.stack([torch.linalg.matrix_power(A, power) @ b for power in range(steps)], dim=1)
    K = torch.linalg.qr(K).Q
    if solver is conjugate_gradient:
        best = K @ torch.linalg.solve(K.mT @ A @ K, K.mT @ b)
    else:
        best = K @ torch.linalg.lstsq(A @ K, b.unsqueeze(1)).solution.squeeze(1)
    found = solver(LinearOperator.from_tensor(A), b, tol=1e-12, max_iterations=steps)
    assert found.status == "budget" and not found.converged and found.iterations == steps
    torch.testing.assert_close(found.solution, best, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_few_distinct_eigenvalues_need_few_steps(solver: Solver) -> None:
    values = torch.tensor([1.0, 5.0, 9.0]).repeat(10)
    found = solver(LinearOperator.from_tensor(with_eigenvalues(values)), draw(30), tol=1e-10)
    assert found.converged and found.iterations == 3


def test_preconditioner_saves_steps_and_keeps_the_solution() -> None:
    scale = torch.logspace(0, 3, 50, dtype=torch.float64)
    A = torch.diag(scale) + 0.1 * torch.ones(50, 50)
    b, operator = draw(50), LinearOperator.from_tensor(A)
    plain = conjugate_gradient(operator, b, tol=1e-12)
    jacobi = conjugate_gradient(operator, b, tol=1e-12, preconditioner=lambda r: r / A.diagonal())
    as_operator = conjugate_gradient(
        operator, b, tol=1e-12, preconditioner=LinearOperator.from_tensor(torch.diag(1 / A.diagonal()))
    )
    assert jacobi.converged and jacobi.iterations < plain.iterations / 3
    torch.testing.assert_close(jacobi.solution, torch.linalg.solve(A, b), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(as_operator.solution, jacobi.solution)


def test_negative_curvature_is_reported_with_its_direction() -> None:
    A = torch.diag(torch.tensor([3.0, 2.0, -1.0]).double())
    found = conjugate_gradient(LinearOperator.from_tensor(A), torch.ones(3).double())
    p = found.negative_curvature
    assert found.status == "indefinite" and not found.converged
    assert p is not None and float(p @ A @ p) <= 0


def test_singular_systems() -> None:
    A = torch.diag(torch.tensor([3.0, 2.0, -1.0, 0.0, 0.0]).double())
    operator = LinearOperator.from_tensor(A)
    consistent = minres(operator, torch.tensor([3.0, 4.0, 5.0, 0.0, 0.0]).double(), tol=1e-12)
    expected = torch.tensor([1.0, 2.0, -5.0, 0.0, 0.0]).double()
    assert consistent.converged
    torch.testing.assert_close(consistent.solution, expected, rtol=1e-10, atol=1e-10)
    inconsistent = minres(operator, torch.tensor([3.0, 4.0, 5.0, 6.0, 0.0]).double(), tol=1e-12)
    assert inconsistent.status == "least-squares" and not inconsistent.converged
    assert inconsistent.residual_norm == pytest.approx(6.0)
    torch.testing.assert_close(inconsistent.solution[:3], expected[:3], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_convergence_is_never_claimed_on_a_drifted_residual(solver: Solver) -> None:
    A = with_eigenvalues(torch.logspace(-7, 0, 60)).float()
    b = draw(60).float()
    found = solver(LinearOperator.from_tensor((A + A.mT) / 2), b, tol=1e-6, max_iterations=5000)
    residual = float(torch.linalg.vector_norm(b - (A + A.mT) / 2 @ found.solution))
    assert found.residual_norm == pytest.approx(residual, rel=0.2)
    assert found.converged == (found.residual_norm <= 1e-6 * float(torch.linalg.vector_norm(b)))


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_a_tolerance_beyond_rounding_ends_as_stagnated(solver: Solver) -> None:
    A, b = with_eigenvalues(torch.logspace(-3, 3, 40)), draw(40)
    found = solver(LinearOperator.from_tensor(A), b, tol=1e-15, max_iterations=5000)
    assert found.status == "stagnated" and not found.converged
    torch.testing.assert_close(found.solution, torch.linalg.solve(A, b), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_start_trees_and_zero_right_hand_side(solver: Solver) -> None:
    counts = Counts()
    like = {"a": torch.ones(2, 2), "b": torch.ones(1)}
    operator = LinearOperator.from_function(lambda v: {"a": 2 * v["a"], "b": 3 * v["b"]}, like, counts=counts)
    b = {"a": torch.full((2, 2), 4.0), "b": torch.full((1,), 6.0)}
    found: Solution = solver(operator, b, tol=1e-6)
    torch.testing.assert_close(found.solution, {"a": torch.full((2, 2), 2.0), "b": torch.full((1,), 2.0)})
    # one product a step and one for the true residual
    assert counts["matvecs"] == found.iterations + 1
    warm = solver(operator, b, x0=found.solution, tol=1e-6)
    assert warm.iterations == 0 and warm.converged
    zero = solver(operator, torch.zeros(5), x0=torch.ones(5))
    assert float(zero.solution.abs().max()) < 1e-6
    exact = solver(operator, torch.zeros(5))
    assert exact.converged and exact.iterations == 0 and (exact.solution == 0).all()


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_non_finite_products_end_with_a_status(solver: Solver) -> None:
    found = solver(LinearOperator((3, 3), lambda v: v * float("nan")), torch.ones(3))
    assert found.status == "nonfinite" and not found.converged


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_errors_at_the_door(solver: Solver) -> None:
    operator = LinearOperator.from_tensor(torch.eye(3))
    with pytest.raises(ValueError, match=r"square operator, got shape \(2, 3\)"):
        solver(LinearOperator.from_tensor(torch.ones(2, 3)), torch.ones(2))
    with pytest.raises(TypeError, match=r"from_tensor"):
        solver(torch.eye(3), torch.ones(3))
    with pytest.raises(ValueError, match="b must have 3 entries"):
        solver(operator, torch.ones(4))
    with pytest.raises(ValueError, match="x0 must have 3 entries"):
        solver(operator, torch.ones(3), x0=torch.ones(4))
    with pytest.raises(ValueError, match="tol must be > 0, got 0"):
        solver(operator, torch.ones(3), tol=0)
    with pytest.raises(ValueError, match="max_iterations"):
        solver(operator, torch.ones(3), max_iterations=0)


def test_preconditioner_errors() -> None:
    operator = LinearOperator.from_tensor(torch.eye(3))
    with pytest.raises(ValueError, match="not positive definite"):
        conjugate_gradient(operator, torch.ones(3), preconditioner=lambda r: -r)
    with pytest.raises(ValueError, match="the operator's shape"):
        conjugate_gradient(operator, torch.ones(3), preconditioner=LinearOperator.from_tensor(torch.eye(2)))
