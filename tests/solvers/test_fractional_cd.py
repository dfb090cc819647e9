"""Fractions by coordinate descent: one-dimensional problems against a fine grid, descent, signs, drift, the door."""

import itertools
import math

import pytest
import torch

import fallline as fl
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.fractional import AbsoluteSum, LargestSum, PiecewiseLinear, PositiveSum, SquareRootSum
from fallline.core.sets import Box, NonNegative, Simplex
from fallline.core.terms import L1, ElasticNet
from fallline.solvers import FractionalCD, fractional_cd


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix(m=14, n=6, sparse=False):
    G = normal(m, n, seed=5)
    G[:, 2] *= normal(m, seed=6) > 0.5
    return G.to_sparse() if sparse else G


DENOMINATORS = {
    "absolute": AbsoluteSum,
    "positive": PositiveSum,
    "largest": lambda G: LargestSum(G, 3),
    "maximum": LargestSum,
    "roots": lambda G: SquareRootSum(G.abs() if G.layout is torch.strided else G.to_dense().abs().to_sparse(), 30.0),
}
VALUES = {
    "absolute": lambda z: z.abs().sum(-1),
    "positive": lambda z: z.clamp(min=0).sum(-1),
    "largest": lambda z: z.abs().sort(-1).values[..., -3:].sum(-1),
    "maximum": lambda z: z.abs().amax(-1),
    "roots": lambda z: (z + 30).sqrt().sum(-1),
}
TERMS = {"none": None, "l1": L1(0.4), "net": ElasticNet(0.2, 0.5), "box": Box(-0.6, torch.linspace(0.3, 1.5, 6, dtype=torch.float64))}


def fraction(denominator, term=None, sparse=False, x0=None, constant=2.0):
    B = normal(8, 6, seed=2)
    start = normal(6, seed=4).clamp(-0.5, 0.2) if x0 is None else x0
    f = fl.Quadratic(B.T @ B + 2 * torch.eye(6, dtype=B.dtype), normal(6, seed=3), start)
    term = TERMS.get(term) if isinstance(term, str) else term
    return fl.Fractional(fl.Composite(f, term) if term else f, DENOMINATORS[denominator](matrix(sparse=sparse)), constant=constant)


