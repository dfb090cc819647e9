"""Orthonormal columns of batches, by QR, by Cholesky, and nearly by iterations."""

from __future__ import annotations

import pytest
import torch

from fallline.core.linalg import bjorck, cholesky_orthonormalize, newton_schulz, orthonormalize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conditioned(m: int, n: int, condition: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A random matrix of that condition number."""
    U, V = (torch.linalg.qr(torch.randn(k, n, generator=generator(k), dtype=torch.float64))[0] for k in (m, n))
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
    return ((U * values) @ V.mT).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("function", [orthonormalize, cholesky_orthonormalize, bjorck, newton_schulz])
def test_dtype_is_kept(function, dtype: torch.dtype) -> None:
    Q = function(torch.eye(3, dtype=dtype))
    assert Q.dtype == dtype
    torch.testing.assert_close(Q.float(), torch.eye(3), atol=0.35 if function is newton_schulz else 1e-6, rtol=0)


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


@pytest.mark.parametrize(("dtype", "condition"), [
    (torch.float32, 1e2), (torch.float32, 1e6), (torch.float64, 1e6), (torch.float64, 1e12),
])
def test_cholesky_gives_what_qr_gives_at_every_condition(dtype: torch.dtype, condition: float) -> None:
    A = conditioned(20, 6, condition, dtype)
    Q, precision = cholesky_orthonormalize(A), torch.finfo(dtype).eps
    assert float((Q.mT @ Q - torch.eye(6)).abs().max()) < 20 * precision
    torch.testing.assert_close(Q @ (Q.mT @ A), A, atol=20 * precision, rtol=0)
    if condition * precision < 1e-3:
        torch.testing.assert_close(Q, orthonormalize(A), atol=100 * condition * precision, rtol=0)


def test_cholesky_leaves_the_rest_of_a_batch_alone_where_one_matrix_fails(monkeypatch) -> None:
    good = torch.randn(3, 8, 3, generator=generator(), dtype=torch.float64)
    bad = good.clone()
    bad[1, :, 2] = 0
    Q = cholesky_orthonormalize(bad.reshape(3, 1, 8, 3)).reshape(3, 8, 3)
    torch.testing.assert_close(Q[1], orthonormalize(bad[1]))
    monkeypatch.setattr("fallline.core.linalg.orthonormal.orthonormalize", None)
    assert torch.equal(Q[[0, 2]], cholesky_orthonormalize(good[[0, 2]]))  # and these need no QR


def test_cholesky_of_zero_matrices_and_of_none() -> None:
    assert (cholesky_orthonormalize(torch.zeros(3, 2)) == 0).all()
    assert cholesky_orthonormalize(torch.zeros(0, 3, 2)).shape == (0, 3, 2)


@pytest.mark.parametrize("shape", [(2, 9, 4), (4, 9), (5, 5)])
def test_bjorck_is_its_formula_and_converges_quadratically(shape: tuple[int, ...]) -> None:
    noise = torch.randn(shape, generator=generator(), dtype=torch.float64)
    tall = noise if shape[-2] >= shape[-1] else noise.mT
    Q = orthonormalize(tall) + 0.02 * tall
    V = Q if shape[-2] >= shape[-1] else Q.mT
    torch.testing.assert_close(bjorck(V), 1.5 * V - 0.5 * V @ V.mT @ V)
    errors = [float((torch.linalg.svdvals(bjorck(V, steps)) - 1).abs().max()) for steps in (1, 2, 3)]
    assert errors[1] < 2 * errors[0] ** 2 and errors[2] < 2 * errors[1] ** 2 + 1e-14
    U, _, Vh = torch.linalg.svd(V, full_matrices=False)
    torch.testing.assert_close(bjorck(V, 6), U @ Vh)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: cholesky_orthonormalize(torch.ones(2, 3)), r"m >= n.*A\.mT"),
    (lambda: bjorck(torch.ones(3)), "V must be"),
    (lambda: bjorck(torch.eye(3), 0), "steps must be"),
    (lambda: newton_schulz(torch.ones(3)), "A must be"),
])
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
