"""Damped, gradient-normalised, accelerated and preconditioned methods: one step by its formula, and the door."""

import math

import pytest
import scipy.sparse.linalg
import torch

import fallline as fl
from fallline.core.operators import LinearOperator
from fallline.solvers import (
    AICN,
    AcceleratedCubic,
    DampedNewton,
    GradRegNewton,
    KrylovGD,
    Minimizer,
    PreconditionedFGM,
    PreconditionedGD,
    RootNewton,
    SymmetricPolyPrecond,
    TrustRegionCG,
    TrustRegionNewton,
    gns_radius,
)
from fallline.solvers.descent import CubicNewton, Fixed

D = torch.float64


def bowl(start=0.7):
    scale = torch.tensor([1.0, 2.0, 5.0], dtype=D)
    return fl.Smooth(lambda x: torch.log(torch.cosh(scale * x)).sum() + 0.1 * (x**2).sum(), torch.full((3,), start, dtype=D))


def moved(method, problem, steps=1):
    return fl.solve(problem, method, fl.Budget(steps=steps)).x


def newton(problem, x):
    g, H = problem.gradient(x), problem.hessian(x)
    n = torch.linalg.solve(H, g)
    return g, H, n, math.sqrt(float(g @ n))


# ---------------------------------------------------------------- damped


def test_closed_form_sizes_are_their_formulas():
    problem = bowl()
    x = problem.x0
    _, _, n, G = newton(problem, x)
    L, q, M = 3.0, 3.5, 0.7
    torch.testing.assert_close(moved(AICN(L), problem), x - (math.sqrt(1 + 2 * L * G) - 1) / (L * G) * n)
    theta = (9 * M) ** (1 / (q - 1)) * G ** ((q - 2) / (q - 1))
    torch.testing.assert_close(moved(RootNewton(q, M), problem), x - n / (1 + theta))


@pytest.mark.parametrize(("beta", "sigma", "c"), [(1.0, 1.0, 2.0), (2 / 3, 1e-3, 3.0), (0.8, 50.0, 2.0)])
def test_the_search_takes_the_first_damping_that_passes_and_keeps_it(beta, sigma, c):
    problem = bowl(start=2.0)
    x = problem.x0
    for _ in range(3):
        _, H, n, G = newton(problem, x)
        for j in range(100):
            theta = c**j * sigma * G**beta
            alpha = 1 / (1 + theta)
            y = x - alpha * n
            ahead = problem.gradient(y)
            if float(2 * alpha * theta * ahead @ n) >= float(ahead @ torch.linalg.solve(H, ahead)):
                break
        x, sigma_next = y, c ** (j - 1) * sigma
        sigma = sigma_next
    start_sigma = {1.0: 1.0, 2 / 3: 1e-3, 0.8: 50.0}[beta]
    torch.testing.assert_close(moved(DampedNewton(beta, start_sigma, c), problem, 3), x, rtol=1e-9, atol=1e-12)


def test_damped_newton_converges_superlinearly_where_newton_diverges():
    problem = bowl(start=3.0)
    assert fl.solve(problem, DampedNewton(), fl.Budget(steps=40), tol=1e-10).success
    assert not fl.solve(problem, Minimizer(fl.solvers.descent.NewtonStep(), Fixed(1.0)), fl.Budget(steps=40), tol=1e-10).success


def test_indefinite_hessians_end_a_damped_run_with_a_remedy():
    hill = fl.Smooth(lambda x: torch.cos(x).sum(), torch.full((2,), 0.3, dtype=D))
    for method in (DampedNewton(), RootNewton(), AICN()):
        result = fl.solve(hill, method, fl.Budget(steps=5))
        assert result.status == "failed" and "TrustRegionCG" in result.message


