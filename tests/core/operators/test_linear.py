"""The algebra of operators, trees as vectors, counting, and errors."""

from __future__ import annotations

import pytest
import torch

from fallline.core.counts import Counts
from fallline.core.operators import LinearOperator


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
def test_algebra_is_that_of_matrices(dtype: torch.dtype, layout: str) -> None:
    A, B, C = draw(4, 3, dtype=dtype), draw(3, 5, seed=1, dtype=dtype), draw(4, 3, seed=2, dtype=dtype)
    stored = {"dense": A, "coo": A.to_sparse(), "csr": A.to_sparse_csr()}[layout]
    a, b, c = LinearOperator.from_tensor(stored), LinearOperator.from_tensor(B), LinearOperator.from_tensor(C)
    factor = 2 - 1j if dtype.is_complex else -2.5
    for operator, matrix in [
        (a, A),
        (a @ b, A @ B),
        (a + c, A + C),
        (a - c, A - C),
        (-a, -A),
        (factor * a, factor * A),
        (a.H @ c, A.mH @ C),
        ((factor * (a - c) @ b).H, (factor * (A - C) @ B).mH),
    ]:
        assert operator.shape == matrix.shape
        assert operator.dtype == dtype
        torch.testing.assert_close(operator.to_dense(), matrix)
        torch.testing.assert_close(operator.H.to_dense(), matrix.mH)


def test_at_sign_applies_to_vectors() -> None:
    A = draw(3, 3)
    torch.testing.assert_close(LinearOperator.from_tensor(A) @ A[0], A @ A[0])


def test_hessian_vector_products_on_trees() -> None:
    x = {"weight": draw(2, 3), "bias": draw(3, seed=1)}

    def hvp(v: dict) -> dict:
        return {"weight": 2 * v["weight"] + v["bias"], "bias": 3 * v["bias"] + v["weight"].sum(0)}

    H = LinearOperator.from_function(hvp, x, adjoint=hvp)
    assert H.shape == (9, 9)
    torch.testing.assert_close(H.to_dense(), H.H.to_dense().mT)
    product = H.matvec(x)
    assert product.keys() == x.keys()
    torch.testing.assert_close(product, hvp(x))
    flat = torch.cat([x["weight"].reshape(-1), x["bias"]])
    torch.testing.assert_close(H.matvec(flat), torch.cat([product["weight"].reshape(-1), product["bias"]]))


def test_each_product_is_counted_once_also_in_compositions() -> None:
    counts = Counts()
    A = LinearOperator.from_tensor(draw(3, 3), counts=counts)
    v = draw(3)
    A.matvec(v)
    A.adjoint(v)
    A.H.matvec(v)
    assert counts["matvecs"] == 3
    (2 * A.H @ A + A).matvec(v)
    assert counts["matvecs"] == 6


def test_products_are_differentiable() -> None:
    A = draw(3, 3).requires_grad_()
    LinearOperator.from_tensor(A).matvec(torch.ones(3, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(A.grad, torch.ones_like(A))


def test_vectors_may_be_of_a_higher_precision_than_the_leaves() -> None:
    like = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(1)}
    A = LinearOperator.from_function(lambda v: {"a": 2 * v["a"], "b": v["b"]}, like, dtype=torch.float32)
    found = A.matvec(torch.tensor([1.0, 3.0, 0.1]))
    assert found.dtype is torch.float32 and found.tolist() == pytest.approx([2.0, 6.0, 0.1])
    assert A.dtype is torch.float32


def test_errors_at_the_door() -> None:
    A = LinearOperator.from_tensor(draw(4, 3))
    with pytest.raises(ValueError, match="expects a vector of 3 entries here, got 4"):
        A.matvec(draw(4))
    with pytest.raises(ValueError, match="not square"):
        A.matvec(draw(3, 1))
    with pytest.raises(ValueError, match="inner lengths differ"):
        A @ A
    with pytest.raises(ValueError, match="cannot add"):
        A + A.H
    with pytest.raises(ValueError, match="A must be a matrix"):
        LinearOperator.from_tensor(draw(4))
    with pytest.raises(ValueError, match="shape must be"):
        LinearOperator((0, 3), lambda v: v)
    with pytest.raises(ValueError, match="no adjoint"):
        LinearOperator((3, 3), lambda v: v).adjoint(torch.ones(3))
    with pytest.raises(ValueError, match=r"returned shape \(2,\), expected \(3,\)"):
        LinearOperator((3, 3), lambda v: v[:2]).matvec(torch.ones(3))
    with pytest.raises(ValueError, match="one dtype"):
        LinearOperator.from_function(lambda v: v, [torch.ones(2), torch.ones(2).double()])
    assert repr(A) == "LinearOperator(4 x 3, float64, cpu)"
