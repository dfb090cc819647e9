import math

import numpy as np
import pytest
import scipy.optimize
import torch

import fallline as fl
from fallline.core import tree
from fallline.core.composite_loss import CompositeLoss
from fallline.core.errors import MissingOracle
from fallline.core.terms import L1, SquaredL2
from fallline.problems.weakly_convex import robust_phase_retrieval
from fallline.solvers.model_based import Clipped, StochasticModel, moreau_grad_norm


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic(outer="abs", batch_size=1, k=(), term=None, d=4, **options):
    """Residuals (aᵀx)² − 1, k of them a row."""
    loss = CompositeLoss(outer, lambda x, a: (a @ x) ** 2 - 1, normal(30, *k, d), normal(d, seed=1), batch_size=batch_size, **options)
    return loss, fl.Composite(loss, term) if term else loss


def samples(key, steps):
    """The measurement vector of every step."""
    return [normal(30, 4)[torch.randint(30, (1,), generator=key.fold(t).generator())[0]] for t in range(steps)]


def test_every_model_is_its_formula_on_phase_retrieval():
    soft = lambda x, t: x.sign() * (x.abs() - t).clamp(min=0)
    for model in ("subgradient", "clipped", "prox_linear"):
        for weight in (0.0, 0.05) if model == "subgradient" else (0.0,):
            for decay in (0.0, 0.5):
                _, problem = quadratic(term=L1(weight) if weight else None)
                method = StochasticModel(model, alpha=0.05, decay=decay)
                state, x = method.init(problem, fl.Key(2)), problem.x0
                for t, a in enumerate(samples(fl.Key(2), 20)):
                    state = method.step(problem, state)
                    alpha = 0.05 / (t + 1) ** decay
                    c, slope = (a @ x) ** 2 - 1, 2 * (a @ x) * a
                    if model == "subgradient":
                        x = soft(x - alpha * c.sign() * slope, alpha * weight)
                    elif model == "clipped":  # Polyak's step, and no longer than the subgradient's
                        x = x - (c.abs() / (slope @ slope)).clamp(max=alpha) * c.sign() * slope
                    else:
                        x = x - (c / (slope @ slope)).clamp(-alpha, alpha) * slope
                    torch.testing.assert_close(state["x"], x, rtol=1e-10, atol=1e-12)


def test_the_default_step_decays_like_one_over_the_root_of_t_and_takes_any_gradient():
    problem = fl.Smooth(lambda x: (x**2).sum() / 2, torch.ones(2, dtype=torch.float64))
    x = problem.x0
    for t in range(20):
        x = x - 0.1 / math.sqrt(t + 1) * x
    torch.testing.assert_close(fl.solve(problem, StochasticModel(), fl.Budget(steps=20)).x, x, rtol=1e-12, atol=0)


def test_the_clipped_model_never_goes_below_its_bound():
    problem = fl.Smooth(lambda x: (x**2).sum() + 3, torch.tensor([2.0], dtype=torch.float64))
    step = lambda model: float(fl.solve(problem, StochasticModel(model, alpha=1e6, decay=0.0), fl.Budget(steps=1)).x)
    assert step(Clipped(lower=3.0)) == pytest.approx(1.0) and step("clipped") == pytest.approx(0.25)


def minimiser(drawn, x, alpha, outer, weight=0.0, square=0.0):
    """The model's minimiser by a solver for smooth constrained problems: s_i ≥ the pieces of h, y = p − n."""
    c, J = (each.numpy() for each in drawn.linearization(x))
    d, rows, at = len(x), drawn.samples, x.numpy()
    k = len(c) // rows
    slopes = {"abs": (-1, 1), "l1": (-1, 1), "hinge": (0, 1), "max": (1,)}[outer]
    count = rows if outer == "max" else len(c)
    owner = np.kron(np.eye(rows), np.ones((k, 1))) if outer == "max" else np.eye(len(c))
    sides = np.concatenate([np.hstack([-e * J, e * J, owner]) for e in slopes])
    bounds = np.concatenate([e * (c - J @ at) for e in slopes])

    def value(z):
        y, s = z[:d] - z[d:2 * d], z[2 * d:]
        g = (y - at) / alpha + square * y
        total = s.sum() / rows + weight * z[:2 * d].sum() + (y - at) @ (y - at) / (2 * alpha) + square / 2 * y @ y
        return total, np.concatenate([g + weight, weight - g, np.full(count, 1 / rows)])

    first = np.concatenate([at.clip(0), (-at).clip(0), np.full(count, np.abs(c).max() + 0.1)])
    found = scipy.optimize.minimize(value, first, jac=True, method="SLSQP", options={"ftol": 1e-16, "maxiter": 5_000},
                                    bounds=[(0, None)] * (2 * d) + [(None, None)] * count,
                                    constraints={"type": "ineq", "fun": lambda z: sides @ z - bounds, "jac": lambda z: sides})
    return torch.from_numpy(found.x[:d] - found.x[d:2 * d])


