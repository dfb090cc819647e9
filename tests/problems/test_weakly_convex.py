import numpy as np
import pytest
import torch

import fallline as fl
from fallline.problems.weakly_convex import (
    absolute_regression,
    bilinear_proximal_point,
    blind_deconvolution,
    linear_proximal_point,
    phase_proximal_point,
    robust_phase_retrieval,
)
from fallline.solvers.model_based import StochasticModel


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [0.01, 0.3, 10.0])
@pytest.mark.parametrize("b", [-0.5, 0.0, 0.2, 3.0])
def test_the_proximal_point_of_phase_retrieval_beats_a_fine_search_along_its_line(seed, step, b):
    x, a = normal(4, seed=seed), normal(4, seed=seed + 10)
    target = torch.tensor(b, dtype=torch.float64)

    def objective(t):
        return ((a @ x + t * (a @ a)) ** 2 - b).abs() + t**2 * (a @ a) / (2 * step)

    found = phase_proximal_point(x, step, a, target)
    t = (found - x) @ a / (a @ a)
    torch.testing.assert_close(found, x + t * a, rtol=0, atol=1e-12)
    assert float(objective(t)) <= float(objective(torch.linspace(-6, 6, 200_001, dtype=torch.float64)).min()) + 1e-12


def test_the_proximal_point_of_phase_retrieval_at_its_singular_cases():
    x, a = normal(3), normal(3, seed=1)
    one = torch.tensor(1.0, dtype=torch.float64)
    assert torch.isfinite(phase_proximal_point(x, 1 / (2 * float(a @ a)), a, one)).all()  # 1 − 2α‖a‖² = 0
    assert torch.equal(phase_proximal_point(x, 0.1, torch.zeros_like(a), one), x)
    across = x - (a @ x) / (a @ a) * a  # s = 0, where the gradient vanishes
    assert float(((a @ phase_proximal_point(across, 10.0, a, one)) ** 2 - 1).abs()) < 1e-12
    points, steps = normal(2, 5, 3), torch.tensor([[0.1], [3.0]], dtype=torch.float64)
    many = phase_proximal_point(points, steps, a, one)
    torch.testing.assert_close(many[1, 2], phase_proximal_point(points[1, 2], 3.0, a, one))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("step", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("b", [-1.0, 0.0, 2.0])
def test_the_bilinear_proximal_point_beats_a_search_in_its_plane(seed, step, b):
    z, u, v = {"x": normal(3, seed=seed), "y": normal(2, seed=seed + 20)}, normal(3, seed=seed + 40), normal(2, seed=seed + 60)
    found = bilinear_proximal_point(z, step, u, v, torch.tensor(b, dtype=torch.float64))
    p, q, uu, vv = float(u @ z["x"]), float(v @ z["y"]), float(u @ u), float(v @ v)

    def objective(s, t):
        return np.abs((p + s * uu) * (q + t * vv) - b) + (s**2 * uu + t**2 * vv) / (2 * step)

    s, t = float((found["x"] - z["x"]) @ u) / uu, float((found["y"] - z["y"]) @ v) / vv
    torch.testing.assert_close(found, {"x": z["x"] + s * u, "y": z["y"] + t * v}, rtol=0, atol=1e-12)
    grid = np.linspace(-5, 5, 1001)
    assert objective(s, t) <= objective(grid[:, None], grid[None]).min() + 1e-12


@pytest.mark.parametrize("step", [0.01, 0.3, 10.0])
@pytest.mark.parametrize("b", [-3.0, 0.0, 2.0])
def test_the_proximal_point_of_a_linear_measurement_beats_a_fine_search_along_its_line(step, b):
    x, a = normal(4), normal(4, seed=1)
    found = linear_proximal_point(x, step, a, torch.tensor(b, dtype=torch.float64))

    def objective(t):
        return (a @ x + t * (a @ a) - b).abs() + t**2 * (a @ a) / (2 * step)

    t = (found - x) @ a / (a @ a)
    torch.testing.assert_close(found, x + t * a, rtol=0, atol=1e-12)
    assert float(objective(t)) <= float(objective(torch.linspace(-11, 11, 200_001, dtype=torch.float64)).min()) + 1e-12
    assert torch.equal(linear_proximal_point(x, step, 0 * a, torch.tensor(b)), x)


@pytest.mark.parametrize("model", ["subgradient", "clipped", "prox_linear", "prox_point"])
def test_absolute_regression_is_solved_by_every_model(model):
    problem = absolute_regression(1)
    assert problem.observe(problem.facts["solution"]) == pytest.approx({"value": 0, "error": 0}, abs=1e-12)
    result = fl.solve(problem, StochasticModel(model, alpha=0.1), problem.budget)
    assert problem.observe(result.x)["error"] < 0.1


@pytest.mark.parametrize("make", [absolute_regression, robust_phase_retrieval, blind_deconvolution])
def test_ready_problems_are_what_they_say(make):
    problem = make(3)
    assert torch.equal(make(3).value(problem.x0), problem.value(problem.x0)) and problem.draw(fl.Key()).samples == 1
    assert problem.observe(problem.x0)["error"] > 0.1 and problem.facts["best_value"] == 0
    noisy = make(3, noise=0.1, corrupted=0.2)
    assert "best_value" not in noisy.facts
    with pytest.raises(ValueError, match="noise must"):
        make(0, noise=-1.0)
    with pytest.raises(ValueError, match="corrupted must"):
        make(0, corrupted=1.0)


def test_phase_retrieval_knows_its_solution_up_to_sign_and_its_weak_convexity():
    problem = robust_phase_retrieval(1)
    truth, rho = problem.facts["solution"], problem.facts["weak_convexity"]
    for sign in (1, -1):
        assert problem.observe(sign * truth) == pytest.approx({"value": 0, "error": 0}, abs=1e-12)
    for seed in range(20):
        x, y = normal(20, seed=seed), normal(20, seed=seed + 100)
        convex = lambda z: float(problem.value(z) + rho / 2 * z @ z)
        assert convex((x + y) / 2) <= (convex(x) + convex(y)) / 2 + 1e-12
