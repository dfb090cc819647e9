import math
import re

import numpy as np
import pytest
import scipy.sparse as sparse
import scipy.sparse.linalg
import torch

import fallline as fl
from fallline.core.errors import WrongProblem
from fallline.core.operators import LinearOperator
from fallline.equations import MINRES, ConjugateGradient

BOTH = pytest.mark.parametrize("method", [ConjugateGradient(), MINRES()], ids=repr)
STEPS = fl.Budget(steps=300)


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def with_eigenvalues(values, seed=0, dtype=torch.float64):
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=fl.Key(seed).generator())).Q
    A = (Q * torch.as_tensor(values, dtype=torch.float64)) @ Q.mT
    return ((A + A.mT) / 2).to(dtype)


def poisson(n):
    T = sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(n, n))
    return (sparse.kron(T, sparse.eye(n)) + sparse.kron(sparse.eye(n), T)).tocsr()


def draw(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def test_conjugate_gradient_is_its_formulas_and_takes_the_steps_of_scipy():
    A, b = poisson(16), draw(256).numpy()
    x, r = np.zeros(256), b.copy()
    p = r.copy()
    for _ in range(12):
        alpha = r @ r / (p @ (A @ p))
        x, new = x + alpha * p, r - alpha * (A @ p)
        p, r = new + (new @ new) / (r @ r) * p, new
    dense = torch.tensor(A.toarray())
    for form in (dense, dense.to_sparse(), lambda v: dense @ v):
        result = fl.solve(fl.LinearSystem(form, torch.tensor(b)), ConjugateGradient(), fl.Budget(steps=12))
        torch.testing.assert_close(result.x, torch.tensor(x), rtol=1e-10, atol=1e-10)
        assert result.counts["matvecs"] == 12 and result.gap == pytest.approx(np.linalg.norm(b - A @ x) / np.linalg.norm(b))
    count = [0]
    scipy.sparse.linalg.cg(A, b, rtol=1e-8, callback=lambda x: count.__setitem__(0, count[0] + 1))
    result = fl.solve(fl.LinearSystem(dense, torch.tensor(b)), ConjugateGradient(), tol=1e-8)
    assert abs(result.nit - count[0]) <= 1 and result.success


def test_minres_minimises_the_residual_over_the_krylov_space():
    values = [-5.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0]
    A, b = with_eigenvalues(values), draw(9)
    for k in (1, 3, 5):
        K = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(A, i) @ b for i in range(k)], 1)).Q
        best = K @ torch.linalg.lstsq(A @ K, b.unsqueeze(1)).solution.squeeze(1)
        result = fl.solve(fl.LinearSystem(A, b), MINRES(), fl.Budget(steps=k))
        torch.testing.assert_close(result.x, best, rtol=1e-9, atol=1e-9)
        assert result.gap == pytest.approx(float((b - A @ best).norm() / b.norm()), rel=1e-8)
    result = fl.solve(fl.LinearSystem(A, b), MINRES(), tol=1e-12)
    assert result.success
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-10, atol=1e-10)


def test_a_preconditioner_saves_steps_whatever_its_form():
    A = torch.diag(torch.logspace(0, 3, 50, dtype=torch.float64)) + 0.1
    problem, M = fl.LinearSystem(A, draw(50)), torch.diag(1 / A.diagonal())
    plain = fl.solve(problem, ConjugateGradient(), tol=1e-12)
    forms = lambda r: r / A.diagonal(), LinearOperator.from_tensor(M)
    found = [fl.solve(problem, ConjugateGradient(form), tol=1e-12) for form in forms]
    assert all(r.success and r.nit < plain.nit / 3 for r in found)
    torch.testing.assert_close(found[0].x, torch.linalg.solve(A, problem.b), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="not positive definite: ⟨r, M r⟩"):
        fl.solve(problem, ConjugateGradient(lambda r: -r))
    with pytest.raises(TypeError, match="preconditioner must be a function"):
        ConjugateGradient(3.0)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gap_bounds_the_true_residual_down_to_rounding(method, dtype):
    A = with_eigenvalues(torch.logspace(-4, 0, 60), dtype=dtype)
    b = draw(60).to(dtype)
    gaps, true = [], []

    def look(moment):
        gaps.append(moment.report.gap)
        true.append(float((b.double() - A.double() @ moment.report.solution.double()).norm() / b.double().norm()))

    result = fl.solve(fl.LinearSystem(A, b), method, fl.Budget(steps=600), callback=look)
    assert all(gap >= 0.5 * real for gap, real in zip(gaps, true, strict=True))
    assert result.success and "as small as rounding allows" in result.message and result.nit < 600
    assert true[-1] < 1e3 * torch.finfo(dtype).eps / 1e-4
    beyond = fl.solve(fl.LinearSystem(A, b), method, fl.Budget(steps=600), tol=torch.finfo(dtype).eps / 10)
    assert beyond.status == "failed" and "the tolerance is" in beyond.message


