import math

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.core.errors import MissingOracle, NonFiniteError, WrongProblem
from fallline.core.sets import Birkhoff, Box, L1Ball, L2Ball, NuclearBall, Simplex
from fallline.solvers import AwayFrankWolfe, FrankWolfe
from fallline.solvers.segment_steps import BacktrackingStep, LineSearchStep, OpenLoopStep, Segment

METHODS = [FrankWolfe(), FrankWolfe("backtracking"), FrankWolfe("line_search"), AwayFrankWolfe(), AwayFrankWolfe("line_search")]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=fl.Key(seed).generator())


def recovery(rows=30, d=12):
    """Poisson deviance Σ (Wx)_i − b_i log (Wx)_i with a sparse W: infinite at every vertex of the simplex."""
    W = draw(rows, d).abs() * (torch.rand(rows, d, generator=fl.Key(1).generator()) < 0.3)
    W[:, 0] += 0.1 * (W.sum(1) == 0)
    b = W @ torch.softmax(draw(d, seed=2), 0) + 0.01
    fun = lambda x: torch.where(W @ x > 0, W @ x - b * torch.log(W @ x), torch.inf).sum()
    x0 = torch.full((d,), 1 / d, dtype=torch.float64)
    return fl.Constrained(fl.Smooth(fun, x0, gradient=lambda x: W.T @ (1 - b / (W @ x))), Simplex()), W.numpy(), b.numpy()


def face(d=6):
    """A quadratic over the simplex whose minimiser has two zero coordinates."""
    A = draw(d, d)
    target = torch.tensor([0.4, 0.3, 0.2, 0.3, -0.1, -0.1], dtype=torch.float64)
    quadratic = fl.Smooth(lambda x: ((A @ (x - target)) ** 2).sum() / 2, torch.full((d,), 1 / d, dtype=torch.float64))
    return fl.Constrained(quadratic, Simplex())


def test_the_monotone_step_is_its_formula():
    problem, W, b = recovery()
    x, skipped = problem.x0.numpy(), 0

    def f(x):
        with np.errstate(divide="ignore", invalid="ignore"):
            value = (W @ x - b * np.log(W @ x)).sum()
        return value if np.isfinite(value) else np.inf

    for t in range(60):
        g = W.T @ (1 - b / (W @ x))
        v = np.eye(len(x))[g.argmin()]
        y = x + 2 / (t + 2) * (v - x)
        skipped += f(y) > f(x)
        x = y if f(y) <= f(x) else x
    g = W.T @ (1 - b / (W @ x))
    result = fl.solve(problem, FrankWolfe(), fl.Budget(steps=60))
    np.testing.assert_allclose(result.x, x, rtol=1e-10)
    assert result.fun == pytest.approx(f(x), rel=1e-13) and result.gap == pytest.approx(g @ x - g.min(), rel=1e-9)
    assert 5 < skipped < 55  # both branches were met
    assert result.counts["values"] == 61 and result.counts["gradients"] == result.counts["linear_minimizations"] == 61 - skipped


def test_the_open_loop_discards_x0_and_leaves_the_domain():
    problem, *_ = recovery()
    result = fl.solve(problem, FrankWolfe("open_loop"), fl.Budget(steps=5))
    assert result.status == "nonfinite" and "outside the domain of f" in result.message
    assert torch.equal(result.x, problem.x0)
    moved = fl.solve(face(), FrankWolfe(OpenLoopStep()), fl.Budget(steps=1)).x
    assert sorted(moved.tolist()) == [0, 0, 0, 0, 0, 1] and math.isfinite(float(face().value(moved)))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_gap_bounds_the_distance_to_the_minimum_and_values_never_rise(method):
    problem, *_ = recovery()
    best = fl.solve(problem, AwayFrankWolfe(), fl.Budget(steps=2_000), tol=1e-6)
    assert best.success
    rows = fl.solve(problem, method, fl.Budget(steps=200)).trace
    values, gaps = (np.array([row[name] for row in rows]) for name in ("value", "gap"))
    assert (values - best.fun <= gaps).all() and (np.diff(values) <= 1e-13 * abs(best.fun)).all()
    assert gaps.min() < 0.05 * gaps[0]


def test_a_backtracking_step_is_its_formula():
    problem = face()
    x = problem.x0
    g = problem.gradient(x)
    v = torch.eye(6, dtype=x.dtype)[g.argmin()]
    d, gap, L = v - x, float(g @ (x - v)), 0.9 * 0.01
    trials = 0
    while True:
        gamma = min(1.0, gap / (L * float(d @ d)))
        trials += 1
        if problem.value(x + gamma * d) <= problem.value(x) - gamma * gap + gamma**2 * L * float(d @ d) / 2:
            break
        L *= 2
    result = fl.solve(problem, FrankWolfe(BacktrackingStep(L=0.01)), fl.Budget(steps=1))
    torch.testing.assert_close(result.x, x + gamma * d)
    assert trials > 1 and gamma < 1 and result.counts["values"] == trials + 1


