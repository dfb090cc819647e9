import numpy as np
import pytest
import scipy.linalg
import torch

import fallline as fl
from fallline.core.errors import MissingOracle
from fallline.equations import SOR, Jacobi


def laplacian(n):
    T = 2 * torch.eye(n) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
    return (torch.kron(T, torch.eye(n)) + torch.kron(torch.eye(n), T)).double()


def draw(n):
    return torch.randn(n, dtype=torch.float64, generator=fl.Key(4).generator())


@pytest.mark.parametrize("method", [SOR(), SOR(1.6), Jacobi(), Jacobi(0.7)], ids=repr)
def test_iterates_are_those_of_the_formulas_on_every_layout(method):
    A, b = laplacian(6), draw(36)
    dense, D = A.numpy(), np.diag(np.diag(A.numpy()))
    M = D / method.omega + (np.tril(dense, -1) if isinstance(method, SOR) else 0)
    x = np.zeros(36)
    for _ in range(7):
        x = x + scipy.linalg.solve_triangular(M, b.numpy() - dense @ x, lower=True)
    for form in (A, A.to_sparse(), A.to_sparse_csr()):
        result = fl.solve(fl.LinearSystem(form, b), method, fl.Budget(steps=7))
        torch.testing.assert_close(result.x, torch.tensor(x), rtol=1e-12, atol=1e-12)
        assert result.gap == pytest.approx(np.linalg.norm(b.numpy() - dense @ x) / float(b.norm()))
        assert result.counts["matvecs"] == 7 + 3  # steps 1, 2 and 4 look at A


def test_the_best_omega_takes_few_steps_and_rounding_ends_a_run():
    A, b = laplacian(8), draw(64)
    rho = float(np.cos(np.pi / 9))
    best = 1 + (rho / (1 + (1 - rho**2) ** 0.5)) ** 2
    steps = {omega: fl.solve(fl.LinearSystem(A, b), SOR(omega), tol=1e-8).nit for omega in (1.0, best, 1.95)}
    assert 3 * steps[best] < min(steps[1.0], steps[1.95])
    result = fl.solve(fl.LinearSystem(A, b), SOR(best))
    assert result.success and "as small as rounding allows" in result.message and result.gap < 1e-13


@pytest.mark.parametrize("method", [SOR(1.5), Jacobi(0.7)], ids=repr)
def test_a_system_it_cannot_solve_is_named(method):
    n = 8
    differences = torch.diff(torch.eye(n, dtype=torch.float64), dim=0)
    neumann = differences.T @ differences
    inconsistent = fl.solve(fl.LinearSystem(neumann, torch.ones(n).double()), method, tol=1e-10)
    assert inconsistent.status == "failed" and "singular" in inconsistent.message
    p = inconsistent.certificate
    assert float((neumann @ p).norm()) < 1e-10 * float(p.norm())
    consistent = fl.solve(fl.LinearSystem(neumann, torch.tensor([1.0, -1] * (n // 2)).double()), method, tol=1e-10)
    assert consistent.success
    indefinite = fl.solve(fl.LinearSystem(torch.tensor([[1.0, 2], [2, 1]]).double(), torch.tensor([1.0, 0.5]).double()), method)
    assert indefinite.status == "failed" and "positive definite" in indefinite.message
    assert "positive definite" in fl.solve(fl.LinearSystem(laplacian(4), draw(16)), Jacobi(1.9)).message


def test_errors_at_the_door():
    for wrong in (0.0, 2.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"omega must be in \(0, 2\)"):
            SOR(wrong)
    with pytest.raises(ValueError, match="omega must be above 0"):
        Jacobi(0.0)
    with pytest.raises(MissingOracle, match=r"SOR needs the oracle 'matrix'.*dense or sparse tensor"):
        fl.solve(fl.LinearSystem(lambda v: v, torch.ones(2)), SOR())
    with pytest.raises(ValueError, match="has one in row 1"):
        fl.solve(fl.LinearSystem(torch.tensor([[1.0, 2], [2, 0]]), torch.ones(2)), SOR())


def test_a_checkpoint_holds_no_copy_of_the_matrix(tmp_path):
    problem, method = fl.LinearSystem(laplacian(6), draw(36)), SOR(1.3)
    state = method.init(problem, fl.Key(0))
    assert "splitting" not in method.pack(state) and method.state_bytes(problem, state) < 36 * 8 * 3
    whole = fl.solve(problem, method, fl.Budget(steps=9))
    fl.solve(problem, method, fl.Budget(steps=4), checkpoint=tmp_path / "c")
    rest = fl.solve(problem, method, fl.Budget(steps=9), checkpoint=tmp_path / "c")
    assert torch.equal(whole.x, rest.x) and whole.counts == rest.counts