@BOTH
def test_starts_and_zero_right_hand_sides(method):
    A, b = with_eigenvalues([1.0, 2.0, 3.0, 4.0]), draw(4)
    exact = torch.linalg.solve(A, b)
    warm = fl.solve(fl.LinearSystem(A, b, exact + 1e-3), method, tol=1e-12)
    assert warm.success and warm.counts["matvecs"] >= warm.nit + 1
    torch.testing.assert_close(warm.x, exact)
    nothing = fl.solve(fl.LinearSystem(A, torch.zeros_like(b)), method, tol=1e-12)
    assert nothing.success and nothing.nit == 0 and not nothing.x.any()
    home = fl.solve(fl.LinearSystem(A, torch.zeros_like(b), b), method, tol=1e-12)
    assert home.success and float(home.x.norm()) < 1e-11 and home.gap <= 1e-12


@BOTH
def test_a_consistent_singular_system_is_solved(method):
    A = with_eigenvalues([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    result = fl.solve(fl.LinearSystem(A, A @ draw(6)), method, STEPS, tol=1e-10)
    assert result.success and float((A @ result.x - A @ draw(6)).norm()) < 1e-9


def test_conjugate_gradient_says_what_is_wrong_with_the_matrix():
    for A, b, message in ((diagonal(3, 2, -1), vector(1, 1, 1), "not positive definite"),
                          (torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double(), vector(1, 1), "not positive definite"),
                          (diagonal(3, 2, 0), vector(1, 1, 1), "A is singular.*not in the range of A"),
                          (torch.zeros(3, 3).double(), vector(1, 1, 1), "A is singular"),
                          (with_eigenvalues([0.0, 1, 2, 3, 4, 5, 6]), draw(7), "A is singular"),
                          (diagonal(1e-15, 1, 2), vector(1, 1, 1), "singular")):
        result = fl.solve(fl.LinearSystem(A, b), ConjugateGradient(), STEPS, tol=1e-10)
        assert result.status == "failed"
        assert re.search(message, result.message)
    proof = fl.solve(fl.LinearSystem(diagonal(3, 2, -1), vector(1, 1, 1)), ConjugateGradient()).certificate
    assert float(proof @ diagonal(3, 2, -1) @ proof) < 0


def test_minres_ends_an_inconsistent_system_with_its_proof():
    A, b = diagonal(3, 2, -1, 0), vector(3, 4, 5, 6)
    result = fl.solve(fl.LinearSystem(A, b), MINRES(), STEPS, tol=1e-10)
    assert result.status == "failed" and "inconsistent" in result.message
    torch.testing.assert_close(result.x[:3], vector(1, 2, -5))
    y = result.certificate
    assert float((A @ y).norm()) < 1e-10 < float(b @ y) and result.gap == pytest.approx(6 / float(b.norm()))


@BOTH
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_matrix_that_is_not_symmetric_is_named(method, seed):
    A = torch.eye(20).double() * 8 + draw(20, 20, seed=seed)
    result = fl.solve(fl.LinearSystem(A, draw(20)), method, STEPS, tol=1e-10)
    assert result.status == "failed" and "A is not symmetric" in result.message and result.nit == 2


@BOTH
def test_errors_at_the_door(method):
    with pytest.raises(WrongProblem, match="square A, and that of 'linear-system' is 3 by 2"):
        fl.solve(fl.LinearSystem(torch.ones(3, 2), torch.ones(3)), method)


@BOTH
def test_complex_hermitian_systems(method):
    Q = torch.linalg.qr(torch.complex(draw(12, 12), draw(12, 12, seed=2))).Q
    A = (Q * torch.linspace(1, 9, 12, dtype=torch.float64)) @ Q.mH
    b = torch.complex(draw(12), draw(12, seed=3))
    result = fl.solve(fl.LinearSystem(A, b), method, tol=1e-12)
    assert result.success
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-9)


@BOTH
def test_a_nan_ends_the_run_with_the_last_finite_answer(method):
    calls = [0]

    def product(v):
        calls[0] += 1
        return v * (math.nan if calls[0] == 3 else torch.arange(1.0, 9).double())

    result = fl.solve(fl.LinearSystem(product, draw(8)), method, STEPS)
    assert result.status == "nonfinite" and bool(torch.isfinite(result.x).all())
