"""The Ornstein-Uhlenbeck solver: its mean over time, its covariance, its guard, its bill."""

import math

import pytest
import torch

from fallline.core import Counts
from fallline.core.operators import LinearOperator, OUSolver

Q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
VALUES = torch.logspace(-1, 1, 6, dtype=torch.float64)
A = Q @ torch.diag(VALUES) @ Q.T
B = torch.arange(1.0, 7.0, dtype=torch.float64)
X = torch.linalg.solve(A, B)


def solver(damp=0.0, **options):
    return OUSolver(LinearOperator.from_tensor(A), B, damp, **options)


@pytest.mark.parametrize("damp", [0.0, 0.5])
def test_the_mean_decays_as_the_exponential(damp):
    exact = torch.linalg.solve(A + damp * torch.eye(6), B)
    start = torch.ones(6, dtype=torch.float64)
    for t in (0.1, 1.0, 3.0):
        found = solver(damp, dt=1e-4).run(t, start)
        expected = exact + torch.linalg.matrix_exp(-(A + damp * torch.eye(6)) * t) @ (start - exact)
        torch.testing.assert_close(found.solution, expected, rtol=1e-3, atol=1e-3)
        assert found.analog_time == t and found.steps * found.dt == pytest.approx(t)
    torch.testing.assert_close(solver(damp).run(200.0).solution, exact)
    assert torch.equal(solver(damp).run(0.0, start).solution, start)


def test_a_run_in_two_parts_is_one_run():
    whole, half = solver(dt=0.05).run(2.0), solver(dt=0.05)
    middle = half.run(1.0)
    torch.testing.assert_close(half.run(1.0, middle.solution).solution, whole.solution)


def test_noise_has_the_stationary_covariance():
    ours = solver(dt=0.01, beta_inv=0.3)
    generator = torch.Generator().manual_seed(1)
    x, found = ours.run(40.0, generator=generator).solution, []
    for _ in range(1500):
        x = ours.run(1.0, x, generator=generator).solution
        found.append(x)
    covariance = torch.stack(found).T.cov()
    expected = 0.3 * torch.linalg.inv(A)
    assert float((covariance - expected).norm() / expected.norm()) < 0.2
    assert float((torch.stack(found).mean(0) - X).norm()) < 1.0


def test_the_average_is_that_of_the_run():
    by_hand, x = [], torch.zeros(6, dtype=torch.float64)
    ours = solver(dt=0.05)
    for _ in range(20):
        x = ours.run(0.05, x).solution
        by_hand.append(x)
    found = ours.run(1.0, average=True)
    torch.testing.assert_close(found.solution, torch.stack(by_hand).mean(0))
    torch.testing.assert_close(found.last, by_hand[-1])


def test_long_steps_are_shortened_to_where_no_mode_swings():
    ours = solver(dt=10.0)
    found = ours.run(5.0)
    assert found.dt == pytest.approx(0.1, rel=0.1) and ours.largest == pytest.approx(10.0, rel=0.1)
    assert found.matvecs == found.steps + 6
    assert ours.run(5.0).matvecs == found.steps


def test_products_are_counted_and_trees_and_functions_are_taken():
    counts = Counts()
    ours = OUSolver(LinearOperator.from_tensor(A, counts=counts), B)
    found = ours.run(1.0)
    assert counts["matvecs"] == found.matvecs
    b = {"a": B[:2], "b": B[2:].view(2, 2)}
    diagonal = {"a": VALUES[:2], "b": VALUES[2:].view(2, 2)}
    answer = OUSolver(lambda v: {n: diagonal[n] * v[n] for n in v}, b).run(300.0).solution
    torch.testing.assert_close(answer["b"], b["b"] / diagonal["b"])


def test_a_guard_that_ends_early_is_billed_for_what_it_took():
    counts = Counts()
    found = OUSolver(LinearOperator.from_tensor(2 * torch.eye(20), counts=counts), torch.ones(20)).run(1.0)
    assert counts["matvecs"] == found.matvecs < found.steps + 8


def test_noise_repeats_with_its_generator():
    one, two = (solver(beta_inv=1.0).run(1.0, generator=torch.Generator().manual_seed(3)).solution for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("act", "message"), [
    (lambda: solver(damp=-1.0), "damp must be"), (lambda: solver(dt=0.0), "dt must be"),
    (lambda: solver(beta_inv=math.nan), "beta_inv must be"), (lambda: solver().run(-1.0), "t must be"),
    (lambda: solver(beta_inv=1.0).run(1.0), "generator must be given"),
    (lambda: solver().run(1.0, generator=torch.Generator()), "generator must be given"),
    (lambda: solver().run(1.0, torch.ones(3)), "x0 must have 6"),
    (lambda: OUSolver(LinearOperator.from_tensor(A), torch.ones(3)), "b must have 6"),
    (lambda: OUSolver(LinearOperator.from_tensor(-A), B).run(1.0), "positive definite"),
    (lambda: OUSolver(LinearOperator.from_tensor(torch.ones(2, 3)), torch.ones(3)), "square")])
def test_bad_input_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_the_text():
    assert "steps=20" in repr(solver(dt=0.05).run(1.0)) and "damp=0.5" in repr(solver(0.5))
