"""The parts that Newton-type methods are composed of: curvature, paths, searches, and what they refuse."""

import itertools
import math

import numpy as np
import pytest
import torch

import fallline as fl
from fallline.core.counts import Counts
from fallline.core.errors import NonFiniteError
from fallline.solvers import Minimizer
from fallline.solvers import descent as parts
from fallline.solvers.descent.local import Decomposed, Dense, Diagonal, Krylov, Spectrum
from fallline.solvers.descent.secular import secular_step

D = torch.float64


def matrix(n=6, low=0.5, seed=0):
    Q = torch.linalg.qr(torch.randn(n, n, dtype=D, generator=torch.Generator().manual_seed(seed))).Q
    return Q @ torch.diag(torch.linspace(low, 5, n, dtype=D)) @ Q.T


def locals_of(H):
    values, vectors = torch.linalg.eigh(H)
    operator = fl.core.operators.LinearOperator.from_tensor(H)
    yield Dense(H, Counts())
    yield Decomposed(Spectrum(values, vectors))
    yield Krylov(operator, lambda norm: 1e-13, 100, len(H))


def test_every_way_to_hold_a_matrix_solves_and_decomposes_alike():
    H, g = matrix(), torch.linspace(-1, 2, 6, dtype=D)
    for local in locals_of(H):
        torch.testing.assert_close(local.matvec(g), H @ g)
        torch.testing.assert_close(local.solve(g), torch.linalg.solve(H, g), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(local.solve(g, 0.7), torch.linalg.solve(H + 0.7 * torch.eye(6, dtype=D), g), rtol=1e-10, atol=1e-10)
        spectrum = local.spectrum(g)
        torch.testing.assert_close(spectrum.vector(spectrum.values * spectrum.coefficients(g)), H @ g, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", [torch.linspace(1, 3, 6, dtype=D), matrix(seed=1)])
def test_a_metric_shifts_by_its_own_matrix(metric):
    H, g = matrix(), torch.linspace(-1, 2, 6, dtype=D)
    B = metric.diag() if metric.ndim == 1 else metric
    for local in (Dense(H, Counts()), Krylov(fl.core.operators.LinearOperator.from_tensor(H), lambda norm: 1e-13, 100, 6)):
        torch.testing.assert_close(local.solve(g, 0.7, metric), torch.linalg.solve(H + 0.7 * B, g), rtol=1e-10, atol=1e-10)


def test_indefinite_matrices_have_no_solution_but_with_a_large_shift():
    H, g = matrix(low=-1.0), torch.ones(6, dtype=D)
    for local in locals_of(H):
        assert local.solve(g) is None
        assert local.solve(g, 2.0) is not None


def test_a_singular_matrix_is_inverted_on_its_range():
    v = torch.tensor([3.0, 4.0], dtype=D)
    found = Dense(torch.outer(v, v), Counts()).solve(v)
    torch.testing.assert_close(found, v / 25)


def test_factorizations_are_counted_once_a_shift():
    counts = Counts()
    local = Dense(matrix(), counts)
    g = torch.ones(6, dtype=D)
    local.solve(g), local.solve(2 * g), local.solve(g, 1.0), local.solve(2 * g, 1.0)
    assert counts["factorizations"] == 2


def test_a_matrix_with_nan_is_refused():
    with pytest.raises(NonFiniteError):
        Dense(torch.full((2, 2), math.nan), Counts())


# ---------------------------------------------------------------- models in an eigenbasis


@pytest.mark.parametrize("low", [-2.0, 0.0, 0.3])
@pytest.mark.parametrize("M", [1e-3, 1.0, 1e3])
def test_the_cubic_model_is_minimised(low, M):
    values = torch.linspace(low, 3, 5, dtype=D)
    c = torch.tensor([0.3, -1.0, 0.2, 0.0, 2.0], dtype=D)
    s, shift = secular_step(values, c, lambda shift: 2 * shift / M)
    length = float(s.norm())
    assert shift == pytest.approx(M * length / 2, rel=1e-8)
    torch.testing.assert_close(c + values * s + M / 2 * length * s, torch.zeros(5, dtype=D), atol=1e-8, rtol=1e-8)
    assert float(values[0]) + shift >= -1e-10


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("low", [-2.0, 0.3])
def test_the_region_model_is_minimised(low, radius):
    values = torch.linspace(low, 3, 5, dtype=D)
    c = torch.tensor([0.3, -1.0, 0.2, 0.0, 2.0], dtype=D)
    s, shift = secular_step(values, c, lambda shift: radius)
    torch.testing.assert_close(c + (values + shift) * s, torch.zeros(5, dtype=D), atol=1e-8, rtol=1e-8)
    assert float(s.norm()) <= radius * (1 + 1e-8)
    assert shift == 0 or float(s.norm()) == pytest.approx(radius)
    assert float(values[0]) + shift >= -1e-10


def test_the_hard_case_goes_along_the_lowest_eigenvector():
    values, c = torch.tensor([-1.0, 2.0], dtype=D), torch.tensor([0.0, 1.0], dtype=D)
    s, shift = secular_step(values, c, lambda shift: 2.0)
    assert shift == 1.0 and float(s.norm()) == pytest.approx(2.0) and float(s[1]) == pytest.approx(-1 / 3)


def test_nan_never_comes_out_of_a_model():
    with pytest.raises(NonFiniteError):
        secular_step(torch.ones(2), torch.tensor([math.nan, 1.0]), lambda shift: 1.0)


# ---------------------------------------------------------------- paths


def quadratic_model(H, g, s):
    return float(g @ s + s @ H @ s / 2)


@pytest.mark.parametrize("descent", [parts.NewtonStep(), parts.TrustRegion(), parts.TruncatedCG()])
def test_predicted_falls_are_those_of_the_quadratic_model(descent):
    H, g = matrix(), torch.linspace(-1, 2, 6, dtype=D)
    for t in (1.0,) if isinstance(descent, parts.NewtonStep) else (0.1, 0.5, 1.0):
        step = descent.path(Dense(H, Counts()), g)(t)
        assert step.predicted == pytest.approx(-quadratic_model(H, g, step.displacement))


def test_predicted_falls_of_regularised_models():
    H, g, t = matrix(), torch.linspace(-1, 2, 6, dtype=D), 0.3
    step = parts.RegularizedNewton().path(Dense(H, Counts()), g)(t)
    s = step.displacement
    assert step.predicted == pytest.approx(-quadratic_model(H, g, s) - float(s @ s) / (2 * t)) and step.shift == pytest.approx(1 / t)
    step = parts.CubicNewton(slack=0.2).path(Dense(H, Counts()), g)(t)
    s = step.displacement
    slackened = H + 0.2 * torch.eye(6, dtype=D)
    assert step.predicted == pytest.approx(-quadratic_model(slackened, g, s) - float(s.norm()) ** 3 / (6 * t))
    step = parts.GradientStep().path(Diagonal(torch.zeros(6, dtype=D)), g)(t)
    assert step.predicted == pytest.approx(t / 2 * float(g @ g))


def test_truncated_cg_stops_at_the_boundary_and_follows_negative_curvature():
    g = torch.linspace(-1, 2, 6, dtype=D)
    inside = parts.TruncatedCG().path(Dense(matrix(), Counts()), g)(0.2)
    assert inside.bounded and float(inside.displacement.norm()) == pytest.approx(0.2)
    H = -torch.eye(6, dtype=D)
    along = parts.TruncatedCG().path(Dense(H, Counts()), g)(3.0)
    torch.testing.assert_close(along.displacement, -3 * g / g.norm())
    assert along.bounded and along.predicted == pytest.approx(-quadratic_model(H, g, along.displacement))


def test_truncated_cg_within_the_region_is_scipys_residual_rule():
    H, g = matrix(), 0.01 * torch.linspace(-1, 2, 6, dtype=D)
    step = parts.TruncatedCG().path(Dense(H, Counts()), g)(1e6)
    norm = float(g.norm())
    assert not step.bounded and float((g + H @ step.displacement).norm()) <= min(0.5, math.sqrt(norm)) * norm


# ---------------------------------------------------------------- curvature sources


def logistic(n=60, d=4, ridge=0.1):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(n, d, dtype=D, generator=generator)
    y = 2 * (torch.rand(n, dtype=D, generator=generator) > 0.5).double() - 1
    return fl.LinearModel(A, y, "logistic", ridge=ridge)


def at(source, problem, x, key=0):
    return source.at(problem, x, source.start(fl.Key(key)))[0]


def test_sources_are_their_formulas():
    problem, x = logistic(), torch.linspace(-1, 1, 4, dtype=D)
    model, eye = problem.linear_model, torch.eye(4, dtype=D)
    torch.testing.assert_close(at(parts.Exact(), problem, x).matrix, problem.hessian(x))
    torch.testing.assert_close(at(parts.GaussNewton(), problem, x).matrix, model.A.T @ model.A / 240 + 0.1 * eye)
    rows = -model.targets[:, None] * torch.sigmoid(-model.targets * (model.A @ x))[:, None] * model.A
    torch.testing.assert_close(at(parts.Fisher(), problem, x).matrix, rows.T @ rows / 60 + 0.1 * eye)
    torch.testing.assert_close(at(parts.Products(), problem, x).matvec(x), problem.hessian(x) @ x)
    assert not bool(at(parts.Zero(), problem, x).matvec(x).any())
    torch.testing.assert_close(at(parts.Given(lambda x: 2 * eye), problem, x).matrix, 2 * eye)


def test_gauss_newton_of_residuals_by_matrix_and_by_products():
    residuals = lambda x: torch.cat([torch.sin(x[:2]) * x[2], x**2])
    x = torch.tensor([0.3, -0.4, 1.2], dtype=D)
    problem = fl.LeastSquares(residuals, x)
    J = torch.func.jacrev(residuals)(x)
    torch.testing.assert_close(at(parts.GaussNewton(), problem, x).matrix, J.T @ J)
    torch.testing.assert_close(at(parts.GaussNewtonProducts(), problem, x).matvec(x), J.T @ (J @ x))
    torch.testing.assert_close(problem.gradient(x), J.T @ residuals(x))
    r, jacobian = problem.linearization(x)
    torch.testing.assert_close(r, residuals(x))
    torch.testing.assert_close(jacobian, J)


def test_gauss_newton_of_a_network_is_that_of_all_data():
    model = torch.nn.Linear(3, 1, dtype=D)
    x, y = torch.randn(20, 3, dtype=D, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 1, dtype=D)
    problem = fl.Training(model, torch.nn.functional.mse_loss, (x, y), batch_size=5)
    rows = torch.cat([x, torch.ones(20, 1, dtype=D)], 1)
    torch.testing.assert_close(at(parts.GaussNewton(), problem, problem.x0).matrix, 2 * rows.T @ rows / 20)


def test_a_lazy_source_asks_once_a_period():
    problem = logistic()
    result = fl.solve(problem, Minimizer(parts.RegularizedNewton(), parts.GradientNormalized(), parts.Lazy(period=3)),
                      fl.Budget(steps=7))
    assert result.counts["hessians"] == 3


def test_an_average_takes_the_noise_out():
    problem, x = logistic(n=400), torch.zeros(4, dtype=D)
    exact = problem.hessian(x)
    source = parts.Averaged(parts.Sketched(40), power=0.0)
    memory, errors = source.start(fl.Key(0)), []
    matrices = []
    for _ in range(30):
        local, memory = source.at(problem, x, memory)
        errors.append(float((local.matrix - exact).norm()))
        matrices.append(local.matrix)
    assert errors[-1] < 0.4 * errors[0]
    singles = [parts.Sketched(40).at(problem, x, {"key": fl.Key(0).fold("sketch"), "k": k})[0].matrix for k in range(3)]
    torch.testing.assert_close(matrices[2], torch.stack(singles).mean(0))


def test_a_diagonal_estimate_of_a_diagonal_hessian_is_exact():
    scale = torch.tensor([1.0, -4.0, 9.0], dtype=D)
    problem = fl.Smooth(lambda x: (scale * x**2).sum() / 2, torch.ones(3, dtype=D))
    torch.testing.assert_close(at(parts.HutchinsonDiagonal(), problem, problem.x0).diagonal, scale.abs())


# ---------------------------------------------------------------- whole methods

DESCENTS = [parts.GradientStep(), parts.RegularizedNewton(), parts.CubicNewton(), parts.NewtonStep()]
SEARCHES = [parts.Armijo(), parts.Backtracking(), parts.GradientNormalized()]
SOURCES = [parts.Exact(), parts.Products(), parts.Fisher(), parts.GaussNewton(), parts.Lazy(), parts.Sketched(50),
           parts.Averaged(parts.Sketched(50)), parts.Zero(), parts.HutchinsonDiagonal()]


@pytest.mark.parametrize(("descent", "search"), list(itertools.product(DESCENTS, SEARCHES)))
def test_every_descent_with_every_search_goes_down(descent, search):
    problem = logistic()
    result = fl.solve(problem, Minimizer(descent, search, parts.Exact()), fl.Budget(steps=40))
    assert result.status != "failed" and float(result.gap) < 1e-3 * float(problem.gradient(problem.x0).norm())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("descent", [parts.RegularizedNewton(), parts.CubicNewton()])
def test_every_source_with_a_regularised_descent_goes_down(descent, source):
    problem = logistic()
    search = parts.GradientNormalized() if isinstance(descent, parts.RegularizedNewton) else parts.Backtracking()
    result = fl.solve(problem, Minimizer(descent, search, source), fl.Budget(steps=60))
    assert result.status != "failed" and float(result.gap) < 1e-3 * float(problem.gradient(problem.x0).norm())


@pytest.mark.parametrize("descent", [parts.TrustRegion(), parts.TruncatedCG()])
@pytest.mark.parametrize("source", [parts.Exact(), parts.Products()])
def test_trust_regions_reach_the_minimum_of_rosenbrocks_chain(descent, source):
    rosenbrock = lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
    x0 = torch.tensor([1.3, 0.7, 0.8, 1.9, 1.2], dtype=D)
    result = fl.minimize(rosenbrock, x0, Minimizer(descent, parts.RatioTest(), source), tol=1e-9)
    assert result.success
    torch.testing.assert_close(result.x, torch.ones(5, dtype=D), atol=1e-7, rtol=0)


def test_newtons_direction_is_refused_where_it_climbs():
    saddle = fl.Smooth(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, torch.tensor([1.0, 0.1], dtype=D))
    result = fl.solve(saddle, Minimizer(parts.NewtonStep(), parts.Armijo()), fl.Budget(steps=5))
    assert result.status == "failed" and not result.success and "CubicNewton" in result.message


def test_a_wrong_gradient_never_climbs_nor_converges():
    lying = fl.Smooth(lambda x: (x**2).sum(), torch.ones(2, dtype=D), gradient=lambda x: -2 * x,
                      hessian=lambda x: 2 * torch.eye(2, dtype=D))
    for search in SEARCHES:
        result = fl.solve(lying, Minimizer(parts.RegularizedNewton(), search), fl.Budget(steps=50), tol=1e-8)
        assert not result.success and result.fun < 2 + 1e-10


def test_an_unbounded_objective_never_converges():
    falling = fl.Smooth(lambda x: -x.sum() + 0 * (x**2).sum(), torch.zeros(2, dtype=D))
    for method in (Minimizer(), Minimizer(parts.TrustRegion(), parts.RatioTest()),
                   Minimizer(parts.GradientStep(), parts.Backtracking())):
        result = fl.solve(falling, method, fl.Budget(steps=500), tol=1e-8)
        assert not result.success


def test_stationary_starts_stay_and_saddles_are_left_by_those_that_can():
    saddle = fl.Smooth(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, torch.zeros(2, dtype=D))
    stayed = fl.solve(saddle, Minimizer(parts.RegularizedNewton(), parts.GradientNormalized()), fl.Budget(steps=5))
    assert not bool(stayed.x.any())
    for method in (Minimizer(), Minimizer(parts.TrustRegion(), parts.RatioTest())):
        left = fl.solve(saddle, method, fl.Budget(steps=50))
        assert float(left.x[1].abs()) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Minimizer(descent="newton"), "descent must be a Descent"),
    (lambda: Minimizer(search=3), "search must be a Search"),
    (lambda: parts.Lazy(period=0), "period"),
    (lambda: parts.Given(3), "function"),
    (lambda: parts.Sketched(0), "size"),
    (lambda: parts.RatioTest(accept=0.5), "accept"),
    (lambda: parts.Armijo(start_size=-1.0), "start_size"),
    (lambda: parts.HutchinsonDiagonal(beta=1.0), "beta"),
    (lambda: parts.RegularizedNewton(metric=torch.ones(1, 1, 1)), "metric"),
    (lambda: parts.Products(power=-1.0), "power"),
])
def test_bad_parts_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_source_that_the_problem_does_not_have_is_named():
    problem = fl.Smooth(lambda x: (x**2).sum(), torch.ones(2, dtype=D))
    with pytest.raises(fl.MissingOracle, match="per_sample_gradients"):
        fl.solve(problem, Minimizer(curvature=parts.Fisher()), fl.Budget(steps=1))
    with pytest.raises(fl.MissingOracle, match="LeastSquares"):
        fl.solve(problem, Minimizer(curvature=parts.GaussNewton()), fl.Budget(steps=1))


