"""Swaps in an order: regressions and scores against other solvers, the rule of a round, ends, data, bad input."""

import itertools

import numpy as np
import pandas
import pytest
import torch
from sklearn.linear_model import Lasso, LogisticRegression

import fallline as fl
from fallline.graphs import (
    LeastSquaresScore,
    LogisticScore,
    Score,
    StructureLearning,
    TopologicalSwaps,
    TopoSwap,
    erdos_renyi,
    h,
)

SCORES = [LeastSquaresScore(), LeastSquaresScore(0.1), LogisticScore(0.02)]


def data(d=6, n=300, seed=0, binary=False):
    X = erdos_renyi(d, min(2 * d, d * (d - 1) // 2), seed).sample(n, seed)
    return (X.median(0).values < X).double() if binary else X


def problem_of(score, **options):
    return StructureLearning(data(binary=isinstance(score, LogisticScore)), score, **options)


def fitted_alone(score, X, order):
    """W of an order, node by node, with another library."""
    W = np.zeros((X.shape[1], X.shape[1]))
    for place, node in enumerate(order[1:], 1):
        before, x = X[:, order[:place]], X[:, node]
        if isinstance(score, LogisticScore):
            if 0 < x.mean() < 1:
                model = LogisticRegression(C=1 / (score.lam * len(X)), l1_ratio=1.0, solver="saga", fit_intercept=False, tol=1e-10,
                                           max_iter=100_000)
                W[order[:place], node] = model.fit(before, x).coef_[0]
        elif score.lam:
            W[order[:place], node] = Lasso(alpha=score.lam, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(before, x).coef_
        else:
            W[order[:place], node] = np.linalg.lstsq(before, x, rcond=None)[0]
    return W


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_an_order_is_fitted_as_other_libraries_fit_its_nodes(score):
    problem = problem_of(score)
    X = data(binary=isinstance(score, LogisticScore))
    centred = X if isinstance(score, LogisticScore) else X - X.mean(0)
    order = [3, 0, 5, 1, 4, 2]
    W, losses = score.fit_order(problem.data, torch.tensor(order), torch.zeros_like(problem.x0))
    torch.testing.assert_close(W, torch.tensor(fitted_alone(score, centred.numpy(), order)), atol=1e-6, rtol=1e-6)
    assert float(losses.sum()) == pytest.approx(float(problem.value(W)), rel=1e-8)


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_values_and_gradients_are_those_of_the_formulas(score):
    problem = problem_of(score)
    X = data(binary=isinstance(score, LogisticScore))
    W = (0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    if isinstance(score, LogisticScore):
        m = X @ W
        loss = (torch.log(1 + torch.exp(m)) - X * m).sum() / len(X)
    else:
        centred = X - X.mean(0)
        loss = ((centred - centred @ W) ** 2).sum() / (2 * len(X))
    (gradient,) = torch.autograd.grad(loss, W)
    torch.testing.assert_close(problem.smooth.gradient(W.detach()), gradient)
    assert float(problem.value(W.detach())) == pytest.approx((loss + score.lam * W.abs().sum()).item(), rel=1e-12)


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_scores_of_swapped_orders_are_those_of_fitting_them_anew(score):
    problem = problem_of(score)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    W, losses = score.fit_order(problem.data, order, torch.zeros_like(problem.x0))
    spans = torch.tensor([[0, 1], [1, 4], [0, 5], [2, 3]])
    orders = order.repeat(4, 1)
    for row, (a, b) in zip(orders, spans.tolist(), strict=True):
        row[[a, b]] = row[[b, a]]
    found = score.order_scores(problem.data, orders, spans, W, losses)
    anew = [float(score.fit_order(problem.data, each, torch.zeros_like(W))[1].sum()) for each in orders]
    assert found.tolist() == pytest.approx(anew, rel=1e-7)
    assert score.count_regressions(spans) == 2 + 4 + 6 + 2


def test_candidates_are_the_pairs_with_the_least_weight_of_walks():
    problem = problem_of(LeastSquaresScore(), order=[3, 0, 5, 1, 4, 2])
    method = TopologicalSwaps(small=3, large=15)
    state = method.init(problem, fl.Key(0))
    W, order = state["W"], state["order"].tolist()
    slope = torch.linalg.inv(torch.eye(6, dtype=torch.float64) - W.abs()).T
    places = [tuple(pair) for pair in method.candidates(problem, state).tolist()]
    assert sorted(places) == list(itertools.combinations(range(6), 2))
    walks = [float(slope[order[late], order[early]]) for early, late in places]
    assert walks == sorted(walks)
    V = W.abs().requires_grad_()
    (gradient,) = torch.autograd.grad(-torch.linalg.slogdet(torch.eye(6, dtype=torch.float64) - V)[1], V)
    torch.testing.assert_close(gradient, slope)


def test_ties_are_cut_by_the_slope_of_the_score():
    problem = problem_of(LeastSquaresScore(100.0), order=[3, 0, 5, 1, 4, 2])  # all weights are 0, no walk leads anywhere
    state = TopologicalSwaps().init(problem, fl.Key(0))
    assert float(state["W"].abs().max()) == 0
    slopes = [abs(float(problem.data[state["order"][a], state["order"][b]]))
              for a, b in TopologicalSwaps().candidates(problem, state).tolist()]
    assert slopes == sorted(slopes, reverse=True)


def swapped(order, a, b):
    order = list(order)
    order[a], order[b] = order[b], order[a]
    return order


@pytest.mark.parametrize("seed", range(4))
def test_a_round_applies_disjoint_improving_swaps_in_order_of_score(seed):
    problem = StructureLearning(data(9, seed=seed), order=torch.randperm(9, generator=torch.Generator().manual_seed(seed)))
    method = TopologicalSwaps()
    state = method.init(problem, fl.Key(0))
    order = state["order"].tolist()
    zero = torch.zeros_like(problem.x0)
    total = lambda order: float(problem.score.fit_order(problem.data, torch.tensor(order), zero)[1].sum())
    pairs = sorted(itertools.combinations(range(9), 2), key=lambda pair: total(swapped(order, *pair)))
    before, expected, used = total(order), list(order), set()
    for a, b in pairs:
        if total(swapped(order, a, b)) < before - 1e-9 and not used & set(range(a, b + 1)):
            used |= set(range(a, b + 1))
            expected = swapped(expected, a, b)
    state = method.step(problem, state)
    assert state["order"].tolist() == expected and float(state["losses"].sum()) < before


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_it_ends_where_no_swap_lowers_the_score_and_falls_until_then(score):
    problem = problem_of(score)
    result = fl.solve(problem, TopologicalSwaps())
    values = [row["value"] for row in result.trace]
    assert result.success and all(b < a for a, b in itertools.pairwise(values[:-1])) and "lowers the score" in result.message
    order, zero = result.certificate["order"], torch.zeros_like(problem.x0)
    for a, b in itertools.combinations(range(6), 2):
        other = float(score.fit_order(problem.data, torch.tensor(swapped(order, a, b)), zero)[1].sum())
        assert other >= result.fun - 1e-6 * abs(result.fun)
    assert result.fun == pytest.approx(float(problem.value(result.x)), rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_graph_with_equal_variances(seed):
    true = erdos_renyi(10, 20, seed)
    learner = TopoSwap()
    dag = learner.fit(true.sample(1000, seed), key=seed)
    assert dag.threshold(0.3).compare(true)["shd"] == 0
    assert float((dag.noise - 1).abs().max()) < 0.1 and learner.order_ == dag.result.certificate["order"]
    assert torch.equal(learner.W_, dag.weights) and "10 nodes" in repr(learner.dag_)


def test_large_sets_are_looked_at_only_as_often_as_allowed():
    X = data(9, seed=1)
    few, more, all_at_once = (fl.solve(StructureLearning(X), method) for method in (
        TopologicalSwaps(small=1, large=36, large_tries=0), TopologicalSwaps(small=1, large=36), TopologicalSwaps(small=36, large=36)))
    assert few.fun > more.fun >= all_at_once.fun - 1e-9 and few.nit < more.nit


def test_refining_starts_from_the_order_of_the_graph_and_never_does_worse():
    true = erdos_renyi(8, 16, 5)
    X = true.sample(200, 1)
    worse = erdos_renyi(8, 16, 6)
    learner = TopoSwap()
    refined = learner.refine(worse, X)
    start = learner.result_.trace[0]["value"]
    assert start <= worse.score(X) and refined.score(X) <= start
    assert TopoSwap().refine(true.weights, X).score(X) <= true.score(X)
    with pytest.raises(ValueError, match=r"no cycle.*to_dag"):
        TopoSwap().refine(true.weights + true.weights.T, X)


def test_runs_go_on_from_checkpoints_and_depend_on_the_key_alone(tmp_path):
    X = data(9, seed=2)
    whole = fl.solve(StructureLearning(X), TopologicalSwaps(), key=4)
    fl.solve(StructureLearning(X), TopologicalSwaps(), fl.Budget(steps=2), key=4, checkpoint=tmp_path / "c")
    rest = fl.solve(StructureLearning(X), TopologicalSwaps(), key=4, checkpoint=tmp_path / "c")
    assert torch.equal(whole.x, rest.x) and whole.nit == rest.nit and whole.counts == rest.counts
    short = TopoSwap()
    with pytest.warns(UserWarning, match="has not converged"):
        short.fit(X, budget=fl.Budget(regressions=10))
    assert short.result_.status == "budget" and short.result_.counts["regressions"] >= 10


def test_frames_keep_their_names_and_orders_may_use_them():
    frame = pandas.DataFrame(data(3, 100).numpy(), columns=["rain", "wet", "mud"])
    learner = TopoSwap()
    dag = learner.fit(frame, order=["wet", "mud", "rain"])
    assert dag.names == ("rain", "wet", "mud") and learner.result_.trace[0]["value"] == pytest.approx(
        float(start_of(frame, [1, 2, 0])), rel=1e-9)
    assert TopoSwap().fit(data(3, 100).float()).weights.dtype == torch.float32
    assert TopoSwap().fit(data(3, 100).tolist()).weights.dtype == torch.float64


def start_of(X, order):
    problem = StructureLearning(X)
    return problem.score.fit_order(problem.data, torch.tensor(order), problem.x0)[1].sum()


@pytest.mark.parametrize(("order", "said"), [([0, 1, 1, 3, 4, 5], "repeats 1"), ([0, 1, 2], "each of the 6 nodes once"),
                                             (["0", "1", "2", "3", "4", "x"], "once"), ([1, 2, 3, 4, 5, 6], "once")])
def test_orders_that_repeat_or_miss_a_node_are_refused(order, said):
    with pytest.raises(ValueError, match=said):
        TopoSwap().fit(data(), order=order)


def test_bad_data_and_settings_are_refused_at_the_door():
    X = data()
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        StructureLearning(X[0])
    with pytest.raises(ValueError, match="NaN"):
        StructureLearning(torch.where(X > 1, torch.nan, X))
    X[:, 2] = 7
    with pytest.raises(ValueError, match="vary in every column, and 2 does not"):
        StructureLearning(X)
    with pytest.raises(ValueError, match="zeros and ones"):
        StructureLearning(data(), LogisticScore())
    with pytest.raises(TypeError, match="score must be a Score"):
        StructureLearning(data(), "least squares")
    with pytest.raises(ValueError, match="lam must be"):
        LeastSquaresScore(-1.0)
    with pytest.raises(TypeError, match="NodewiseScore"):
        TopoSwap(Score()).fit(data())
    with pytest.raises(ValueError, match="large must be at least small"):
        TopologicalSwaps(small=10, large=5)
    with pytest.raises(ValueError, match="large_tries"):
        TopologicalSwaps(large_tries=-1)
    with pytest.raises(fl.core.errors.WrongProblem, match="structure"):
        fl.solve(fl.Smooth(lambda x: (x**2).sum(), torch.ones(2)), TopologicalSwaps())


def test_collinear_columns_and_few_rows_have_answers():
    X = data(4, 200)
    X = torch.cat([X, X[:, :1] + X[:, 1:2]], dim=1)
    dag = TopoSwap().fit(X)
    assert bool(torch.isfinite(dag.weights).all()) and dag.score(X) < 4 / 2
    few = data(5, 4)
    with pytest.warns(UserWarning, match="4 rows for 5 nodes"):
        TopoSwap().fit(few)
    assert TopoSwap(LeastSquaresScore(0.1)).fit(few).weights.isfinite().all()


def test_the_function_of_cycles_is_0_without_and_refuses_what_it_is_not_defined_for():
    dag = erdos_renyi(6, 10, 0)
    assert float(h(dag.weights)) == pytest.approx(0, abs=1e-12)
    W = torch.tensor([[0.0, 0.5], [-0.6, 0.0]], dtype=torch.float64)
    assert float(h(W)) == pytest.approx(-np.log(1 - 0.3))
    with pytest.raises(ValueError, match=r"spectral radius of \|W\| below 1 for h, got 1\.1"):
        h(2 * W)


@pytest.mark.parametrize(("settings", "tried"), [({"small": 6, "large_tries": 0}, 6), ({"small": 6, "large_tries": 99}, 66)])
def test_the_message_counts_the_swaps_that_were_tried(settings, tried):
    result = fl.solve(StructureLearning(data(12), LeastSquaresScore()), TopologicalSwaps(**settings), fl.Budget(steps=1_000))
    assert result.success and f"none of the {tried} likeliest swaps" in result.message
