"""Square roots, inverse square roots and the Lyapunov equation, forward and backward."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from fallline.core.linalg import inv_sqrtm, solve_lyapunov, sqrtm

ACCURATE = {"pade": (10, 14), "taylor": (60, 14), "newton_schulz": (12, 14), "eigh": (1, 1)}
"""Order and backward steps that leave nothing but rounding for a condition number below 10."""
METHODS = list(ACCURATE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_eigenvalues(*values: float | list[float]) -> Tensor:
    spectrum = torch.tensor(values, dtype=torch.float64)
    V = torch.linalg.qr(torch.randn(*spectrum.shape, spectrum.shape[-1], generator=generator(), dtype=torch.float64))[0]
    return (V * spectrum.unsqueeze(-2)) @ V.mT


def batch() -> Tensor:
    return with_eigenvalues([1.0, 2.0, 3.0, 5.0], [0.2, 0.2, 0.2, 0.9], [7e4, 7e4, 3e4, 2e4])


@pytest.mark.parametrize("method", METHODS)
def test_the_square_of_the_root_is_the_matrix(method: str) -> None:
    A = batch().reshape(3, 1, 4, 4)
    S, T = (f(A, method, *ACCURATE[method]) for f in (sqrtm, inv_sqrtm))
    torch.testing.assert_close(S @ S, A, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(T @ A @ T, torch.eye(4, dtype=torch.float64).expand_as(A), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(S, S.mT, rtol=0, atol=1e-12)


def scalar(method: str, order: int, x: float) -> tuple[float, float]:
    """What the methods make of √x and 1/√x by other formulas: Padé in closed form, Taylor term by term."""
    z, s = 1 - x, math.sqrt(x)
    if method == "pade":
        q = ((1 - s) / (1 + s)) ** (2 * order + 1)
        return s * (1 + q) / (1 - q), (1 - q) / (s * (1 + q))
    if method == "taylor":
        root = inverse = term = other = 1.0
        for k in range(1, 2 * order + 1):
            term *= (k - 1.5) / k * z
            other *= (k - 0.5) / k * z
            root, inverse = root + term, inverse + other
        return root, inverse
    y, w = x, 1.0
    for _ in range(order):
        y, w = y * (3 - w * y) / 2, (3 - w * y) / 2 * w
    return y, w


@pytest.mark.parametrize("method", ["pade", "taylor", "newton_schulz"])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_approximations_are_those_of_the_paper_at_every_eigenvalue(method: str, order: int) -> None:
    values = [2.0, 0.7, 0.05, 1e-3]
    A, N = torch.diag(torch.tensor(values, dtype=torch.float64)), math.sqrt(sum(v * v for v in values))
    expected = torch.tensor([scalar(method, order, v / N) for v in values], dtype=torch.float64)
    torch.testing.assert_close(sqrtm(A, method, order), torch.diag(expected[:, 0] * N**0.5))
    torch.testing.assert_close(inv_sqrtm(A, method, order), torch.diag(expected[:, 1] / N**0.5))


def test_pade_is_the_approximant_of_the_root_at_the_identity() -> None:
    """Its power series in z agrees with that of √(1−z) up to z^(2m): the error at z falls as z^(2m+1)."""
    for m in (1, 2):
        errors = [abs(scalar("pade", m, 1 - z)[0] - math.sqrt(1 - z)) for z in (0.2, 0.1)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2 * m + 1, abs=0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", [sqrtm, inv_sqrtm])
def test_first_and_second_derivatives(f, method: str) -> None:
    A = batch()[:2].requires_grad_()  # repeated eigenvalues in one of them
    function = lambda A: f(A, method, *ACCURATE[method])
    assert torch.autograd.gradcheck(function, A, atol=1e-5)
    assert torch.autograd.gradgradcheck(function, A, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_under_vmap_and_grad_of_functions(method: str) -> None:
    A = batch()
    loss = lambda A: (sqrtm(A, method)[0] * inv_sqrtm(A, method)[1]).sum()
    found = torch.func.vmap(torch.func.grad(loss))(A)
    for one, gradient in zip(A, found, strict=True):
        leaf = one.clone().requires_grad_()
        loss(leaf).backward()
        torch.testing.assert_close(gradient, leaf.grad)


def test_eight_steps_solve_the_lyapunov_equation_of_a_well_conditioned_matrix() -> None:
    S = with_eigenvalues([1.0, 1.5, 2.0, 3.0])
    G = torch.randn(1, 4, 4, generator=generator(), dtype=torch.float64)
    X, G = solve_lyapunov(S, G), (G + G.mT) / 2
    torch.testing.assert_close(S @ X + X @ S, G, atol=1e-9, rtol=0)
    assert torch.equal(solve_lyapunov(torch.zeros(2, 2), torch.ones(2, 2)), torch.zeros(2, 2))


def test_gradient_of_the_lyapunov_solution() -> None:
    S = batch()[:1].requires_grad_()
    G = torch.randn(1, 4, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda S, G: solve_lyapunov(S, G, 14), (S, G), atol=1e-5)


def test_derivatives_by_eigenvalues_are_exact_at_any_condition_and_repeated_eigenvalues() -> None:
    A = with_eigenvalues([1.0, 1.0, 1e-12, 1e-12]).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to warn of
        S = sqrtm(A)
    (X,) = torch.autograd.grad(S.sum(), A)
    torch.testing.assert_close(S @ X + X @ S, torch.ones_like(X).detach(), atol=1e-5, rtol=0)
    for f in (sqrtm, inv_sqrtm):
        leaf = torch.eye(3).mul(2).requires_grad_()  # torch's own derivative of eigenvectors is NaN here
        f(leaf).sum().backward()
        assert leaf.grad is not None and bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_only_the_symmetric_part_counts_and_gets_a_gradient(method: str) -> None:
    A = batch()[0]
    above = torch.ones_like(A).triu(1)
    skewed = (A + above - above.mT).requires_grad_()
    S = sqrtm(skewed, method)
    torch.testing.assert_close(S, sqrtm(A, method))
    (gradient,) = torch.autograd.grad(S[0, 1], skewed)
    torch.testing.assert_close(gradient, gradient.mT)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_halves_are_computed_in_float32(method: str, dtype: torch.dtype) -> None:
    A = batch()[0].mul(1e3).to(dtype).requires_grad_()  # its square is beyond float16
    S = sqrtm(A, method)
    assert S.dtype == dtype and inv_sqrtm(A, method).dtype == dtype
    torch.testing.assert_close(S, sqrtm(A.detach().float(), method).to(dtype))
    S.sum().backward()
    assert A.grad is not None and A.grad.dtype == dtype and bool(A.grad.isfinite().all())


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1e-12, 1.0, 1e12, 1e25, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_float32_matrix_does_not_matter(method: str, size: float) -> None:
    A = with_eigenvalues(1.0, 2.0, 3.0).float()
    order = {"pade": 5, "taylor": 30, "newton_schulz": 12, "eigh": 1}[method]
    S, T = (f(size * A, method, order) for f in (sqrtm, inv_sqrtm))
    torch.testing.assert_close(S / math.sqrt(size), sqrtm(A), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(T * math.sqrt(size), inv_sqrtm(A), rtol=1e-4, atol=1e-5)
    X, G = solve_lyapunov(size * A, A, 12), torch.eye(3).expand(2, 3, 3)
    torch.testing.assert_close(X * size, torch.eye(3) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solve_lyapunov(size * G, G) * size, G / 2)


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0), (0, 0)])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_has_roots_of_nothing(method: str, shape: tuple[int, ...]) -> None:
    A = torch.zeros(shape)
    assert sqrtm(A, method).shape == inv_sqrtm(A, method).shape == solve_lyapunov(A, A).shape == shape


@pytest.mark.filterwarnings("ignore:.*condition number")
@pytest.mark.parametrize("method", METHODS)
def test_zero_matrices_harm_no_other(method: str) -> None:
    A = batch()
    A[1] = 0
    A.requires_grad_()
    S, T = sqrtm(A, method), inv_sqrtm(A, method)
    assert (S[1] == 0).all() and T[1].isnan().all() and bool(T[[0, 2]].isfinite().all())
    S.sum().backward()
    assert A.grad is not None and (A.grad[1] == 0).all()
    torch.testing.assert_close(S[0], sqrtm(batch()[0], method))


def test_ill_conditioned_matrices_are_warned_of_and_better_with_a_higher_order() -> None:
    A = with_eigenvalues([1.0, 0.5, 0.3, 1e-5], [1.0, 0.5, 0.3, 0.1])
    with pytest.warns(UserWarning, match='1 of 2 matrices.*above 10000.*"eigh"') as caught:
        low = sqrtm(A, "pade")
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="not positive definite"):
        inv_sqrtm(with_eigenvalues([1.0, -1.0]), "taylor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = sqrtm(A)
        torch.testing.assert_close(sqrtm(A[1], "pade"), exact[1], atol=1e-2, rtol=0)
    with pytest.warns(UserWarning):
        high = sqrtm(A, "pade", order=10)
    assert float((high - exact)[0].norm()) < 0.6 * float((low - exact)[0].norm())


def test_nothing_is_looked_at_on_a_device_whose_values_are_not_there() -> None:
    A = torch.empty(2, 4, 4, device="meta")
    assert sqrtm(A, "pade").shape == inv_sqrtm(A, "newton_schulz").shape == (2, 4, 4)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: sqrtm(torch.ones(2, 3)), "A must be a batch of square"),
    (lambda: sqrtm(torch.eye(2, dtype=torch.complex64)), "real"),
    (lambda: sqrtm(torch.eye(2, dtype=torch.int64)), "real"),
    (lambda: inv_sqrtm(torch.eye(2), "svd"), "method must be one of"),
    (lambda: sqrtm(torch.eye(2), order=0), "order must be"),
    (lambda: sqrtm(torch.eye(2), order=2.5), "order must be"),
    (lambda: inv_sqrtm(torch.eye(2), backward_iters=0), "backward_iters must be"),
    (lambda: solve_lyapunov(torch.eye(2), torch.eye(3)), "G must have the shape of S"),
    (lambda: solve_lyapunov(torch.eye(2), torch.eye(2), True), "steps must be"),
])
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
