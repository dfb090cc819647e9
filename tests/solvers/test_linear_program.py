import numpy as np
import pytest
import scipy.optimize
import torch

import fallline as fl
from fallline.equations import Halpern, Picard
from fallline.solvers import Farkas, LinearProgram

BOTH = pytest.mark.parametrize("method", [Picard(), Halpern()], ids=repr)


def program(kind, seed=0, m=8, n=14):
    generator = fl.Key(seed).fold(kind).generator()

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    A, x, y = normal(m, n), normal(n).clamp(min=0), normal(m)
    if kind == "infeasible":
        A = A * torch.where(y @ A > 0, -1.0, 1.0)  # Aᵀ(−y) ≥ 0
        return A.T @ normal(m) + normal(n).abs(), A, y
    c = A.T @ y + normal(n).abs()
    if kind == "unbounded":
        A[:, -1] = -A[:, :-1] @ normal(n - 1).abs()  # A r = 0 for an r ≥ 0
        c = -normal(n).abs()
    return c, A, A @ x


def referee(c, A, b):
    return scipy.optimize.linprog(c.numpy(), A_eq=A.numpy(), b_eq=b.numpy(), method="highs")


def test_a_step_is_its_formula():
    c, A, b = program("feasible")
    x, y = torch.rand(14, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    eta = 0.99 / float(torch.linalg.svdvals(A)[0])
    new = torch.maximum(x - eta * (c - A.T @ y), torch.zeros(14).double())
    image = LinearProgram(c, A, b).map((x, y))
    torch.testing.assert_close(image[0], new)
    torch.testing.assert_close(image[1], y + eta * (b - A @ (2 * new - x)))


def test_the_step_is_averaged_in_the_norm():
    problem = LinearProgram(*program("feasible"))
    generator = fl.Key(3).generator()
    for _ in range(20):
        z, w = ((torch.randn(14, dtype=torch.float64, generator=generator), torch.randn(8, dtype=torch.float64, generator=generator))
                for _ in range(2))
        difference = [a - b for a, b in zip(z, w, strict=True)]
        moved = [a - b for a, b in zip(problem.map(z), problem.map(w), strict=True)]
        rest = [a - b for a, b in zip(difference, moved, strict=True)]
        assert float(problem.norm(moved)) ** 2 + float(problem.norm(rest)) ** 2 <= float(problem.norm(difference)) ** 2 * (1 + 1e-12)


def test_a_solution_is_that_of_highs():
    c, A, b = program("feasible")
    result = fl.solve(LinearProgram(c, A, b), Picard(), fl.Budget(steps=50_000), tol=1e-10, every=50)
    best = referee(c, A, b)
    x, y = result.x
    assert result.success and float(c @ x) == pytest.approx(best.fun, rel=1e-7) and float(b @ y) == pytest.approx(best.fun, rel=1e-7)
    assert np.allclose(x.numpy(), best.x, atol=1e-7)
    observed = LinearProgram(c, A, b).observe(result.x)
    assert observed["primal_residual"] < 1e-8 and observed["dual_residual"] < 1e-8 and observed["value"] == pytest.approx(best.fun)


@BOTH
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_inconsistent_constraints_end_with_a_farkas_vector(method, seed, sparse):
    c, A, b = program("infeasible", seed)
    assert referee(c, A, b).status == 2
    given = A.to_sparse() if sparse else A
    result = fl.solve(LinearProgram(c, given, b), method, fl.Budget(steps=20_000), tol=1e-3, every=16)
    assert result.status == "failed" and not result.success and "primal infeasible" in result.message
    y = result.certificate.vector
    assert isinstance(result.certificate, Farkas) and float(y.abs().max()) == 1
    assert float((A.T @ y).min()) >= -1e-9 and float(b @ y) < -1e-3


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_an_unbounded_program_ends_with_a_ray(method, seed):
    c, A, b = program("unbounded", seed)
    assert referee(c, A, b).status in (2, 3, 4)
    result = fl.solve(LinearProgram(c, A, b), method, fl.Budget(steps=20_000), tol=1e-3, every=16)
    assert result.status == "failed" and "unbounded if there is a feasible point" in result.message
    r = result.certificate.vector
    assert result.certificate.kind == "dual infeasible" and float(r.min()) >= 0 and float(c @ r) < -1e-3
    torch.testing.assert_close(A @ r, torch.zeros_like(b), atol=1e-9, rtol=0)


@BOTH
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
def test_a_feasible_program_with_a_far_solution_is_never_called_infeasible(method, delta):
    """x_1 − x_2 = 1 and x_1 − (1 + δ) x_2 = 0 meet at x_2 = 1/δ: the iterates see two parallel lines."""
    A = torch.tensor([[1.0, -1.0], [1.0, -1.0 - delta]], dtype=torch.float64)
    problem = LinearProgram(torch.ones(2, dtype=torch.float64), A, torch.tensor([1.0, 0.0], dtype=torch.float64))
    result = fl.solve(problem, method, fl.Budget(steps=5_000), tol=1e-9, every=100)
    assert result.status == "budget"


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("c", "A", "b", "kind"), [
    ([1.0], [[1.0]], [-1.0], "primal infeasible"),
    ([1.0, 1.0], [[1.0, 1.0], [0.0, 0.0]], [1.0, 1.0], "primal infeasible"),  # 0 = 1
    ([1.0, 1.0], [[1.0, 1.0], [1.0, 1.0]], [1.0, 2.0], "primal infeasible"),  # contradictory equations
    ([1.0, 1.0], [[1.0, 1.0], [1.0, 1.0]], [1.0, 1.02], "primal infeasible"),  # nearly not
    ([-1.0, -1.0], [[1.0, -1.0]], [0.0], "dual infeasible"),
    ([-1.0, -1.0, 0.0], [[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], [0.0, -1.0], "primal infeasible"),  # both are
])
def test_small_programs_without_a_solution(c, A, b, kind, dtype, method):
    c, A, b = (torch.tensor(part, dtype=dtype) for part in (c, A, b))
    for matrix in (A, A.to_sparse_csr()):
        result = fl.solve(LinearProgram(c, matrix, b), method, fl.Budget(steps=10_000), tol=1e-4, every=8)
        assert result.status == "failed" and result.certificate.kind == kind and kind in repr(result.certificate)


def test_redundant_equations_are_not_called_inconsistent():
    ones = torch.ones(2, 2, dtype=torch.float64)
    result = fl.solve(LinearProgram(torch.tensor([1.0, 2.0]).double(), ones, ones[0]), Picard(), fl.Budget(steps=1_000), tol=1e-6)
    assert result.success and result.x[0].tolist() == pytest.approx([1, 0], abs=1e-5)


def test_badly_scaled_columns_are_not_called_infeasible():
    A = torch.tensor([[1e-8, 1.0]], dtype=torch.float64)
    problem = LinearProgram(torch.tensor([0.0, 1.0]).double(), A, torch.tensor([1.0]).double())
    assert fl.solve(problem, Halpern(), fl.Budget(steps=2_000), tol=1e-10, every=10).status != "failed"


def test_a_large_sparse_program():
    c, A, b = program("infeasible", 1, 10, 16)
    copies = 100  # block-diagonal: one infeasible block makes the whole infeasible
    feasible = program("feasible", 2, 10, 16)
    blocks = [A] + [feasible[1]] * (copies - 1)
    whole = torch.block_diag(*blocks).to_sparse()
    problem = LinearProgram(torch.cat([c] + [feasible[0]] * (copies - 1)), whole, torch.cat([b] + [feasible[2]] * (copies - 1)))
    result = fl.solve(problem, Picard(), fl.Budget(steps=4_100), every=64)
    assert result.status == "failed" and result.certificate.kind == "primal infeasible"
    y = result.certificate.vector
    assert float((whole.t() @ y).min()) >= -1e-9


def test_bad_input():
    c, A, b = program("feasible")
    with pytest.raises(ValueError, match=r"A must be 8 by 14 .* got shape \(14, 8\)"):
        LinearProgram(c, A.T, b)
    with pytest.raises(ValueError, match="c must be a real tensor of 1 dimension, got shape"):
        LinearProgram(A, A, b)
    with pytest.raises(ValueError, match="A must be a real tensor of 2 dimensions, got a list"):
        LinearProgram(c, [[1.0]], b)
    with pytest.raises(ValueError, match="b must be finite"):
        LinearProgram(c, A, b * float("nan"))
    with pytest.raises(ValueError, match="of one dtype and on one device"):
        LinearProgram(c.float(), A, b)
    with pytest.raises(ValueError, match="an entry that is not zero"):
        LinearProgram(c, 0 * A, b)
    with pytest.raises(ValueError, match="x0 and y0 must have 14 and 8 entries"):
        LinearProgram(c, A, b, x0=b)


@BOTH
@pytest.mark.parametrize(("dtype", "entry"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_small_rows_and_entries_are_not_taken_for_zero(method, dtype, entry):
    def tensors(*parts):
        return [torch.tensor(part, dtype=dtype) for part in parts]

    programs = [tensors([1.0, 1.0], [[1.0, 1.0], [entry, -entry]], [1.0, entry]),  # x = (1, 0)
                tensors([-1.0, 0.0], [[entry, 1.0]], [1.0])]  # x = (1/entry, 0)
    for c, A, b in programs:
        assert fl.solve(LinearProgram(c, A, b), method, fl.Budget(steps=3_000), tol=1e-7, every=100).status != "failed"


@BOTH
@pytest.mark.parametrize(("dtype", "decades"), [(torch.float32, 3), (torch.float64, 6)])
def test_feasible_programs_with_badly_scaled_rows_are_not_called_infeasible(method, dtype, decades):
    for seed in range(15):
        generator = fl.Key(seed).fold("rows").generator()
        A = torch.randn(3, 6, dtype=dtype, generator=generator) * torch.logspace(-decades, decades, 3, dtype=dtype)[:, None]
        x, c = torch.rand(2, 6, dtype=dtype, generator=generator)
        result = fl.solve(LinearProgram(c, A, A @ x), method, fl.Budget(steps=600), tol=1e-5, every=100)
        assert result.status != "failed"


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_an_infeasible_block_is_found_beside_a_feasible_one_of_another_scale(method, scale):
    c, A, b = program("infeasible", 1)
    more, B, right = program("feasible", 2)
    problem = LinearProgram(torch.cat([c, more]), torch.block_diag(A, scale * B), torch.cat([b, scale * right]))
    result = fl.solve(problem, method, fl.Budget(steps=20_000), every=16)
    assert result.status == "failed" and result.certificate.kind == "primal infeasible"