def test_nested_variables_and_single_precision():
    x0 = {"a": torch.ones(2), "b": [torch.full((2, 2), 0.5)]}
    value = lambda x: torch.log(torch.cosh(x["a"])).sum() + ((x["b"][0] - 1) ** 2).sum() + x["a"].sum() * x["b"][0].sum() / 9
    problem = fl.Smooth(value, x0)
    result = fl.solve(problem, Minimizer(parts.TruncatedCG(), parts.RatioTest(), parts.Products()), fl.Budget(steps=50), tol=1e-5)
    assert result.success and result.x["a"].dtype == torch.float32 and result.x["b"][0].shape == (2, 2)


def test_memory_stays_linear_in_the_number_of_variables():
    n = 200_000
    rng = np.random.default_rng(0)
    rows = torch.arange(n).repeat_interleave(3)
    columns = torch.tensor(rng.integers(0, n, 3 * n))
    A = torch.sparse_coo_tensor(torch.stack([rows, columns]), torch.tensor(rng.standard_normal(3 * n)), (n, n)).coalesce()
    labels = torch.tensor(np.where(rng.random(n) < 0.5, -1.0, 1.0))
    problem = fl.LinearModel(A, labels, "logistic", ridge=1e-3)
    result = fl.solve(problem, fl.solvers.TrustRegionCG(), fl.Budget(steps=30), tol=1e-6)
    assert result.success and "hessians" not in result.counts
