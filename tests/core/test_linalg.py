"""Inverse roots and orthonormal columns of batches."""

from __future__ import annotations

import pytest
import torch

from fallline.core.linalg import inverse_root, orthonormalize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive_definite(*shape: int) -> torch.Tensor:
    factor = torch.randn(*shape, shape[-1], generator=generator(), dtype=torch.float64)
    return factor @ factor.mT + 0.1 * torch.eye(shape[-1], dtype=torch.float64)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    A = (2 * torch.eye(3)).to(dtype)
    assert inverse_root(A, 1, 1e-6).dtype == dtype
    torch.testing.assert_close(inverse_root(A, 1, 1e-6).float(), 0.5 * torch.eye(3))
    torch.testing.assert_close(orthonormalize(A).float(), torch.eye(3))
    assert orthonormalize(A).dtype == dtype


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


def test_orthonormal_columns_span_in_order_with_positive_diagonal() -> None:
    A = torch.randn(4, 7, 3, generator=generator(), dtype=torch.float64)
    Q = orthonormalize(A)
    torch.testing.assert_close(Q.mT @ Q, torch.eye(3).double().expand(4, 3, 3))
    R = Q.mT @ A
    torch.testing.assert_close(Q @ R, A)
    torch.testing.assert_close(R.tril(-1), torch.zeros_like(R), atol=1e-12, rtol=0)
    assert (R.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_orthonormal_columns_are_a_fixed_point() -> None:
    Q = orthonormalize(torch.randn(6, 4, generator=generator(), dtype=torch.float64))
    torch.testing.assert_close(orthonormalize(Q), Q)


def test_zero_columns_stay_zero_and_leave_the_others_alone() -> None:
    A = torch.randn(2, 5, 4, generator=generator(), dtype=torch.float64)
    A[0, :, 0] = 0
    A[1, :, 2] = 0
    Q = orthonormalize(A)
    for batch, kept in ((0, [1, 2, 3]), (1, [0, 1, 3])):
        torch.testing.assert_close(Q[batch][:, kept], orthonormalize(A[batch][:, kept]))
    assert (Q[0, :, 0] == 0).all() and (Q[1, :, 2] == 0).all()
    assert (orthonormalize(torch.zeros(3, 2)) == 0).all()


def test_dependent_columns_give_finite_orthonormal_ones() -> None:
    Q = orthonormalize(torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(Q.mT @ Q, torch.eye(3, dtype=torch.float64))


def test_orthonormalize_refuses_wide_matrices() -> None:
    with pytest.raises(ValueError, match=r"m >= n.*A\.mT"):
        orthonormalize(torch.ones(2, 3))


def test_gradient_of_orthonormalize() -> None:
    A = torch.randn(4, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthonormalize, (A,))
