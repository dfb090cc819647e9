"""The fit of curvature and noise against the gradient's size, on functions whose constants are known."""

import pytest
import torch
from torch import nn

import fallline as fl
from fallline.core.errors import MissingOracle
from fallline.optim import fit_generalized_smoothness


def trajectory(d=6, count=12):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(d, dtype=torch.float64, generator=generator) for scale in torch.linspace(0.1, 4, count)]


def test_a_quadratic_has_constant_curvature():
    l0, l1, *_ = fit_generalized_smoothness(fl.Smooth(lambda x: 1.5 * (x**2).sum(), torch.zeros(6, dtype=torch.float64)), trajectory())
    assert l0 == pytest.approx(3.0)
    assert l1 == pytest.approx(0.0, abs=1e-10)


def test_an_exponential_is_smooth_in_proportion_to_its_gradient():
    # f = Σ cosh(2 x) / 4: f' = sinh(2 x) / 2 and f'' = cosh(2 x), within [2 |f'|, 1 + 2 |f'|].
    problem = fl.Smooth(lambda x: torch.cosh(2 * x).sum() / 4, torch.zeros(6, dtype=torch.float64))
    l0, l1, *_ = fit_generalized_smoothness(problem, trajectory())
    assert l1 == pytest.approx(2.0, rel=0.1)
    assert 0.2 <= l0 <= 1


def test_a_quartic_s_curvature_grows_with_its_gradient():
    points = trajectory()
    l0, l1, *_ = fit_generalized_smoothness(fl.Smooth(lambda x: (x**4).sum() / 4, points[0]), points)
    assert l0 > 1 and l1 > 0.2
    for x in (1.5, 2.0, 3.0):  # a line through 3 |f'|^(2/3)
        assert l0 + l1 * x**3 == pytest.approx(3 * x**2, rel=0.5)


def test_row_norms_of_a_dense_hessian():
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    H = rotation @ torch.diag(torch.tensor([2.0, 2, 2, -2, -2, -2], dtype=torch.float64)) @ rotation.T  # H² = 4 I: rows of norm 2
    found = fit_generalized_smoothness(fl.Smooth(lambda x: x @ H @ x / 2, torch.zeros(6, dtype=torch.float64)), trajectory(),
                                       probes=500)
    assert found[:2] == pytest.approx((2.0, 0.0), abs=0.1)


def test_variables_without_effect_are_left_out():
    l0, l1, *_ = fit_generalized_smoothness(fl.Smooth(lambda x: (x[:3]**2).sum(), torch.zeros(6, dtype=torch.float64)), trajectory())
    assert (l0, l1) == pytest.approx((2.0, 0.0), abs=1e-10)


def affine_noise(points, additive, multiplicative):
    """Samples of ∇(x⁴/4) (1 + ξ) + ξ' with ξ, ξ' = ± their deviations, all four signs alike."""
    noise = torch.tensor([[a * multiplicative, b * additive] for a in (-1, 1) for b in (-1, 1)], dtype=torch.float64)
    return fl.FiniteSum(lambda x, z: (x**4 / 4 * (1 + z[:, :1]) + z[:, 1:] * x).sum(1).mean(), noise, points[0])


@pytest.mark.parametrize(("additive", "multiplicative"), [(0.5, 0.0), (0.0, 2.0), (1.0, 0.7)])
def test_affine_noise_is_recovered(additive, multiplicative):
    points = trajectory()
    *_, d0, d1 = fit_generalized_smoothness(affine_noise(points, additive, multiplicative), points, samples=20_000)
    assert d0 == pytest.approx(additive**2, abs=0.05)
    assert d1 == pytest.approx(1 + multiplicative**2, rel=0.03)


def test_exact_gradients_have_no_noise():
    found = fit_generalized_smoothness(fl.Smooth(lambda x: (x**2).sum(), torch.ones(3)), [torch.ones(3)])
    assert (found.D0, found.D1) == (0.0, 1.0)


def test_a_network_and_what_the_result_says():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 3, generator=generator), torch.randn(40, 1, generator=generator)
    problem = fl.Training(model, nn.functional.mse_loss, data, batch_size=8)
    found = fit_generalized_smoothness(problem, [problem.x0, {name: 2 * p for name, p in problem.x0.items()}], samples=16)
    assert min(found) >= 0 and found.D0 + found.D1 > 0 and found.L0 + found.L1 > 0
    assert found == fit_generalized_smoothness(problem, [problem.x0, {name: 2 * p for name, p in problem.x0.items()}], samples=16)
    assert f"{found.L1:.3g} |∂f|" in repr(found)


def test_what_it_refuses():
    x = torch.ones(3)
    problem = fl.Smooth(lambda x: (x**4).sum(), x)
    with pytest.raises(ValueError, match="points must be"):
        fit_generalized_smoothness(problem, [])
    with pytest.raises(ValueError, match=r"points\[1\]"):
        fit_generalized_smoothness(problem, [x, torch.ones(4)])
    with pytest.raises(ValueError, match="probes must be"):
        fit_generalized_smoothness(problem, [x], probes=0)
    with pytest.raises(ValueError, match="finite"):
        fit_generalized_smoothness(problem, [torch.full((3,), torch.inf)])
    with pytest.raises(MissingOracle, match="gradient"):
        fit_generalized_smoothness(fl.BlackBox(lambda x: x.sum(), x), [x])