@pytest.mark.parametrize("outer, k", [("abs", ()), ("hinge", ()), ("max", ()), ("l1", (3,)), ("max", (3,)), ("hinge", (2,))])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("term", [None, L1(0.1), SquaredL2(0.5)])
def test_prox_linear_minimises_its_model(outer, k, batch, term):
    for alpha in (0.03, 0.4):
        loss, problem = quadratic(outer, batch, k, term)
        method = StochasticModel("prox_linear", alpha=alpha)
        state = method.init(problem, fl.Key(5))
        drawn = loss.draw(state["key"].fold(0))
        weights = {"weight": 0.1} if isinstance(term, L1) else {"square": 0.5} if term else {}
        expected = minimiser(drawn, problem.x0, alpha, outer, **weights)
        torch.testing.assert_close(method.step(problem, state)["x"], expected, rtol=0, atol=1e-6)


def test_a_zero_slope_moves_nothing():
    loss = CompositeLoss("abs", lambda x, a: (a @ x) ** 2 - 1, normal(3, 2), torch.zeros(2, dtype=torch.float64))
    for model in ("subgradient", "clipped", "prox_linear"):
        assert torch.equal(fl.solve(loss, StochasticModel(model), fl.Budget(steps=2)).x, loss.x0)


def test_trees_and_single_precision():
    data = normal(40, 4).float(), normal(40, seed=1).float().abs()

    def inner(x, a, b):
        return (a @ torch.cat([x["u"], x["v"]])) ** 2 - b

    x0 = {"u": torch.ones(2), "v": torch.full((2,), 0.5)}
    for term in (None, L1(0.01)):
        loss = CompositeLoss("abs", inner, data, x0, batch_size=2)
        problem = fl.Composite(loss, term) if term else loss
        for model in ("subgradient", "clipped", "prox_linear"):
            x = fl.solve(problem, StochasticModel(model), fl.Budget(steps=20)).x
            assert x["u"].dtype == torch.float32 and float(problem.value(x)) < float(problem.value(x0))
        assert moreau_grad_norm(problem, x, 0.05) > 0


@pytest.mark.parametrize("model, alpha, error", [("prox_point", 1.0, 1e-6), ("prox_linear", 0.1, 1e-6), ("clipped", 0.1, 1e-6),
                                                 ("subgradient", 0.01, 1.0)])
def test_phase_retrieval_is_solved_at_a_step_that_suits(model, alpha, error):
    problem = robust_phase_retrieval(0)
    result = fl.solve(problem, StochasticModel(model, alpha=alpha, decay=0.0), fl.Budget(steps=2_000))
    assert problem.observe(result.x)["error"] < error


def test_a_random_output_is_a_point_of_the_run_drawn_in_proportion_to_the_steps():
    problem = fl.Smooth(lambda x: x.sum(), torch.zeros(1, dtype=torch.float64))
    seen = []
    for key in range(300):
        x = float(fl.solve(problem, StochasticModel(alpha=1.0, decay=1.0, output="random"), fl.Budget(steps=3), key=key).x)
        seen.append([0.0, -1.0, -1.5].index(pytest.approx(x)))
    shares = np.bincount(seen, minlength=3) / 300  # 1 : 1/2 : 1/3
    np.testing.assert_allclose(shares, [6 / 11, 3 / 11, 2 / 11], atol=0.09)


