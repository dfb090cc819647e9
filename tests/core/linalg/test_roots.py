"""Inverse roots of batches, by eigenvalues and by Newton's iteration."""

from __future__ import annotations

import math

import pytest
import torch

from fallline.core.linalg import inverse_pth_root, inverse_root


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive_definite(*shape: int) -> torch.Tensor:
    factor = torch.randn(*shape, shape[-1], generator=generator(), dtype=torch.float64)
    return factor @ factor.mT + 0.1 * torch.eye(shape[-1], dtype=torch.float64)


def with_eigenvalues(values: torch.Tensor) -> torch.Tensor:
    V = torch.linalg.qr(torch.randn(*values.shape, values.shape[-1], generator=generator(), dtype=torch.float64))[0]
    return (V * values.unsqueeze(-2)) @ V.mT


@pytest.mark.parametrize("order", [1, 2, 4])
def test_power_of_the_inverse_root_is_the_inverse(order: int) -> None:
    A = positive_definite(3, 2, 6)
    root = inverse_root(A, order, 1e-12)
    assert root.shape == A.shape
    torch.testing.assert_close(torch.linalg.matrix_power(root, order) @ A, torch.eye(6).double().expand_as(A))
    torch.testing.assert_close(root, root.mT)


def test_eigenvalues_are_clamped_and_not_shifted() -> None:
    A = torch.diag(torch.tensor([4.0, 1e-9, 0.0, -1.0]))
    root = inverse_root(A, 2, 1e-2)
    torch.testing.assert_close(root, torch.diag(torch.tensor([0.5, 10.0, 10.0, 10.0])))


def test_hermitian_matrices() -> None:
    factor = torch.randn(5, 5, generator=generator(), dtype=torch.complex128)
    A = factor @ factor.mH + torch.eye(5)
    root = inverse_root(A, 2, 1e-12)
    torch.testing.assert_close(root @ root @ A, torch.eye(5, dtype=torch.complex128))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((torch.ones(2, 3), 2, 1e-6), "A must be"),
        ((torch.ones(3), 2, 1e-6), "A must be"),
        ((torch.eye(2), 0, 1e-6), "order must be"),
        ((torch.eye(2), 2, 0.0), "eps must be"),
        ((torch.eye(2), 2, float("nan")), "eps must be"),
    ],
)
def test_inverse_root_refuses_bad_input(arguments: tuple, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        inverse_root(*arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    A = (2 * torch.eye(3)).to(dtype)
    for root in (inverse_root(A, 1, 1e-6), inverse_pth_root(A, 1), inverse_pth_root(A, 1, "newton")):
        assert root.dtype == dtype
        torch.testing.assert_close(root.float(), 0.5 * torch.eye(3))


@pytest.mark.parametrize("method", ["newton", "eigh"])
@pytest.mark.parametrize("p", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12])
def test_power_of_the_pth_root_is_the_inverse_of_the_damped_matrix(method: str, p: int, condition: float) -> None:
    largest = torch.tensor([1.0, 1e-7, 3e8], dtype=torch.float64)
    A = with_eigenvalues(largest[:, None] * torch.logspace(0, -math.log10(condition), 12, dtype=torch.float64))
    damped = A + 1e-6 * largest[:, None, None] * torch.eye(12)
    root = inverse_pth_root(A, p, method)
    residual = torch.linalg.matrix_norm(torch.linalg.matrix_power(root, p) @ damped - torch.eye(12)) / math.sqrt(12)
    assert float(residual.max()) < 1e-5
    assert torch.equal(root, root.mT) or method == "eigh"


@pytest.mark.parametrize("values", [[2.0] * 5, [3.0, 3.0, 3.0, 1e-3, 1e-3], [1.0, 1.0, 0.0, 0.0, 0.0]])
def test_repeated_and_zero_eigenvalues(values: list[float]) -> None:
    A = with_eigenvalues(torch.tensor([values, values[::-1]], dtype=torch.float64))
    expected = with_eigenvalues((torch.tensor([values, values[::-1]], dtype=torch.float64) + 1e-6 * max(values)) ** -0.25)
    for method in ("newton", "eigh"):
        torch.testing.assert_close(inverse_pth_root(A, 4, method), expected, rtol=1e-5, atol=1e-5)


def test_float32_is_computed_in_float64_on_the_cpu() -> None:
    A = with_eigenvalues(torch.logspace(0, -5, 10, dtype=torch.float64)).float()
    found = inverse_pth_root(A, 4, "newton", ridge=0.0)
    torch.testing.assert_close(found, inverse_pth_root(A.double(), 4, "newton", ridge=0.0).float())


def test_the_damping_is_relative_to_the_largest_eigenvalue() -> None:
    A = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
    for method in ("newton", "eigh"):
        torch.testing.assert_close(inverse_pth_root(A, 2, method, ridge=0.25), torch.diag(torch.tensor([5.0, 1.0]).double() ** -0.5),
                                   rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["newton", "eigh"])
def test_matrices_without_a_root_are_nan_and_harm_no_other(method: str) -> None:
    A = positive_definite(6, 4)
    bad = A.clone()
    bad[1] = 0
    bad[2, 0, 0] = math.nan
    bad[3] = torch.inf
    bad[4] = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.5]))
    root = inverse_pth_root(bad.reshape(2, 3, 4, 4), 4, method).reshape(6, 4, 4)
    assert root[1:5].isnan().all()
    alone = torch.stack([inverse_pth_root(A[i], 4, method) for i in (0, 5)])
    torch.testing.assert_close(root[[0, 5]], alone, rtol=1e-12, atol=1e-12)
    singular = torch.diag(torch.tensor([1.0, 0.0]))
    assert inverse_pth_root(singular, 4, method, ridge=0.0).isnan().all()


