"""Block coordinate descent: every combination against one written from the formulas, identification, sparse and dense, the door."""

import itertools
import math

import pytest
import torch

import fallline as fl
from fallline.core.blocks import SELECTIONS, Fixed, GaussSouthwell, NewtonUpdate, Variable, grid_combs, plan
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.sets import Box, Simplex
from fallline.core.terms import L1, MCP, GroupL2
from fallline.solvers import BlockCD, block_coordinate


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(loss="squared", n=30, d=11, ridge=0.05, sparse=False, x0=None):
    A = normal(n, d) * torch.logspace(-0.5, 0.5, d, dtype=torch.float64)
    if sparse:
        A = (A * (normal(n, d, seed=9) > 0.3)).to_sparse()
    y = normal(n, seed=1)
    return fl.LinearModel(A, y.sign() if loss == "logistic" else y, loss, ridge=ridge, x0=x0)


def run(problem, method, steps=1, **options):
    return fl.solve(problem, method, fl.Budget(steps=steps), **options)


def by_formula(problem, blocks, select, update, steps):
    """Greedy and cyclic descent with dense matrices, as the paper has it."""
    parts, x = problem.linear_model, problem.x0.clone()
    A, w = parts.A.to_dense(), parts.weights
    bound = parts.loss.largest_curvature * A.T @ (w[:, None] * A) + parts.ridge * torch.eye(A.shape[1], dtype=A.dtype)
    L = bound.diagonal()
    measures = {
        "gs": lambda b, g: g[b] @ g[b],
        "gsl": lambda b, g: g[b] @ g[b] / torch.linalg.eigvalsh(bound[b][:, b])[-1],
        "gsd": lambda b, g: (g[b] ** 2 / (len(b) * L[b])).sum(),
        "gsq": lambda b, g: g[b] @ torch.linalg.solve(bound[b][:, b], g[b]),
    }
    for t in range(steps):
        g = problem.gradient(x)
        best = t % len(blocks) if select == "cyclic" else int(torch.stack([measures[select](b, g) for b in blocks]).argmax())
        b = blocks[best]
        if update == "gradient":
            d, alpha = -g[b] / torch.linalg.eigvalsh(bound[b][:, b])[-1], 1.0
        else:
            H, alpha = problem.hessian(x) if update == "newton" else bound, 1.0
            d = -torch.linalg.solve(H[b][:, b], g[b])
            promised = 1e-4 * (g[b] @ d)
            moved = lambda alpha, b=b, d=d, x=x: x.index_add(0, torch.tensor(b), alpha * d)
            while update == "newton" and problem.value(moved(alpha)) > problem.value(x) + alpha * promised:
                alpha /= 2
        x = x.index_add(0, torch.tensor(b), alpha * d)
    return x


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("update", ["gradient", "matrix", "newton"])
@pytest.mark.parametrize("select", ["cyclic", "gs", "gsl", "gsd", "gsq"])
def test_fixed_blocks_are_the_formulas(select, update, loss, sparse):
    problem = linear(loss, sparse=sparse, x0=normal(11, seed=3))
    blocks = [[0, 5, 2], [1, 10, 3, 4], [9], [6, 7, 8]]
    found = run(problem, BlockCD(blocks, select, update), 15)
    torch.testing.assert_close(found.x, by_formula(problem, blocks, select, update, 15), rtol=1e-9, atol=1e-9)
    assert float(found.fun) == pytest.approx(float(problem.value(found.x)), rel=1e-12)
    assert found.counts["coordinates"] >= 15


def test_variable_blocks_are_the_largest_shares():
    problem = linear(x0=normal(11, seed=3))
    g, bound = problem.gradient(problem.x0), problem.hessian(problem.x0)
    for select, shares in (("gsd", g**2 / bound.diagonal()), ("gs", g**2)):
        b = shares.topk(4).indices
        expected = problem.x0.index_add(0, b, -torch.linalg.solve(bound[b][:, b], g[b]))
        torch.testing.assert_close(run(problem, BlockCD(Variable(4), select, "matrix")).x, expected)


def test_random_blocks_are_uniform_and_replay():
    problem = linear()
    moved = torch.zeros(11)
    for key in range(60):
        moved += (run(problem, BlockCD(Variable(3), "random", "matrix"), key=key).x != problem.x0).float()
        one = run(problem, BlockCD(4, "random", "matrix"), key=key)
        assert int((one.x != problem.x0).sum()) in (3, 4)
    assert float(moved.sum()) == 180 and float(moved.min()) >= 4 and float(moved.max()) <= 30