def test_the_moreau_certificate_is_that_of_known_functions():
    # φ = |x|: the proximal point is soft thresholding.
    loss = CompositeLoss("abs", lambda x, a: a @ x, torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    for x, expected in ((3.0, 1.0), (0.2, 0.4), (0.0, 0.0)):
        assert moreau_grad_norm(loss, torch.tensor([x], dtype=torch.float64), 0.5) == pytest.approx(expected, abs=1e-6)
    # φ = |x² − 1| + |x|/2 against a search.
    problem = fl.Composite(CompositeLoss("abs", lambda x, a: (a @ x) ** 2 - 1, torch.eye(1, dtype=torch.float64),
                                         torch.zeros(1, dtype=torch.float64)), L1(0.5))
    grid = np.linspace(-3, 3, 2_000_001)
    for x, lam in ((1.7, 0.2), (0.4, 0.3), (-1.05, 0.45)):
        best = grid[np.argmin(np.abs(grid**2 - 1) + np.abs(grid) / 2 + (grid - x) ** 2 / (2 * lam))]
        found = moreau_grad_norm(problem, torch.tensor([x], dtype=torch.float64), lam)
        assert found == pytest.approx(abs(x - best) / lam, abs=5e-5)


def test_the_moreau_certificate_is_exact_in_many_dimensions_and_counts_nothing():
    problem = robust_phase_retrieval(2, d=5, m=15, noise=0.3)
    lam, x = 0.6 / problem.facts["weak_convexity"], normal(5)
    found = moreau_grad_norm(problem, x, lam)

    def objective(y):
        return float(problem.value(torch.from_numpy(y))) + (y - x.numpy()) @ (y - x.numpy()) / (2 * lam)

    assert not problem.counts
    best = scipy.optimize.minimize(objective, x.numpy(), method="Nelder-Mead",
                                   options={"maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-13, "adaptive": True})
    assert found == pytest.approx(float(np.linalg.norm(best.x - x.numpy())) / lam, rel=1e-4)
    assert moreau_grad_norm(robust_phase_retrieval(2), robust_phase_retrieval(2).facts["solution"], 0.05) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("options, message", [({"model": "quadratic"}, "model must be one of"), ({"alpha": 0.0}, "alpha must"),
                                              ({"decay": -1.0}, "decay must"), ({"output": "mean"}, "output must"),
                                              ({"alpha": math.inf}, "alpha must"), ({"model": ["clipped"]}, "model must")])
def test_bad_input_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        StochasticModel(**options)


def test_what_a_model_needs_is_asked_at_the_door():
    smooth = fl.Smooth(lambda x: (x**2).sum(), torch.ones(2))
    budget = fl.Budget(steps=1)
    with pytest.raises(MissingOracle, match=r"prox_linear.*linearization.*CompositeLoss"):
        fl.solve(smooth, StochasticModel("prox_linear"), budget)
    with pytest.raises(MissingOracle, match=r"prox_point.*proximal_point"):
        fl.solve(quadratic()[1], StochasticModel("prox_point"), budget)
    with pytest.raises(MissingOracle, match=r"prox_point.*one data point"):
        fl.solve(robust_phase_retrieval(0), StochasticModel("prox_point", batch_size=2), budget)
    with pytest.raises(MissingOracle, match="takes no regularizer"):
        fl.solve(fl.Composite(robust_phase_retrieval(0), L1(0.1)), StochasticModel("prox_point"), budget)
    with pytest.raises(MissingOracle, match="moreau_grad_norm needs"):
        moreau_grad_norm(smooth, smooth.x0, 0.1)
    for lam in (0.0, 1.0):
        with pytest.raises(ValueError, match="lam must be a positive number below"):
            moreau_grad_norm(robust_phase_retrieval(0), robust_phase_retrieval(0).x0, lam)


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    method = StochasticModel("prox_linear", output="random")
    whole = fl.solve(robust_phase_retrieval(0), method, fl.Budget(steps=20), key=1)
    fl.solve(robust_phase_retrieval(0), method, fl.Budget(steps=7), key=1, checkpoint=tmp_path / "c")
    rest = fl.solve(robust_phase_retrieval(0), method, fl.Budget(steps=20), key=1, checkpoint=tmp_path / "c")
    assert torch.equal(tree.flatten(whole.x), tree.flatten(rest.x))