@pytest.mark.parametrize(("make", "message"), [
    (lambda: DampedNewton(c=1.0), "c must be > 1"),
    (lambda: DampedNewton(sigma0=0.0), "sigma"),
    (lambda: DampedNewton(beta=0.5), "beta"),
    (lambda: RootNewton(q=5.0), "q must be"),
    (lambda: RootNewton(M=-1.0), "M must be"),
    (lambda: AICN(L=0.0), "L must be"),
    (lambda: GradRegNewton("newton"), "hess must be"),
    (lambda: GradRegNewton(gamma0=0.0), "gamma"),
    (lambda: TrustRegionCG(hvp="full"), "hvp must be"),
    (lambda: TrustRegionCG(max_cg=0), "max_iterations"),
    (lambda: TrustRegionNewton(delta0=-1.0), "radius"),
    (lambda: AcceleratedCubic(L2=0.0), "L2"),
    (lambda: AcceleratedCubic(sigma1=-1.0), "sigma1"),
    (lambda: AcceleratedCubic(gradient_batch=0), "gradient_batch"),
    (lambda: KrylovGD(torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
    (lambda: KrylovGD(torch.ones(2, 3)), "square"),
    (lambda: PreconditionedGD(torch.eye(3, dtype=D), 3), "below n = 3"),
    (lambda: PreconditionedGD(degree=-1), "degree"),
    (lambda: PreconditionedFGM(mu=-1.0), "mu"),
    (lambda: SymmetricPolyPrecond(-torch.eye(3, dtype=D), 1), "positive semi-definite"),
    (lambda: SymmetricPolyPrecond(torch.zeros(3, 3, dtype=D), 1), "not 0"),
])
def test_bad_hyperparameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- gradient-normalised


def test_the_regularised_step_and_its_test_are_their_formulas():
    problem, gamma = bowl(), 4.0
    x = problem.x0
    g, H, *_ = newton(problem, x)
    norm, tries = float(g.norm()), 0
    trial = gamma + 1e-8
    while True:
        lam = norm / trial
        y = x - torch.linalg.solve(H + lam * torch.eye(3, dtype=D), g)
        tries += 1
        if float(problem.value(x) - problem.value(y)) >= float(problem.gradient(y).norm()) ** 2 / (8 * lam):
            break
        trial /= 2
    result = fl.solve(problem, GradRegNewton(gamma0=gamma), fl.Budget(steps=1))
    torch.testing.assert_close(result.x, y)
    assert result.counts["factorizations"] == tries


def test_no_hessian_is_gradient_descent_of_length_gamma():
    problem = bowl()
    g = problem.gradient(problem.x0)
    torch.testing.assert_close(moved(GradRegNewton("zero", gamma0=0.01), problem), problem.x0 - 0.01 * g / g.norm(), rtol=1e-5, atol=0)


def test_a_metric_makes_the_method_independent_of_the_basis():
    problem = bowl()
    S = torch.tensor([[10.0, 1.0, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.1]], dtype=D)
    other = fl.Smooth(lambda z: problem.value(S @ z), torch.linalg.solve(S, problem.x0),
                      gradient=lambda z: S.T @ problem.gradient(S @ z), hessian=lambda z: S.T @ problem.hessian(S @ z) @ S)
    ours, plain = moved(GradRegNewton(metric=S.T @ S), other, 4), moved(GradRegNewton(), problem, 4)
    torch.testing.assert_close(S @ ours, plain, rtol=1e-7, atol=1e-9)


def test_indefinite_hessians_shrink_the_step_and_do_not_stop_it():
    double_well = fl.Smooth(lambda x: ((x**2 - 1) ** 2).sum(), torch.tensor([0.1, -0.2], dtype=D))
    result = fl.solve(double_well, GradRegNewton(), fl.Budget(steps=100), tol=1e-10)
    assert result.success
    torch.testing.assert_close(result.x, torch.tensor([1.0, -1.0], dtype=D))


def test_the_radius_of_a_quadratic_is_unbounded_and_of_a_cubic_its_formula():
    quadratic = fl.Smooth(lambda x: (x**2).sum(), torch.ones(2, dtype=D))
    assert gns_radius(quadratic, quadratic.x0) == 2.0**30
    # f = Σ|x|³/6 at x = 1 has ‖∇f(x + h) − ∇f(x) − Hh‖ = h²/2 and ‖∇f‖ = 1/2: h²/2 ≤ h/2γ for all h ≤ γ means γ = 1.
    cubic = fl.Smooth(lambda x: (x.abs() ** 3).sum() / 6, torch.ones(1, dtype=D))
    assert gns_radius(cubic, cubic.x0) == pytest.approx(1.0, rel=0.02)
    with pytest.raises(ValueError, match="gradient other than 0"):
        gns_radius(quadratic, torch.zeros(2, dtype=D))


# ---------------------------------------------------------------- trust regions


def test_gauss_newton_products_and_exact_ones_both_solve_least_squares():
    residuals = lambda x: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
    problem = fl.LeastSquares(residuals, torch.tensor([-1.2, 1.0], dtype=D))
    for hvp in ("exact", "gauss_newton"):
        result = fl.solve(problem, TrustRegionCG(hvp=hvp), fl.Budget(steps=200), tol=1e-9)
        assert result.success
        torch.testing.assert_close(result.x, torch.ones(2, dtype=D))


def test_radii_follow_the_ratio():
    # A model that is exact doubles the radius at the boundary; one that is much too low quarters it.
    problem = fl.Smooth(lambda x: (x**2).sum() / 2, torch.full((2,), 100.0, dtype=D))
    method = TrustRegionCG()
    state = method.init(problem, fl.Key(0))
    radii = []
    for _ in range(4):
        state = method.step(problem, state)
        radii.append(state["search"]["radius"])
    assert radii == [2.0, 4.0, 8.0, 16.0]
    wall = fl.Smooth(lambda x: (x**2).sum() / 2, torch.ones(2, dtype=D), gradient=lambda x: x, hvp=lambda x, v: 1e-6 * v)
    state = method.step(wall, method.init(wall, fl.Key(0)))
    assert state["search"]["radius"] <= 1.0


# ---------------------------------------------------------------- accelerated cubic


def test_two_accelerated_steps_are_the_formulas():
    problem, L2, sigma, delta, R = bowl(), 0.6, 0.3, 0.2, 2.0
    M, x0 = 4 * L2, problem.x0
    x = y = x0
    s = torch.zeros(3, dtype=D)
    A = lambda t: math.prod(1 - 3 / (j + 3) for j in range(1, t + 1))
    for t in range(2):
        alpha = 3 / (t + 3)
        v = (1 - alpha) * x + alpha * y
        slack = 2 * delta + sigma / R * (t + 3) ** 1.5
        g, H = problem.gradient(v), problem.hessian(v)
        z = torch.zeros(3, dtype=D)
        for _ in range(200):  # the cubic step by its fixed point
            z = -torch.linalg.solve(H + (slack + M / 2 * z.norm()) * torch.eye(3, dtype=D), g)
        x = v + z
        s = s + alpha / A(t) * problem.gradient(x)
        c = 2 * slack * alpha**2 / A(t) + sigma / R * (t + 3) ** 2.5
        kappa = 8 * M / 3 * (3 / (t + 4)) ** 3 / A(t + 1)
        r = (-c + math.sqrt(c * c + 4 * kappa * float(s.norm()))) / (2 * kappa)
        y = x0 - r * s / s.norm()
    method = AcceleratedCubic(L2, sigma, delta, R)
    state = method.init(problem, fl.Key(0))
    for _ in range(2):
        state = method.step(problem, state)
    torch.testing.assert_close(state["x"], x)
    torch.testing.assert_close(state["y"], y)


def test_batches_are_drawn_anew_for_gradients_and_hessians():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(50, 3, dtype=D, generator=generator)
    problem = fl.LinearModel(A, torch.sign(A[:, 0]), "logistic", ridge=0.1)
    result = fl.solve(problem, AcceleratedCubic(gradient_batch=10, hessian_batch=20), fl.Budget(steps=3))
    assert result.counts["samples"] == 50 + 3 * 2 * 10


# ---------------------------------------------------------------- polynomial preconditioning


def curvature(n=7):
    Q = torch.linalg.qr(torch.randn(n, n, dtype=D, generator=torch.Generator().manual_seed(0))).Q
    values = torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 50.0, 400.0], dtype=D)[:n]
    return (Q * values) @ Q.T, values