@pytest.mark.parametrize("update", ["gradient", "newton", "exact"])
@pytest.mark.parametrize("blocks, select", [(3, "cyclic"), (3, "gsl"), (3, "gsd"), (Variable(3), "gsd"), (Variable(3), "gs")])
def test_any_smooth_problem_in_any_nesting(blocks, select, update):
    scale = torch.linspace(1, 3, 7, dtype=torch.float64)
    start = {"a": torch.ones(2, 2, dtype=torch.float64), "b": torch.full((3,), 2.0, dtype=torch.float64)}
    flat = lambda x: torch.cat([x["a"].reshape(-1), x["b"]])
    problem = fl.Smooth(lambda x: torch.log(torch.cosh(scale * flat(x)) + 1).sum() + x["a"].sum() ** 2, start)
    result = run(problem, BlockCD(blocks, select, update), 1_000, tol=1e-9)
    assert result.success and result.x["a"].shape == (2, 2)
    assert max(float(problem.gradient(result.x)[name].abs().max()) for name in "ab") < 1e-8


def test_doubling_starts_at_one_and_is_remembered_by_block():
    problem = fl.Smooth(lambda x: 2.5 * x[0] ** 2 + 0.1 * x[1] ** 2, torch.ones(2, dtype=torch.float64))
    method = BlockCD(1, "cyclic", "gradient")
    state = method.step(problem, method.init(problem, fl.Key()))
    assert state["L"].tolist() == [8.0, 1.0]  # 1, 2, 4, 8 ≥ 5
    assert state["x"].tolist() == pytest.approx([1 - 5 / 8, 1.0])


def test_an_exact_update_solves_its_block():
    problem = linear("logistic", x0=normal(11, seed=3))
    x = run(problem, BlockCD([list(range(6)), list(range(6, 11))], "cyclic", "exact")).x
    assert float(problem.gradient(x)[:6].abs().max()) < 1e-9 < float(problem.gradient(x)[6:].abs().max())


@pytest.mark.parametrize("update", ["newton", "exact"])
def test_a_flat_curvature_does_not_hold_a_block(update):
    far = torch.tensor([5.0, -4.0, 3.0], dtype=torch.float64)
    functions = [(lambda x: (x**4).sum() - x.sum(), torch.full_like(far, 0.25 ** (1 / 3))),
                 (lambda x: torch.nn.functional.huber_loss(x, far, reduction="sum"), far)]
    for f, solution in functions:
        for start in (torch.zeros_like(far), torch.tensor([0.0, 1e-3, 2.0], dtype=torch.float64)):
            result = fl.solve(fl.Smooth(f, start), BlockCD(update=update), fl.Budget(steps=60), tol=1e-8)
            assert result.success
            torch.testing.assert_close(result.x, solution)


def lattice(n, sparse):
    e = torch.arange(n * n).view(n, n)
    H = torch.zeros(n * n, n * n, dtype=torch.float64)
    for a, b in ((e[:, :-1], e[:, 1:]), (e[:-1], e[1:])):
        H[a.reshape(-1), b.reshape(-1)] = H[b.reshape(-1), a.reshape(-1)] = -1
    H.diagonal().copy_(-H.sum(1) + 0.1)
    return fl.Quadratic(H.to_sparse() if sparse else H, normal(n * n))


@pytest.mark.parametrize("sparse", [False, True])
def test_message_passing_solves_huge_blocks(sparse):
    problem = lattice(8, sparse)
    H, b = problem.quadratic.H.to_dense(), problem.quadratic.b
    combs = grid_combs(8, 8)
    x = run(problem, BlockCD(combs, "cyclic", "message")).x
    torch.testing.assert_close(x[combs[0]], torch.linalg.solve(H[combs[0]][:, combs[0]], b[combs[0]]))
    for blocks, select in ((combs, "cyclic"), ("forest", "cyclic"), ("forest", "gsd"), ("variable-forest", "gsd")):
        result = run(problem, BlockCD(blocks, select, "message"), 2_000, tol=1e-9)
        assert result.success
        torch.testing.assert_close(result.x, torch.linalg.solve(H, b), rtol=1e-8, atol=1e-8)


def test_message_passing_with_the_bound_of_a_sparse_linear_model():
    A = torch.eye(12, dtype=torch.float64) - torch.diag(torch.ones(11, dtype=torch.float64), 1)  # a chain
    for loss in ("squared", "logistic"):
        problem = fl.LinearModel(A.to_sparse(), normal(12).sign(), loss, ridge=0.01)
        result = run(problem, BlockCD("forest", "cyclic", "message"), 3_000, tol=1e-10)
        assert result.success and float(problem.gradient(result.x).abs().max()) < 1e-9