def test_L_is_measured_first_and_handed_on():
    problem = face()
    method = FrankWolfe("backtracking")
    state = method.step(problem, method.init(problem, fl.Key(0)))
    d = state["vertex"]  # of the next step
    assert state["memory"] > 0 and problem.counts["gradients"] == 3
    after = method.step(problem, dict(state))
    ratio = after["memory"] / state["memory"]
    assert any(ratio == pytest.approx(0.9 * 2**k) for k in range(20)) and d.sum() == 1


def test_away_steps_follow_their_formula_and_drop_atoms():
    problem, method = face(), AwayFrankWolfe("line_search")
    state = method.init(problem, fl.Key(0))
    kinds = []
    for _ in range(25):
        x, g = state["x"], problem.gradient(state["x"])
        atoms = state["atoms"]
        gap, away = float(g @ x - g.min()), float((atoms @ g).max() - g @ x)
        worst = atoms[(atoms @ g).argmax()]
        state = method.step(problem, state)
        if state["failure"]:
            break
        d = x - worst if len(atoms) > 1 and away > gap else torch.eye(6, dtype=x.dtype)[g.argmin()] - x
        moved = state["x"] - x
        assert abs(float(moved @ d)) == pytest.approx(float(moved.norm() * d.norm()), rel=1e-6)  # along d
        assert float(moved @ d) >= 0
        dropped = len(state["atoms"]) < len(atoms)
        kinds.append("drop" if dropped and away > gap else "away" if away > gap and len(atoms) > 1 else "forward")
        torch.testing.assert_close(state["weights"] @ state["atoms"], state["x"])
        assert float(state["weights"].sum()) == pytest.approx(1, abs=1e-12) and bool((state["weights"] > 0).all())
        assert len(torch.unique(state["atoms"], dim=0)) == len(state["atoms"])
    assert {"drop", "away", "forward"} <= set(kinds)


def test_away_steps_converge_linearly_where_plain_ones_do_not():
    plain = fl.solve(face(), FrankWolfe("backtracking"), fl.Budget(steps=300))
    away = fl.solve(face(), AwayFrankWolfe(), fl.Budget(steps=300), tol=1e-12)
    assert away.success and plain.gap > 1e-4
    certificate = away.certificate
    torch.testing.assert_close(certificate.weights @ certificate.atoms, away.x)
    assert "f(x) − f* ≤" in repr(certificate) and "atoms" in repr(certificate)


def test_a_zero_step_waits_and_the_end_of_the_segment_is_reached():
    line = fl.Constrained(fl.Smooth(lambda x: x.sum(), torch.full((3,), 0.5, dtype=torch.float64)), Box(0.0, 1.0))
    for method in METHODS:
        result = fl.solve(line, method, fl.Budget(steps=30), tol=1e-9)
        assert result.success and float(result.x.abs().max()) == 0


@pytest.mark.parametrize("end", [1.0, 0.31, 0.3000001])
def test_golden_section_finds_the_minimum_inside_the_domain(end):
    calls = []

    def fun(x):
        calls.append(float(x))
        return torch.where(x < end, (x - 0.3) ** 2, torch.nan).sum()

    zero = torch.zeros(1, dtype=torch.float64)
    segment = Segment(fl.Smooth(fun, zero), lambda g: zero + g, zero + 1, 0.09, -0.6)
    gamma, value, *_ = LineSearchStep(tol=1e-6)(segment, 0, None)
    assert gamma == pytest.approx(0.3, abs=2e-6) and value == pytest.approx((gamma - 0.3) ** 2) and len(calls) < 60


def test_a_line_search_that_finds_nothing_says_so():
    wrong = fl.Smooth(lambda x: (x**2).sum(), torch.tensor([0.5, 0.5], dtype=torch.float64),
                      gradient=lambda x: torch.tensor([1.0, -1.0], dtype=x.dtype))
    result = fl.solve(fl.Constrained(wrong, Simplex()), FrankWolfe("line_search"), fl.Budget(steps=50))
    assert result.status == "failed" and "no lower value on the segment" in result.message and result.nit < 10