@pytest.mark.parametrize("degree", range(6))
def test_the_polynomial_is_the_recursion_of_the_paper(degree):
    B, _ = curvature()
    B = (B + B.T) / 2
    eye = torch.eye(7, dtype=D)
    P = [eye]
    for tau in range(1, degree + 1):
        powers = [torch.linalg.matrix_power(B, i) for i in range(tau + 1)]
        P.append(sum((-1) ** (i - 1) * P[tau - i] @ (powers[i].trace() * eye - powers[i]) for i in range(1, tau + 1)) / tau)
    scale = B.trace() / 7
    found = torch.stack([SymmetricPolyPrecond(B, degree).matvec(e) for e in eye])
    expected = P[degree] / scale**degree
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), rtol=1e-6, atol=1e-8)


def test_the_largest_degree_is_a_multiple_of_the_inverse():
    B, _ = curvature()
    P = SymmetricPolyPrecond((B + B.T) / 2, 6)
    low, high = P.extreme_eigs()
    assert high / low == pytest.approx(1, rel=1e-2)  # powers of B cancel by then


def test_matrices_operators_and_scipys_agree():
    B, _ = curvature()
    B = (B + B.T) / 2
    v = torch.linspace(-1, 1, 7, dtype=D)
    expected = SymmetricPolyPrecond(B, 3).matvec(v)
    for held in (LinearOperator.from_tensor(B), scipy.sparse.linalg.aslinearoperator(B.numpy()), B.to_sparse()):
        torch.testing.assert_close(SymmetricPolyPrecond(held, 3).matvec(v), expected, rtol=1e-8, atol=1e-10)