@pytest.mark.parametrize("measure", ["gs", "gsl", "gsd"])
def test_a_tournament_chooses_the_same_blocks(measure, monkeypatch):
    problem = lattice(7, True)
    whole = run(problem, BlockCD(3, measure, "matrix"), 60)
    monkeypatch.setattr(plan, "TOURNAMENT", 1)
    state = BlockCD(3, measure, "matrix").init(problem, fl.Key())
    assert state["tree"] is not None
    torch.testing.assert_close(run(problem, BlockCD(3, measure, "matrix"), 60).x, whole.x, rtol=1e-12, atol=1e-12)


def lasso(term=None, seed=0):
    A = normal(60, 40, seed=seed)
    truth = torch.zeros(40, dtype=torch.float64)
    truth[::8] = normal(5, seed=seed + 1).sign()
    return fl.Composite(fl.LinearModel(A, A @ truth + 0.1 * normal(60, seed=seed + 2)), term or L1(0.1))


@pytest.mark.parametrize("blocks, select", [(8, "gsd"), (8, "gs"), (8, "gsl"), (8, "cyclic"), (8, "random"), (Variable(10), "gsd"),
                                            (Variable(10), "gs"), (Variable(10), "random")])
@pytest.mark.parametrize("update", ["gradient", "matrix", "newton", "exact"])
@pytest.mark.parametrize("term", [L1(0.1), Box(-0.1, torch.linspace(0.2, 0.9, 40, dtype=torch.float64))])
def test_proximal_steps_reach_the_optimality_conditions(blocks, select, update, term):
    problem = lasso(term)
    result = run(problem, BlockCD(blocks, select, update), 3_000, tol=1e-11)
    assert result.success
    x, g = result.x, problem.smooth.gradient(result.x)
    torch.testing.assert_close(term.prox(x - g, 1.0), x, rtol=0, atol=1e-10)
    held = (x == 0) if isinstance(term, L1) else (x == term.low) | (x == term.high)
    assert torch.equal(result.certificate.active, held) and result.certificate.since <= result.nit
    assert "held, the same since step" in repr(result.certificate)


def test_proximal_newton_on_a_loss_that_is_not_quadratic():
    problem = fl.Composite(linear("logistic", n=60, d=20), L1(0.02))
    for blocks in (5, Variable(20)):
        result = run(problem, BlockCD(blocks, "gsd", "newton"), 2_000, tol=1e-12)
        assert result.success and 0 < int(result.certificate.active.sum()) < 20


def test_an_identified_support_is_solved_at_once():
    gaps = []
    note = lambda moment: gaps.append(float(moment.report.gap))
    result = run(lasso(L1(0.01)), BlockCD(Variable(28), "gsd", "newton"), 60, tol=1e-13, callback=note)
    assert result.success and result.nit <= result.certificate.since + 2 and len(gaps) >= 2


def test_the_gap_is_that_of_the_point_and_counts_are_in_gradients():
    problem = linear()
    greedy = run(problem, BlockCD(5, "gsd", "matrix"), 20)
    assert float(greedy.gap) == pytest.approx(float(problem.gradient(greedy.x).norm()), rel=1e-9)
    assert greedy.counts["gradients"] == 21
    cyclic = run(problem, BlockCD([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], "cyclic", "matrix"), 20)
    assert float(cyclic.gap) == pytest.approx(float(problem.gradient(cyclic.x).norm()), rel=1e-9)
    assert cyclic.counts["gradients"] == 1 + 10 + 10 and cyclic.counts["coordinates"] == 110


def test_rounding_is_cleared_from_what_is_kept(monkeypatch):
    monkeypatch.setattr(block_coordinate, "REFRESH", 10)
    problem = linear()
    method = BlockCD(5, "gsd", "matrix")
    state = method.init(problem, fl.Key())
    state["kept"]["z"] += 1e-3
    for _ in range(10):
        state = method.step(problem, state)
    torch.testing.assert_close(state["kept"]["z"], problem.linear_model.A @ state["x"], rtol=1e-14, atol=1e-14)