def test_matrices_of_bounded_nuclear_norm():
    target = draw(5, 4)
    quadratic = fl.Smooth(lambda X: ((X - target) ** 2).sum() / 2, torch.zeros(5, 4, dtype=torch.float64))
    problem = fl.Constrained(quadratic, NuclearBall(2.0))
    result = fl.solve(problem, FrankWolfe("line_search"), fl.Budget(steps=200))
    torch.testing.assert_close(result.x, NuclearBall(2.0).project(target), atol=0.05, rtol=0)
    assert float(torch.linalg.svdvals(result.x).sum()) <= 2 + 1e-12


def test_doubly_stochastic_matrices_and_their_permutations():
    n = 6
    hidden = torch.eye(n, dtype=torch.float64)[torch.tensor([2, 0, 1, 5, 3, 4])]
    uniform = torch.full((n, n), 1 / n, dtype=torch.float64)
    problem = fl.Constrained(fl.Smooth(lambda X: ((X - 0.7 * hidden - 0.3 / n) ** 2).sum(), uniform), Birkhoff())
    result = fl.solve(problem, AwayFrankWolfe(), fl.Budget(steps=200), tol=1e-10)
    assert result.success
    torch.testing.assert_close(result.x, 0.7 * hidden + 0.3 / n, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_nested_variables_and_float32(method):
    x0 = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    problem = fl.Constrained(fl.Smooth(lambda x: ((x["a"] - 2) ** 2).sum() + ((x["b"] - 0.25) ** 2).sum(), x0), Box(-1.0, 1.0))
    result = fl.solve(problem, method, fl.Budget(steps=200), tol=1e-3)
    torch.testing.assert_close(result.x["a"], torch.ones(3), atol=0.05, rtol=0)
    torch.testing.assert_close(result.x["b"], torch.full((2, 2), 0.25), atol=0.1, rtol=0)
    assert result.x["a"].dtype == torch.float32


class OnlyProjects:
    def project(self, x):
        return x

    def __repr__(self):
        return "OnlyProjects()"


def test_bad_input_is_refused_at_the_door():
    x0 = torch.full((4,), 0.25, dtype=torch.float64)
    smooth = fl.Smooth(lambda x: -torch.log(x).sum(), x0)

    def run(problem, method=None):
        fl.solve(problem, method or FrankWolfe(), fl.Budget(steps=1))

    with pytest.raises(ValueError, match=r"x0 must lie in Simplex\(2, dim=-1\), and does not"):
        run(fl.Constrained(smooth, Simplex(2.0)))
    edge = fl.Smooth(lambda x: -torch.log(x).sum(), torch.eye(4, dtype=torch.float64)[0])
    for method in METHODS[:-1]:
        with pytest.raises(NonFiniteError, match=r"x0 must lie in the domain of f, and f\(x0\) = inf"):
            run(fl.Constrained(edge, Simplex()), method)
    with pytest.raises(NonFiniteError, match="outside the domain of f"):
        run(fl.Constrained(edge, Simplex()), FrankWolfe("open_loop"))
    with pytest.raises(MissingOracle, match=r"FrankWolfe needs a set with linear_minimize\(g\), which OnlyProjects\(\) does not have"):
        run(fl.Constrained(smooth, OnlyProjects()))
    with pytest.raises(WrongProblem, match="equality or inequality"):
        run(fl.Constrained(smooth, Simplex(), equality=lambda x: x[:1]))
    with pytest.raises(WrongProblem, match="FrankWolfe solves constrained problems"):
        run(smooth)
    with pytest.raises(ValueError, match="step_size must be one of 'monotone', 'open_loop', 'backtracking', 'line_search'"):
        FrankWolfe("armijo")
    with pytest.raises(ValueError, match="step_size must be one of"):
        FrankWolfe(0.1)
    for bad in ({"L": 0.0}, {"decrease": 0.0}, {"increase": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            BacktrackingStep(**bad)
    with pytest.raises(ValueError, match="tol"):
        LineSearchStep(tol=0.0)


@pytest.mark.parametrize("set", [L1Ball(), L2Ball(dim=None), Simplex()], ids=repr)
def test_a_set_of_the_users_needs_an_oracle_alone(set):
    class Mine:
        def linear_minimize(self, g):
            return set.linear_minimize(g)

    start = set.linear_minimize(torch.ones(3, dtype=torch.float64))
    smooth = fl.Smooth(lambda x: ((x - torch.tensor([0.5, 0.2, 0.1], dtype=x.dtype)) ** 2).sum(), start)
    mine, theirs = (fl.solve(fl.Constrained(smooth, each), FrankWolfe(), fl.Budget(steps=20)).x for each in (Mine(), set))
    assert torch.equal(mine, theirs)