@pytest.mark.parametrize("denominator", [name for name in DENOMINATORS if name != "roots"])
@pytest.mark.parametrize("sparse", [False, True])
def test_pieces_are_the_denominator_along_a_line(denominator, sparse):
    g, value, z, G = DENOMINATORS[denominator](matrix(sparse=sparse)), VALUES[denominator], normal(14, seed=8), matrix()
    eta = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    for i in range(6):
        rows, part = g.columns.part(torch.tensor([i]))
        pieces = g.pieces(z, rows, part[:, 0])
        of = torch.searchsorted(pieces.breaks, eta)
        torch.testing.assert_close(pieces.intercepts[of] + pieces.slopes[of] * eta, value(z + eta[:, None] * G[:, i]))
    torch.testing.assert_close(g.value(z), value(z))


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("variant", ["parametric", "fractional"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_is_the_global_minimum_along_its_coordinate(denominator, term, variant, sparse):
    problem, method = fraction(denominator, term, sparse), FractionalCD(variant, theta=0.1)
    state, G = method.init(problem, fl.Key()), problem.denominator.G.to_dense()
    h = TERMS[term]
    f = problem.numerator.smooth if h else problem.numerator
    for t in range(12):
        i = t % 6
        x, before = state["x"].clone(), method.report(problem, state).value
        state = method.step(problem, state)
        moved = float(state["x"][i] - x[i])
        others = torch.arange(6) != i
        assert torch.equal(state["x"][others], x[others]) and abs(moved) < 6
        eta = torch.cat([torch.linspace(-6, 6, 12_001, dtype=torch.float64), torch.tensor([moved], dtype=torch.float64)])
        points = x + eta[:, None] * torch.eye(6, dtype=torch.float64)[i]
        q = f.value(x) + 2 + eta * f.gradient(x)[i] + (f.quadratic.H[i, i] + 0.1) / 2 * eta**2
        q = q if h is None else q + h.entries(points).sum(1)
        below = VALUES[denominator](points @ G.T)
        objective = q / below if variant == "fractional" else q - before * below
        assert float(objective[-1]) <= float(objective.min()) + 1e-9
        after = method.report(problem, state).value
        assert float(after) <= float(before) - 0.1 * moved**2 / (2 * float(state["below"])) + 1e-12
        assert float(after) == pytest.approx(float(problem.value(state["x"])), rel=1e-12)


def test_minimisers_have_all_digits():
    x0 = normal(6, seed=9)
    for variant in ("parametric", "fractional"):
        for denominator in DENOMINATORS:
            problem = fraction(denominator, x0=x0)
            method = FractionalCD(variant, theta=0.0)
            result = fl.solve(problem, method, fl.Budget(steps=6_000), tol=1e-12)
            assert result.success
            for i in range(6):
                step = 1e-4 * torch.eye(6, dtype=torch.float64)[i]
                ends = [float(problem.value(result.x + sign * step)) for sign in (-1, 1)]
                assert min(ends) > result.fun


def test_a_kink_of_a_norm_is_no_trap_for_a_global_search():
    # ½x² + ½ over |x − 3| + |x| … along one line: the nearer stationary point is the worse one.
    f = fl.Quadratic(torch.eye(1, dtype=torch.float64), None, torch.tensor([0.9], dtype=torch.float64))
    problem = fl.Fractional(f, AbsoluteSum(torch.tensor([[1.0]], dtype=torch.float64)), constant=0.5)
    result = fl.solve(problem, FractionalCD(theta=0.0), fl.Budget(steps=40), tol=1e-12)
    assert abs(float(result.x)) == pytest.approx(1.0) and result.fun == pytest.approx(1.0)


@pytest.mark.parametrize("variant", ["parametric", "fractional"])
def test_concave_denominators_end_in_one_point(variant):
    G, ends = normal(20, 5).abs(), []
    for seed in range(5):
        f = fl.Composite(fl.Quadratic(torch.eye(5, dtype=torch.float64), None, 4 * normal(5, seed=seed).abs()), NonNegative())
        problem = fl.Fractional(f, SquareRootSum(G), constant=0.5)
        result = fl.solve(problem, FractionalCD(variant), fl.Budget(steps=4_000), tol=1e-10)
        assert result.success and bool((result.x >= 0).all())
        ends.append(result.fun)
    assert max(ends) - min(ends) < 1e-9


def test_random_coordinates_replay_and_descend():
    problem = fraction("absolute", "l1")
    one, two = (fl.solve(problem, FractionalCD(select="random"), fl.Budget(steps=600), key=3) for _ in range(2))
    assert torch.equal(one.x, two.x) and one.gap < 1e-3
    values = [row["value"] for row in one.trace]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(values))


def test_a_random_sweep_leaves_no_coordinate_out():
    """Draws with replacement would miss one now and then, and the gap would say nothing of it."""
    method, problem = FractionalCD(select="random"), fraction("absolute")
    state, orders = method.init(problem, fl.Key(0)), []
    for _ in range(5):
        moved = []
        for _ in range(6):
            before = state["x"].clone()
            state = method.step(problem, state)
            moved.append(int((state["x"] - before).abs().argmax()))
        orders.append(tuple(moved))
    assert all(sorted(order) == list(range(6)) for order in orders) and len(set(orders)) > 1


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_column_without_entries_moves_the_numerator_alone(denominator):
    G = matrix()
    G[:, 2] = 0
    ends = []
    for given in (G, G.to_sparse()):
        f = fl.Quadratic(torch.eye(6, dtype=torch.float64), normal(6, seed=3), normal(6, seed=4))
        problem = fl.Fractional(f, DENOMINATORS[denominator](given), constant=9.0)
        ends.append(fl.solve(problem, FractionalCD(), fl.Budget(steps=6_000), tol=1e-9).x)
        assert float(ends[-1][2]) == pytest.approx(float(normal(6, seed=3)[2]), rel=1e-5)
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(("scaled", "same"), [(0.5 * L1(0.8), L1(0.4)), (2 * (0.25 * ElasticNet(0.4, 1.0)), ElasticNet(0.2, 0.5)),
                                              (3 * TERMS["box"], TERMS["box"])])
def test_scaled_terms_are_terms(scaled, same):
    one, two = (fl.solve(fraction("absolute", term), FractionalCD(), fl.Budget(steps=60)) for term in (scaled, same))
    torch.testing.assert_close(one.x, two.x)


def test_drift_is_cleared_and_work_is_counted(monkeypatch):
    monkeypatch.setattr(fractional_cd, "REFRESH", 2)
    problem, method = fraction("absolute"), FractionalCD()
    state = method.init(problem, fl.Key())
    state["z"] += 1e-4
    for _ in range(12):
        state = method.step(problem, state)
    torch.testing.assert_close(state["z"], problem.denominator.G @ state["x"], rtol=1e-14, atol=1e-14)
    result = fl.solve(problem, method, fl.Budget(steps=18))
    assert result.counts == {"gradients": 1 + 3 + 1, "coordinates": 18}


def test_a_numerator_that_changes_sign_fails_and_says_so():
    one = torch.ones(2, dtype=torch.float64)
    f = fl.Quadratic(torch.eye(2, dtype=torch.float64), 3 * one, -one)
    problem = fl.Fractional(f, AbsoluteSum(torch.eye(2, dtype=torch.float64)))
    result = fl.solve(problem, FractionalCD(), fl.Budget(steps=50))
    assert result.status == "failed" and "numerator" in result.message and "constant" in result.message


def test_what_is_no_fraction():
    f, G = fl.Quadratic(torch.eye(2), None, torch.ones(2)), torch.eye(2)
    with pytest.raises(ValueError, match="denominator must be positive at x0"):
        fl.Fractional(fl.Quadratic(torch.eye(2)), AbsoluteSum(G))
    with pytest.raises(ValueError, match="denominator must be positive at x0, and is nan"):
        fl.Fractional(f, AbsoluteSum(G * math.nan))
    with pytest.raises(ValueError, match="numerator must not be negative"):
        fl.Fractional(f, AbsoluteSum(G), constant=-5.0)
    with pytest.raises(ValueError, match="2 columns"):
        fl.Fractional(fl.Quadratic(torch.eye(3), None, torch.ones(3)), AbsoluteSum(G))
    with pytest.raises(TypeError, match="Denominator"):
        fl.Fractional(f, lambda x: x.abs().sum())
    with pytest.raises(ValueError, match="at most the 2 rows"):
        LargestSum(G, 3)
    assert isinstance(AbsoluteSum(G), PiecewiseLinear) and "2 x 2" in repr(AbsoluteSum(G))
    assert float(SquareRootSum(G).value(torch.tensor([-2.0, 1.0]))) == -math.inf


def test_the_door():
    for options in ({"variant": "dinkelbach"}, {"select": "gsd"}, {"theta": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            FractionalCD(**options)
    smooth = fl.Smooth(lambda x: (x**2).sum() + 1, torch.ones(2))
    with pytest.raises(MissingOracle, match="curvature along coordinates"):
        fl.solve(fl.Fractional(smooth, AbsoluteSum(torch.eye(2))), FractionalCD(), fl.Budget(steps=1))
    with pytest.raises(WrongProblem, match="terms L1"):
        fl.solve(fl.Fractional(fl.Composite(fl.Quadratic(torch.eye(2), None, torch.ones(2) / 2), Simplex()), AbsoluteSum(torch.eye(2))),
                 FractionalCD(), fl.Budget(steps=1))
    flat = fl.Quadratic(torch.diag(torch.tensor([1.0, 0.0])), None, torch.ones(2))
    with pytest.raises(ValueError, match="theta must be positive"):
        fl.solve(fl.Fractional(flat, AbsoluteSum(torch.eye(2)), constant=1.0), FractionalCD(theta=0.0), fl.Budget(steps=1))
    with pytest.raises(WrongProblem, match="fractional"):
        fl.solve(smooth, FractionalCD(), fl.Budget(steps=1))