def test_columns_of_zeros_are_left_out():
    A = normal(20, 6)
    A[:, [1, 4]] = 0
    problem = fl.LinearModel(A, normal(20, seed=1), x0=torch.ones(6, dtype=torch.float64))
    for select, update in itertools.product(SELECTIONS, ("gradient", "matrix", "newton")):
        result = run(problem, BlockCD(2, select, update), 2_000, tol=1e-10)
        assert result.success and result.x[1] == result.x[4] == 1
    result = run(problem, BlockCD(1, "cyclic", "matrix"), 8)
    assert result.counts["coordinates"] == 8 and bool((result.x[[0, 2, 3, 5]] != 1).all())
    with_term = run(fl.Composite(problem, L1(0.01)), BlockCD(2, "gsd", "matrix"), 2_000, tol=1e-10)
    assert with_term.success and with_term.x[1] == with_term.x[4] == 0


def test_repeated_columns_have_no_unique_answer_and_still_converge():
    A = normal(20, 3).repeat(1, 2)
    for update in ("gradient", "matrix", "newton"):
        result = run(fl.LinearModel(A, normal(20, seed=1)), BlockCD(6, "gsd", update), 5_000, tol=1e-9)
        assert result.success and float(result.x.abs().max()) < 10


@pytest.mark.parametrize("update", ["matrix", "newton", "message"])
def test_an_indefinite_quadratic_fails_and_says_so(update):
    H = torch.diag(torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64))
    result = run(fl.Quadratic(H, torch.ones(3, dtype=torch.float64)), BlockCD(3, "gsd", update), 5)
    assert result.status == "failed" and "negative eigenvalue" in result.message and "unbounded" in result.message


@pytest.mark.parametrize("blocks", [3, Variable(3)])
def test_an_unbounded_quadratic_fails_and_says_so(blocks):
    H = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    result = run(fl.Quadratic(H, torch.ones(3, dtype=torch.float64)), BlockCD(blocks, "gsd"), 5)
    assert result.status == "failed" and "without bound" in result.message
    bounded = run(fl.Quadratic(H, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)), BlockCD(blocks, "gsd"), 5, tol=1e-12)
    assert bounded.success


def test_a_start_outside_the_bounds_is_brought_inside():
    problem = fl.Composite(fl.LinearModel(normal(9, 4), normal(9), x0=torch.full((4,), 5.0, dtype=torch.float64)), Box(0.0, 1.0))
    assert math.isfinite(float(BlockCD().report(problem, BlockCD().init(problem, fl.Key())).value))


@pytest.mark.parametrize("options, message", [
    ({"blocks": "all"}, "blocks must be"), ({"select": "best"}, "select must be"), ({"update": "bfgs"}, "update must be"),
    ({"blocks": 0}, "blocks"), ({"blocks": "variable", "select": "gsl"}, "combinatorial"),
    ({"blocks": "variable", "select": "cyclic"}, "variable"),
    ({"blocks": "variable-forest", "select": "cyclic"}, "forest"),
])
def test_settings_at_the_door(options, message):
    with pytest.raises(ValueError, match=message):
        BlockCD(**options)


def test_parts_check_themselves():
    with pytest.raises(ValueError, match="size"):
        Variable(0)
    with pytest.raises(ValueError, match="measure"):
        GaussSouthwell("gsx")
    with pytest.raises(ValueError, match="c1"):
        NewtonUpdate(c1=2.0)
    with pytest.raises(ValueError, match="overlap"):
        run(linear(), BlockCD(Fixed([[0, 1], [1, 2]])))


def test_problems_at_the_door():
    smooth = fl.Smooth(lambda x: (x**2).sum(), torch.ones(3, dtype=torch.float64))
    for options in ({"update": "matrix"}, {"select": "gsq"}, {"blocks": "forest"}):
        with pytest.raises(MissingOracle, match="Quadratic"):
            run(smooth, BlockCD(**options))
    for term, message in ((GroupL2(2, 0.1), "sum over variables"), (Simplex(), "sum over variables"), (MCP(0.1), "convex term")):
        with pytest.raises(WrongProblem, match=message):
            run(fl.Composite(linear(), term), BlockCD())
    for options in ({"select": "gsq"}, {"update": "message"}):
        with pytest.raises(WrongProblem, match="takes no term"):
            run(lasso(), BlockCD(**options))
    nested = fl.Composite(fl.Smooth(lambda x: (x["a"] ** 2).sum(), {"a": torch.ones(2, dtype=torch.float64)}), L1(0.1))
    with pytest.raises(WrongProblem, match="1-D tensor"):
        run(nested, BlockCD())
    with pytest.raises(ValueError, match="not a forest"):
        run(lattice(4, True), BlockCD(8, "cyclic", "message"))
