import math

import pytest
import torch

import fallline as fl
from fallline.equations import parallel_solve

ALL = pytest.mark.parametrize("method", ["jacobi", "gs", "jacobi_gs", "gs_jacobi"])
T = 23


def coupled(strength=1.0, seed=0):
    """s_t = sin(u_t + Σ_{i<t} W_ti s_i), and its solution in order."""
    generator = fl.Key(seed).generator()
    W = strength * torch.randn(T, T, dtype=torch.float64, generator=generator).tril(-1)
    u = torch.randn(T, dtype=torch.float64, generator=generator)
    s = torch.zeros(T, dtype=torch.float64)
    for t in range(T):
        s[t] = torch.sin(u + (W * s).sum(1))[t]
    return (lambda s, where: torch.sin(u + (W * s).sum(1))[where]), s


@ALL
@pytest.mark.parametrize("block", [None, 1, 4, 23, 40])
@pytest.mark.parametrize("strength", [0.05, 1.0, 5.0])
def test_every_method_gives_the_ordinary_result_bit_for_bit(method, block, strength):
    h, expected = coupled(strength)
    result = parallel_solve(h, torch.zeros(T, dtype=torch.float64), method, block=block)
    assert torch.equal(result.x, expected) and result.success


def test_the_first_k_states_are_exact_after_k_rounds():
    h, expected = coupled(5.0)
    s = torch.zeros(T, dtype=torch.float64)
    for k in range(1, T + 1):
        s = h(s, slice(None))
        assert torch.equal(s[:k], expected[:k])
    assert parallel_solve(h, torch.zeros(T, dtype=torch.float64)).nit <= T


def test_what_a_method_costs():
    h, _ = coupled(5.0)
    zeros = torch.zeros(T, dtype=torch.float64)
    jacobi, gs, blocks, sweeps = (parallel_solve(h, zeros, m, block=6) for m in ("jacobi", "gs", "jacobi_gs", "gs_jacobi"))
    assert jacobi.counts["width"] == T and jacobi.counts["states"] == T * jacobi.nit
    assert gs.counts == {"rounds": T, "states": T, "width": 1}
    assert blocks.counts["width"] == 6 and blocks.nit <= T
    assert sweeps.counts["sweeps"] <= 4 and sweeps.nit == 6 * sweeps.counts["sweeps"] and sweeps.counts["width"] == 4


def test_a_tolerance_ends_earlier_and_is_said():
    h, expected = coupled(0.1)
    exact, rough = (parallel_solve(h, torch.zeros(T, dtype=torch.float64), tol=tol) for tol in (0.0, 1e-3))
    assert rough.nit < exact.nit <= T and rough.gap <= 1e-3 and "changed by more than 0.001" in rough.message
    torch.testing.assert_close(rough.x, expected, atol=1e-2, rtol=0)


def test_a_good_guess_saves_rounds():
    h, expected = coupled(5.0)
    assert parallel_solve(h, expected).nit == 1


def test_tokens_and_lists_are_states_too():
    tokens = torch.tensor([3, 1, 2, 2, 0, 4])
    h = lambda s, where: ((s.cumsum(0) - s) % 5 + tokens)[where] % 5
    expected = parallel_solve(h, torch.zeros(6, dtype=torch.long), "gs").x
    assert torch.equal(parallel_solve(h, torch.zeros(6, dtype=torch.long)).x, expected) and expected.dtype == torch.long
    shapes = [torch.zeros(2), torch.zeros(3, 1), torch.zeros(1)]
    f = [lambda s: torch.ones(2), lambda s: s[0].sum() * torch.ones(3, 1), lambda s: s[1].sum()[None] + s[0][:1]]
    for method in ("jacobi", "gs", "jacobi_gs", "gs_jacobi"):
        found = parallel_solve(lambda s, where: [f[t](s) for t in range(3)[where]], shapes, method).x
        assert [float(s.sum()) for s in found] == [2, 6, 7] and float(shapes[0].sum()) == 0


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_equations_that_use_later_states_are_an_error(offset):
    h = lambda s, where: torch.tanh(torch.roll(s, -offset) * 0.3 + 0.1)[where]
    with pytest.raises(ValueError, match="must use earlier states only"):
        parallel_solve(h, torch.zeros(T))


def test_random_equations_are_an_error():
    with pytest.raises(ValueError, match="differs between two evaluations"):
        parallel_solve(lambda s, where: torch.rand(len(s))[where], torch.zeros(T))


def test_bad_input():
    h, _ = coupled()
    zeros = torch.zeros(T, dtype=torch.float64)
    with pytest.raises(ValueError, match="method must be one of 'jacobi'"):
        parallel_solve(h, zeros, "sor")
    with pytest.raises(ValueError, match="block must be a whole number"):
        parallel_solve(h, zeros, block=0)
    with pytest.raises(ValueError, match="tol must be 0 for whole numbers"):
        parallel_solve(h, torch.zeros(T, dtype=torch.long), tol=0.5)
    with pytest.raises(ValueError, match="at least one state"):
        parallel_solve(h, torch.zeros(0))
    with pytest.raises(TypeError, match="init must be a tensor"):
        parallel_solve(h, 3)
    with pytest.raises(ValueError, match="h must return the states"):
        parallel_solve(lambda s, where: h(s, slice(None))[:2], zeros, check=False)
    blown = parallel_solve(lambda s, where: (torch.cat([s.new_ones(1), s[:-1] * 1e200]))[where], torch.zeros(T, dtype=torch.float64))
    assert blown.status == "nonfinite" and not math.isfinite(float(blown.x.sum()))


def test_a_transient_nan_ends_no_iteration():
    one = torch.ones((), dtype=torch.float64)
    equations = [lambda s: one, lambda s: 5 * s[0] / s[0], lambda s: torch.nan_to_num(s[1]), lambda s: s[2] + 1]  # 0/0 at first
    zeros = torch.zeros(4, dtype=torch.float64)
    for h, init in ((lambda s, where: [equation(s) for equation in equations[where]], list(zeros)),
                    (lambda s, where: torch.stack([equation(s) for equation in equations])[where], zeros)):
        for method in ("jacobi", "gs", "jacobi_gs", "gs_jacobi"):
            result = parallel_solve(h, init, method, block=2, check=False)
            assert result.success and [float(s) for s in result.x] == [1, 5, 5, 6]


@pytest.mark.parametrize("method", ["jacobi", "jacobi_gs"])
def test_a_tolerance_promises_no_residual(method):
    """Of s_t = 100 s_{t−1} + 0.001 a round changes the first state by 0.001, and the next one would be wrong by 0.1."""

    def h(s, where):
        return (0.001 + 100 * torch.cat([s.new_zeros(1), s[:-1]]))[where]

    result = parallel_solve(h, torch.zeros(4, dtype=torch.float64), method, block=2, tol=0.01)
    assert "every equation" not in result.message and "no state changed by more than 0.01 in its last round" in result.message
    assert "every equation holds after 4 rounds" in parallel_solve(h, result.x, "gs", tol=0.01).message
