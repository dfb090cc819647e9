import math

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.core.errors import WrongProblem
from fallline.core.linear_model import LinearModel
from fallline.core.terms import L1, L2, MCP, SCAD, ElasticNet, SkipFirst
from fallline.solvers import NonconvexAcceleratedGradient, NonconvexAG


def correlated(n=60, p=30, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    for j in range(1, p):
        X[:, j] = 0.5 * X[:, j - 1] + math.sqrt(0.75) * X[:, j]
    beta = np.zeros(p)
    beta[[2, 11, 20]] = [3.0, -2.0, 1.5]
    return X, X @ beta + noise * rng.standard_normal(n), beta


def soft(x, t):
    return np.sign(x) * np.maximum(np.abs(x) - t, 0)


def concave_slope(x, term):
    """q' of both penalties, from their definitions."""
    if isinstance(term, MCP):
        return np.where(np.abs(x) < term.gamma * term.weight, -x / term.gamma, -term.weight * np.sign(x))
    lam, a, size = term.weight, term.a, np.abs(x)
    return np.where(size <= lam, 0.0, np.sign(x) * np.where(size < a * lam, (lam - size) / (a - 1), -lam))


def reference(X, y, term, start, steps, restart=True):
    """The authors' iteration, after their package's first form: linear models, speed restarts."""
    n, lam = len(X), term.weight
    L = max(np.linalg.eigvalsh(X.T @ X / n)[-1], term.weak_convexity)
    x = ag = md = start
    alpha, old, speed, restarted, delta, restarts = 1.0, 1.0, 1.0, 0, 0.99 / L, 0
    for k in range(1, steps + 1):
        if restart and old > speed and k - restarted >= 3:
            alpha, restarted, restarts = 1.0, k, restarts + 1
        else:
            alpha = 2 / (1 + (1 + 4 / alpha**2) ** 0.5)
        omega, before = delta / alpha, md
        md = (1 - alpha) * ag + alpha * x
        old, speed = speed, np.linalg.norm(md - before)
        g = X.T @ (X @ md - y) / n + concave_slope(md, term)
        x, ag = soft(x - omega * g, omega * lam), soft(md - delta * g, delta * lam)
    return ag, np.linalg.norm(md - ag) / delta, restarts


@pytest.mark.parametrize("term", [SCAD(0.4), MCP(0.4, 2.0), SCAD(1.5, 2.05), MCP(1.5, 1.05)], ids=repr)
@pytest.mark.parametrize("restart", [True, False])
def test_iterates_are_those_of_the_authors_formulas(term, restart):
    X, y, _ = correlated()
    start = X.T @ y / (X**2).sum(0)
    expected, gap, restarts = reference(X, y, term, start, 25, restart)
    problem = fl.Composite(LinearModel(torch.tensor(X), torch.tensor(y), x0=torch.tensor(start)), term)
    result = fl.solve(problem, NonconvexAcceleratedGradient(restart=restart), fl.Budget(steps=25))
    np.testing.assert_allclose(result.x, expected, rtol=1e-5, atol=1e-7)
    assert result.gap == pytest.approx(gap, rel=1e-4, abs=1e-8) and restarts >= restart
    assert result.counts == {"gradients": 25, "samples": 25 * len(X)}


def test_the_concave_part_bounds_the_step_where_the_loss_is_flat():
    loss = fl.Smooth(lambda x: (x**2).sum() / 200, torch.tensor([1.0], dtype=torch.float64), facts={"L": 0.01})
    problem, method = fl.Composite(loss, MCP(0.5, gamma=1.25)), NonconvexAcceleratedGradient()
    assert method.init(problem, fl.Key(0))["step"] == pytest.approx(0.99 * 1.25)
    assert NonconvexAcceleratedGradient(L=4.0).init(problem, fl.Key(0))["step"] == pytest.approx(0.99 / 4)


@pytest.mark.parametrize("term", [L1(0.3), ElasticNet(0.2, 0.3), L2(0.5, dim=None), 0.5 * SCAD(0.6)], ids=repr)
def test_other_terms_reach_a_stationary_point_on_nested_variables(term):
    target = {"a": torch.tensor([2.0, -1.0, 0.1], dtype=torch.float64), "b": torch.tensor([[0.7, 0.05]], dtype=torch.float64)}
    start = {name: torch.zeros_like(each) for name, each in target.items()}
    loss = fl.Smooth(lambda x: sum(((x[n] - target[n]) ** 2).sum() / 2 for n in target), start, facts={"L": 1.0})
    problem = fl.Composite(loss, term)
    result = fl.solve(problem, NonconvexAcceleratedGradient(), fl.Budget(steps=500), tol=1e-10)
    assert result.success
    again = problem.prox({n: result.x[n] - 0.3 * (result.x[n] - target[n]) for n in target}, 0.3)
    for name in target:
        torch.testing.assert_close(again[name], result.x[name], atol=1e-8, rtol=0)


def test_a_term_with_but_a_value_and_a_prox_counts_as_convex():
    class Own:
        def value(self, x):
            return 0.3 * x.abs().sum()

        def prox(self, x, step):
            return soft(x, 0.3 * step)

    target = torch.tensor([2.0, -1.0, 0.1], dtype=torch.float64)
    loss = fl.Smooth(lambda x: ((x - target) ** 2).sum() / 2, torch.zeros_like(target), facts={"L": 1.0})
    result = fl.solve(fl.Composite(loss, Own()), NonconvexAcceleratedGradient(), fl.Budget(steps=500), tol=1e-10)
    assert result.success
    torch.testing.assert_close(result.x, torch.tensor([1.7, -0.7, 0.0], dtype=torch.float64))


def test_a_loss_without_curvature_has_a_step():
    loss = LinearModel(torch.zeros(4, 2, dtype=torch.float64), torch.ones(4), x0=torch.ones(2, dtype=torch.float64))
    result = fl.solve(fl.Composite(loss, L1(0.3)), NonconvexAcceleratedGradient(), fl.Budget(steps=50), tol=1e-10)
    assert result.success and not result.x.any()


def test_what_the_method_cannot_solve_is_refused():
    loss = fl.Smooth(lambda x: (x**2).sum(), torch.ones(2))

    class Bent(L1):
        weak_convexity = 0.1

    with pytest.raises(ValueError, match="L is not known for 'smooth': give L"):
        fl.solve(fl.Composite(loss, SCAD()), NonconvexAcceleratedGradient())
    with pytest.raises(ValueError, match="L is not known for 'kl linear model'"):
        poisson = LinearModel(torch.ones(2, 1), torch.ones(2), "kl", x0=torch.ones(1))
        fl.solve(fl.Composite(poisson, SCAD()), NonconvexAcceleratedGradient())
    with pytest.raises(ValueError, match="not convex, and has no known split"):
        fl.solve(fl.Composite(loss, Bent()), NonconvexAcceleratedGradient(L=2.0))
    with pytest.raises(WrongProblem, match="NonconvexAcceleratedGradient solves composite problems"):
        fl.solve(loss, NonconvexAcceleratedGradient(L=2.0))
    with pytest.raises(ValueError, match="L must be a finite number > 0"):
        NonconvexAcceleratedGradient(L=0.0)


# ---------------------------------------------------------------- the estimator


def stationarity(model, X, y, lam):
    """How far the conditions of stationarity are from holding, for standardised columns and an unpenalised intercept."""
    mean, scale = X.mean(0), X.std(0)
    Z, beta = (X - mean) / scale, model.coef_.numpy() * scale
    z = Z @ beta + model.intercept_ + mean @ model.coef_.numpy()
    if model.loss == "squared":
        slopes = z - y
    else:
        signs = np.where(y == model.classes_[1].item(), 1.0, -1.0)
        slopes = -signs / (1 + np.exp(signs * z))
    term = SCAD(lam, model.a) if model.penalty == "scad" else MCP(lam, model.gamma)
    g = Z.T @ slopes / len(y) + concave_slope(beta, term)
    violation = np.where(beta != 0, np.abs(g + lam * np.sign(beta)), np.maximum(np.abs(g) - lam, 0))
    return max(violation.max(), abs(slopes.mean()))


def labels(X, beta, seed=1):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(X)) < 1 / (1 + np.exp(-(X @ beta - 1))), 7, 3)


