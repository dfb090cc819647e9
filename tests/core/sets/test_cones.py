"""Cones: nearest points, points along rays, and their derivatives."""

import itertools
import math

import pytest
import torch

from fallline.core.sets import PositiveSemidefinite, SecondOrderCone, along_ray

D = torch.float64


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def symmetric(seed, scale=1.0):
    X = draw(3, 4, 4, seed=seed, scale=scale)
    return X + X.mT


def second_order_members(seed):
    v = draw(3, 4, seed=seed)
    return torch.cat([v.norm(dim=-1, keepdim=True) + draw(3, 1, seed=seed + 9).abs(), v], -1)


CASES = [
    (SecondOrderCone(), lambda seed, scale: draw(3, 5, seed=seed, scale=scale), second_order_members, torch.eye(5, dtype=D)[0]),
    (PositiveSemidefinite(), symmetric, lambda seed: (X := draw(3, 4, 4, seed=seed)) @ X.mT, torch.eye(4, dtype=D)),
]
ids = ["second-order", "semidefinite"]


@pytest.mark.parametrize(("cone", "points", "members", "ray"), CASES, ids=ids)
def test_projections_are_nearest_points(cone, points, members, ray):
    inside = [members(seed) for seed in range(20)] + [torch.zeros_like(members(0))]
    assert all(cone.contains(point) for point in inside)
    for seed, scale in itertools.product(range(10), (0.1, 1.0, 10.0)):
        x = points(seed, scale)
        p = cone.project(x)
        assert cone.contains(p) and abs(float(((x - p) * p).sum())) <= 1e-10 * scale**2
        assert all(float(((x - p) * z).sum()) <= 1e-10 * scale for z in inside)  # x − p in the polar cone
        torch.testing.assert_close(cone.project(p), p, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("cone", "points", "members", "ray"), CASES, ids=ids)
def test_radial_points_are_the_first_on_the_ray(cone, points, members, ray):
    for seed in range(10):
        x = points(seed, 1.0)
        r = cone.radial(x)
        assert cone.contains(r)
        t = ((r - x) * ray).flatten(1).sum(1) / (ray * ray).sum()
        torch.testing.assert_close(r, x + t.reshape(-1, *[1] * (x.ndim - 1)) * ray)
        assert float(t.min()) >= 0
        for row, moved in zip(r, t, strict=True):
            assert float(moved) == 0 or not cone.contains(row - 1e-6 * ray)
        inside = members(seed)
        torch.testing.assert_close(cone.radial(inside), inside, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("cone", "points", "members", "ray"), CASES, ids=ids)
def test_layers_have_the_derivatives_of_their_maps(cone, points, members, ray):
    for layer in (cone.project, cone.radial):
        x = torch.cat([points(3, 1.0), members(4)])
        assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_derivatives_exist_at_repeated_eigenvalues_and_at_zero():
    X = torch.diag(torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=D)).requires_grad_()
    direction = symmetric(1)[0]
    (g,) = torch.autograd.grad((PositiveSemidefinite().project(X) * direction).sum(), X)
    h = 1e-6
    ends = [float((PositiveSemidefinite().project(X.detach() + s * h * direction) * direction).sum()) for s in (1, -1)]
    assert float((g * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)
    for point in (torch.zeros(4), torch.tensor([1.0, 0, 0, 0]), torch.tensor([-1.0, 0, 0, 0])):
        x = point.double().requires_grad_()
        for layer in (SecondOrderCone().project, SecondOrderCone().radial):
            assert torch.isfinite(torch.autograd.grad(layer(x).sum(), x)[0]).all()


def exponential(z):
    """cl {x ≥ y exp(z/y), y > 0}: zero on its boundary, the face y = 0 too."""
    x, y, w = z.unbind(-1)
    good = y > 0
    safe = torch.where(good, y, 1.0)
    above = torch.where(good, safe * torch.exp(w / safe) - x, torch.maximum(w, -x))
    return torch.maximum(above, -y)


def test_any_cone_along_a_ray():
    ray = torch.tensor([math.e, 1.0, 0.0], dtype=D)
    x = torch.cat([draw(6, 3, seed=2), torch.tensor([[4.0, 1.0, 1.0]], dtype=D)])
    assert float(exponential(x[-1])) < 0
    found, outside = along_ray(x, ray, exponential), exponential(x) > 0
    assert 2 <= int(outside.sum()) <= 5
    assert torch.equal(found[~outside], x[~outside]) and float(exponential(found[outside]).abs().max()) <= 1e-9
    assert torch.autograd.gradcheck(lambda p: along_ray(p, ray, exponential), x.requires_grad_())
    with pytest.raises(ValueError, match="must point into the interior"):
        along_ray(x.detach(), -ray, exponential)
    cone = SecondOrderCone()
    x = draw(5, 4, seed=5)
    along = along_ray(x, torch.eye(4, dtype=D)[0], lambda z: cone._violation(z).squeeze(-1))
    torch.testing.assert_close(along, cone.radial(x))


def test_linear_functions_have_a_minimum_over_the_dual_cone_alone():
    for cone, points, members, _ in CASES:
        assert not cone.linear_minimize(members(0)).any()
        with pytest.raises(ValueError, match="unbounded along -g"):
            cone.linear_minimize(-members(0))
        assert float(cone.value(members(1))) == 0 and float(cone.value(points(1, 1.0))) == math.inf
        assert repr(cone) == f"{type(cone).__name__}()"