def test_newton_stops_where_rounding_lets_the_error_rise(monkeypatch) -> None:
    monkeypatch.setattr("fallline.core.linalg.roots.TOLERANCE", 0.0)
    A = with_eigenvalues(torch.logspace(0, -3, 16, dtype=torch.float64))
    torch.testing.assert_close(inverse_pth_root(A, 4, "newton", ridge=0.0), inverse_root(A, 4, 1e-300))


def test_in_float32_the_damping_is_what_makes_newton_accurate(monkeypatch) -> None:
    monkeypatch.setattr("fallline.core.linalg.roots._working_precision", lambda A: A)
    A = with_eigenvalues(torch.logspace(0, -8, 32, dtype=torch.float64)).float()
    expected = inverse_pth_root(A.double(), 4, "eigh")
    assert float(torch.linalg.matrix_norm(inverse_pth_root(A, 4, "newton") - expected) / torch.linalg.matrix_norm(expected)) < 0.01


def test_hermitian_pth_root_any_real_order_and_no_gradient() -> None:
    factor = torch.randn(5, 5, generator=generator(), dtype=torch.complex128)
    A = factor @ factor.mH + torch.eye(5)
    root = inverse_pth_root(A, 2, "newton", ridge=0.0)
    torch.testing.assert_close(root @ root @ A, torch.eye(5, dtype=torch.complex128), rtol=1e-6, atol=1e-6)
    B = positive_definite(3).requires_grad_()
    half = inverse_pth_root(B, 2.5, "eigh", ridge=0.0)
    torch.testing.assert_close(half, inverse_root(B, 2.5, 1e-300).detach())
    assert not half.requires_grad
    assert inverse_pth_root(torch.zeros(0, 3, 3), 4).shape == (0, 3, 3)


@pytest.mark.parametrize(("arguments", "message"), [
    ((torch.ones(2, 3), 4), "A must be"),
    ((torch.eye(2), 0), "p must be"),
    ((torch.eye(2), True), "p must be"),
    ((torch.eye(2), 2.5, "newton"), "eigh"),
    ((torch.eye(2), 4, "svd"), "method must be"),
    ((torch.eye(2), 4, "newton", -1.0), "ridge must be"),
])
def test_inverse_pth_root_refuses_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inverse_pth_root(*arguments)