def test_estimated_traces_are_near_the_exact_ones():
    n = 60
    B = torch.diag(torch.linspace(1, 2, n, dtype=D))
    B[0, 1] = B[1, 0] = 0.3
    exact, estimated = SymmetricPolyPrecond(B, 2), SymmetricPolyPrecond(LinearOperator.from_tensor(B), 2, probes=20)
    assert estimated.coefficients == pytest.approx(exact.coefficients, rel=0.05)


def test_preconditioned_and_krylov_steps_are_their_formulas():
    problem = bowl()
    B = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]], dtype=D)
    x, g = problem.x0, problem.gradient(problem.x0)
    for method, Pg in ((PreconditionedGD(B, 1), SymmetricPolyPrecond(B, 1).matvec(g)), (KrylovGD(B, 2), torch.linalg.solve(B, g))):
        M = 1.0
        while float(problem.value(x - Pg / M)) > float(problem.value(x) - g @ Pg / (2 * M)):
            M *= 2
        torch.testing.assert_close(moved(method, problem), x - Pg / M)


def test_krylov_of_full_degree_solves_a_quadratic_in_one_step():
    B, _ = curvature()
    B = (B + B.T) / 2
    b = torch.linspace(-1, 2, 7, dtype=D)
    problem = fl.Smooth(lambda x: x @ B @ x / 2 - b @ x, torch.zeros(7, dtype=D))
    torch.testing.assert_close(moved(KrylovGD(B, 6), problem), torch.linalg.solve(B, b), rtol=1e-8, atol=1e-10)
    fast = fl.solve(problem, PreconditionedFGM(B, 2, mu=1e-4), fl.Budget(steps=2_000), tol=1e-4)
    assert fast.success


def test_a_direction_that_is_not_of_descent_is_refused_with_a_remedy():
    problem = bowl()
    indefinite = LinearOperator.from_tensor(torch.diag(torch.tensor([1.0, 1.0, -0.5], dtype=D)))
    result = fl.solve(problem, KrylovGD(indefinite, 2), fl.Budget(steps=3))
    assert result.status == "failed"


# ---------------------------------------------------------------- what was once wrong


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_small_objectives_are_searched_like_large_ones(scale):
    residuals = lambda x: scale * torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])
    problem = fl.LeastSquares(residuals, torch.tensor([-1.2, 1.0], dtype=D))
    for method in (GradRegNewton("zero"), Minimizer(fl.solvers.descent.GradientStep(), fl.solvers.descent.Backtracking())):
        values = []
        fl.solve(problem, method, fl.Budget(steps=200), callback=lambda m, seen=values: seen.append(float(m.report.value) / scale**2))
        assert max(values) == values[0] and values[-1] < 5


def test_singular_hessians_in_single_precision_are_inverted_on_their_range():
    A = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    problem = fl.LinearModel(torch.cat([A, A], 1), torch.sign(A[:, 0] + torch.randn(40, generator=torch.Generator().manual_seed(1))),
                             "logistic")
    for method in (DampedNewton(), AICN(10.0), PreconditionedGD(), KrylovGD()):
        assert fl.solve(problem, method, fl.Budget(steps=10)).status != "failed"
    Q = torch.linalg.qr(A).Q
    SymmetricPolyPrecond((Q * torch.linspace(1, 5, 20)) @ Q.T, 2)