@pytest.mark.parametrize("penalty", ["scad", "mcp"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_fit_is_stationary_with_a_free_intercept_on_columns_of_any_scale(penalty, loss):
    X, y, beta = correlated(n=100)
    X = X * np.logspace(-2, 2, 30) + np.linspace(-5, 5, 30)
    y = y + 100 if loss == "squared" else labels(correlated(n=100)[0], beta)
    lam = 0.5 if loss == "squared" else 0.08
    model = NonconvexAG(lam, penalty=penalty, loss=loss, tol=1e-9).fit(X, y)
    assert stationarity(model, X, y, lam) < 1e-8 and model.result_.success and model.n_iter_ == model.result_.nit
    assert 0 < int((model.coef_ != 0).sum()) < 15


def test_large_signals_are_not_shrunk_as_the_lasso_does():
    X, y, _ = correlated(n=200, noise=0.1)
    model = NonconvexAG(0.3, tol=1e-9).fit(X, y)
    assert set(model.coef_.nonzero().flatten().tolist()) == {2, 11, 20}
    support = np.column_stack([np.ones(200), X[:, [2, 11, 20]]])
    np.testing.assert_allclose(model.coef_[[2, 11, 20]], np.linalg.lstsq(support, y, rcond=None)[0][1:], atol=1e-6)  # the oracle
    torch.testing.assert_close(model.predict(X), torch.tensor(X) @ model.coef_ + model.intercept_)


def test_labels_and_probabilities():
    X, _, beta = correlated(n=150)
    y = labels(X, beta)
    model = NonconvexAG(0.05, loss="logistic").fit(X, y)
    assert model.classes_.tolist() == [3, 7]
    predicted, chances = model.predict(X), model.predict_proba(X)
    assert float((predicted.numpy() == y).mean()) > 0.85 and set(predicted.tolist()) == {3, 7}
    torch.testing.assert_close(chances.sum(1), torch.ones(150, dtype=torch.float64))
    assert torch.equal(chances[:, 1] > 0.5, predicted == 7)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_sparse_design_gives_the_dense_answer(loss):
    X, y, beta = correlated()
    X = np.where(np.random.default_rng(3).random(X.shape) < 0.4, X, 0.0)
    y = y if loss == "squared" else labels(X, beta)
    lam = 0.3 if loss == "squared" else 0.06
    dense = NonconvexAG(lam, loss=loss, tol=1e-9).fit(X, y)
    for layout in ("to_sparse_coo", "to_sparse_csr"):
        sparse = getattr(torch.tensor(X), layout)()
        model = NonconvexAG(lam, loss=loss, tol=1e-9).fit(sparse, y)
        torch.testing.assert_close(model.coef_, dense.coef_, atol=1e-6, rtol=0)
        assert model.intercept_ == pytest.approx(dense.intercept_, abs=1e-6)
        torch.testing.assert_close(model.predict(sparse).double(), dense.predict(X).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_strong_rule_changes_nothing_but_the_work(loss):
    X, y, beta = correlated(n=80, p=120)
    y = y if loss == "squared" else labels(X, beta)
    model = NonconvexAG(1.0, loss=loss, tol=1e-9)
    ruled, whole = (model.path(X, y, 12, least=0.4, strong_rule=rule) for rule in (True, False))
    torch.testing.assert_close(ruled.coefs, whole.coefs, atol=1e-6, rtol=0)
    assert ruled.lambdas == whole.lambdas and max(ruled.kept) < 60 and set(whole.kept) == {120}
    assert bool((ruled.coefs[0] == 0).all()) and int((ruled.coefs[-1] != 0).sum()) >= 2  # from λ_max on
    for k in (5, 11):
        fitted = NonconvexAG(ruled.lambdas[k], loss=loss)
        fitted.coef_, fitted.intercept_ = ruled.coefs[k], float(ruled.intercepts[k])
        fitted.classes_ = torch.tensor([3, 7])
        assert stationarity(fitted, X, y, ruled.lambdas[k]) < 1e-7
    assert "12 values of λ" in repr(ruled) and len(ruled.plot().data) >= 2


def test_columns_that_the_strong_rule_left_out_wrongly_are_put_back():
    # Far apart λ make 2λ − λ' negative and discard nothing; near ones on strongly correlated columns do discard wrongly.
    X, y, _ = correlated(n=20, p=60, seed=5)
    model = NonconvexAG(1.0, tol=1e-9)
    ruled, whole = (model.path(X, y, lambdas=[2.0, 1.2, 0.7, 0.4, 0.25], strong_rule=rule) for rule in (True, False))
    torch.testing.assert_close(ruled.coefs, whole.coefs, atol=1e-6, rtol=0)


def test_constant_columns_get_zero():
    X, y, _ = correlated()
    X[:, 4] = 7.0
    for given in (X, torch.tensor(X).to_sparse_coo()):
        model = NonconvexAG(0.3).fit(given, y)
        assert model.coef_[4] == 0 and bool(model.coef_.isfinite().all()) and math.isfinite(model.intercept_)


def test_without_standardisation_columns_count_as_they_are():
    X, y, _ = correlated()
    model = NonconvexAG(0.4, standardize=False, tol=1e-9).fit(X, y)
    g = X.T @ (X @ model.coef_.numpy() + model.intercept_ - y) / len(y)
    beta = model.coef_.numpy()
    zero = beta == 0
    assert np.abs(g[zero]).max() <= 0.4 + 1e-8
    np.testing.assert_allclose((g + concave_slope(beta, SCAD(0.4)))[~zero], -0.4 * np.sign(beta[~zero]), atol=1e-7)


def test_it_has_scikit_learns_habits():
    base = pytest.importorskip("sklearn.base")
    model = NonconvexAG(0.3, penalty="mcp", gamma=3.0)
    copy = base.clone(model)
    assert copy.get_params() == model.get_params() and copy.set_params(lam=0.2).lam == 0.2
    assert "NonconvexAG(lam=0.3, penalty='mcp'" in repr(model)
    with pytest.raises(ValueError, match="params must be among"):
        model.set_params(alpha=1)


@pytest.mark.parametrize(("settings", "message"), [
    ({"penalty": "lasso"}, "penalty must be 'scad' or 'mcp'"), ({"loss": "hinge"}, "loss must be"), ({"tol": 0.0}, "tol must be"),
    ({"a": 2.0}, "a must be a finite number > 2"), ({"penalty": "mcp", "gamma": 1.0}, "gamma must be a finite number > 1"),
    ({"lam": -1.0}, "lam must be"), ({"max_iter": 0}, "max_iter must be"),
])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        NonconvexAG(**{"lam": 0.1, **settings})


def test_bad_data():
    X, y, _ = correlated()
    with pytest.raises(ValueError, match=r"X must be a matrix \(N, p\), got shape \(60,\)"):
        NonconvexAG(0.1).fit(y, y)
    with pytest.raises(ValueError, match="one number for each row of X"):
        NonconvexAG(0.1).fit(X, y[:5])
    with pytest.raises(ValueError, match="X must be finite"):
        NonconvexAG(0.1).fit(np.full_like(X, np.nan), y)
    with pytest.raises(ValueError, match="y must be finite"):
        NonconvexAG(0.1).fit(X, np.full_like(y, np.inf))
    with pytest.raises(ValueError, match="two labels for loss='logistic', got 60"):
        NonconvexAG(0.1, loss="logistic").fit(X, y)
    with pytest.raises(ValueError, match=r"not fitted: call fit\(X, y\) first"):
        NonconvexAG(0.1).predict(X)
    with pytest.raises(ValueError, match="X must have the 30 columns"):
        NonconvexAG(0.1).fit(X, y).predict(X[:, :4])
    with pytest.raises(ValueError, match="predict_proba is for"):
        NonconvexAG(0.1).fit(X, y).predict_proba(X)
    with pytest.raises(ValueError, match="lambdas must fall"):
        NonconvexAG(0.1).path(X, y, lambdas=[0.1, 0.2])
    with pytest.raises(ValueError, match="y does not vary"):
        NonconvexAG(0.1).path(X, np.full_like(y, 0.1))
    with pytest.raises(ValueError, match="y does not vary"):
        NonconvexAG(0.1).path(np.ones_like(X), y)
    assert not NonconvexAG(0.1).path(X, np.ones_like(y), lambdas=[0.2, 0.1]).coefs.any()
    with pytest.raises(ValueError, match="least must be in"):
        NonconvexAG(0.1).path(X, y, least=1.0)
    with pytest.warns(UserWarning, match="has not converged at lam = 0.1"):
        NonconvexAG(0.1, max_iter=2).fit(X, y)


def test_skipped_entries_are_left_alone():
    term = SkipFirst(SCAD(0.5))
    x = torch.tensor([9.0, 0.2, 3.0], dtype=torch.float64)
    assert torch.equal(term.prox(x, 0.5), torch.cat([x[:1], SCAD(0.5).prox(x[1:], 0.5)]))
    assert term.value(x) == SCAD(0.5).value(x[1:]) and term.split()[1](x)[0] == 0
    assert repr(term) == "SkipFirst(SCAD(0.5, a=3.7), 1)"
    with pytest.raises(ValueError, match="count must be a whole number"):
        SkipFirst(L1(), 0)