def test_fisher_matrices_of_sums_and_means_are_alike():
    A = torch.randn(200, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    y = torch.sign(A[:, 0] + torch.randn(200, dtype=D, generator=torch.Generator().manual_seed(1)))
    x = torch.zeros(3, dtype=D)
    mean, total = fl.LinearModel(A, y, "logistic"), fl.LinearModel(A, y, "logistic", weights=torch.ones(200, dtype=D))
    source = fl.solvers.descent.Fisher()
    torch.testing.assert_close(source.matrix(total, x), 200 * source.matrix(mean, x))
    rows = mean.per_sample_gradients(x)
    torch.testing.assert_close(source.matrix(mean, x), rows.T @ rows / 200)


def test_a_solved_problem_stays_solved():
    b = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    problem = fl.Smooth(lambda x: x @ x / 2 - b @ x, torch.zeros(3, dtype=D))
    for start in (torch.zeros(3, dtype=D), b):
        result = fl.solve(fl.Smooth(lambda x: x @ x / 2 - b @ x, start), PreconditionedFGM(mu=0.1, degree=1), fl.Budget(steps=1_500))
        assert result.status == "budget"
        torch.testing.assert_close(result.x, b)
    assert fl.solve(problem, PreconditionedGD(degree=7), fl.Budget(steps=50), tol=1e-8).success  # cut to n − 1


def test_tiny_gradients_in_single_precision_do_not_crash():
    result = fl.solve(fl.Smooth(lambda x: (x**4).sum(), torch.ones(2)), TrustRegionCG(), fl.Budget(steps=200))
    assert result.status in ("budget", "converged") and float(result.x.abs().max()) < 1e-6


def test_saddles_are_left_with_products_too():
    saddle = fl.Smooth(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, torch.zeros(2, dtype=D))
    method = Minimizer(CubicNewton(), fl.solvers.descent.Backtracking(), fl.solvers.descent.Products())
    assert float(fl.solve(saddle, method, fl.Budget(steps=50)).x[1].abs()) == pytest.approx(0.5**0.5)


def test_indefinite_matrices_at_the_start_end_a_run_with_a_reason():
    hill = fl.Smooth(lambda x: torch.cos(x).sum() + 0.01 * (x**2).sum(), torch.full((4,), 0.3, dtype=D))
    for method in (PreconditionedGD(), PreconditionedFGM()):
        result = fl.solve(hill, method, fl.Budget(steps=3))
        assert result.status == "failed" and "positive semi-definite" in result.message


def test_krylov_steps_cost_their_products():
    calls = []
    B = LinearOperator((4, 4), lambda v: calls.append(1) or 2 * v + 0.1 * v.flip(0), lambda v: v, dtype=D)
    fl.solve(fl.Smooth(lambda x: (x**2).sum() + x.sum(), torch.arange(4, dtype=D)), KrylovGD(B, 2), fl.Budget(steps=3))
    assert len(calls) <= 3 * 3


def test_given_jacobians_give_the_gradient():
    A = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.5, -1.0]], dtype=D)
    residuals = lambda x: torch.from_numpy(A.numpy() @ x.detach().numpy()) - 1
    problem = fl.LeastSquares(residuals, torch.zeros(2, dtype=D), jacobian=lambda x: A)
    torch.testing.assert_close(problem.gradient(problem.x0), A.T @ residuals(problem.x0))
    assert fl.solve(problem, GradRegNewton("gauss_newton"), fl.Budget(steps=50), tol=1e-8).success


@pytest.mark.parametrize("metric", [torch.tensor([1.0, -1.0, 1.0], dtype=D), torch.zeros(3, dtype=D), torch.ones(3, 4, dtype=D),
                                    -torch.eye(3, dtype=D)])
def test_metrics_that_are_none_are_named(metric):
    with pytest.raises(ValueError, match="metric"):
        GradRegNewton(metric=metric)
    with pytest.raises(ValueError, match="3 variables"):
        fl.solve(bowl(), GradRegNewton(metric=torch.ones(1, dtype=D)), fl.Budget(steps=1))


def test_unknown_matrices_of_the_radius_are_named():
    with pytest.raises(ValueError, match="'exact', 'zero'"):
        gns_radius(bowl(), bowl().x0, "fisher")


def test_gauss_newton_products_of_a_linear_model_are_its_bound():
    A = torch.randn(30, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    problem = fl.LinearModel(A, torch.sign(A[:, 0]), "logistic", ridge=0.1)
    assert fl.solve(problem, TrustRegionCG(hvp="gauss_newton"), fl.Budget(steps=200), tol=1e-8).success
