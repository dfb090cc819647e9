import math

import pytest
import torch

import fallline as fl
from fallline.equations import Displacement, Halpern, Picard

BOTH = pytest.mark.parametrize("method", [Picard(), Halpern()], ids=repr)


def rotation(angle=0.5, shift=(0.0, 0.0)):
    c, s = math.cos(angle), math.sin(angle)
    A = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return lambda x: A @ x + torch.tensor(shift, dtype=torch.float64)


START = torch.tensor([2.0, 1.0], dtype=torch.float64)


def test_the_iterates_are_their_formulas():
    T = rotation(shift=(1.0, 0.0))
    picard = halpern = START
    for k in range(5):
        picard, halpern = T(picard), START / (k + 2) + (k + 1) / (k + 2) * T(halpern)
    for method, expected in ((Picard(), picard), (Halpern(), halpern)):
        result = fl.solve(fl.FixedPoint(T, START), method, fl.Budget(steps=5))
        torch.testing.assert_close(result.x, expected)
        assert result.counts["maps"] == 6 and result.gap == pytest.approx(float((expected - T(expected)).norm()))


def test_halpern_keeps_its_bound_where_picard_turns_for_ever():
    problem = fl.FixedPoint(rotation(), START)  # x* = 0
    turning, result = (fl.solve(problem, m, fl.Budget(steps=200)) for m in (Picard(), Halpern()))
    assert turning.gap == pytest.approx(float((START - rotation()(START)).norm()))
    assert all(row["gap"] <= 2 * float(START.norm()) / (row["step"] + 1) + 1e-12 for row in result.trace)


@BOTH
def test_estimates_of_a_translation_are_exact(method):
    v = torch.tensor([0.3, -0.4], dtype=torch.float64)
    result = fl.solve(fl.FixedPoint(lambda x: x - v, START), method, fl.Budget(steps=7))
    assert result.status == "budget" and isinstance(result.certificate, Displacement)
    torch.testing.assert_close(result.certificate.residual, v)
    torch.testing.assert_close(result.certificate.normalized, v)
    assert result.certificate.radius == pytest.approx(float((result.x - START).norm()) / 2)
    assert "no fixed point within" in repr(result.certificate)


@BOTH
def test_no_fixed_point_is_nearer_than_the_radius_says(method):
    T = rotation(0.01, shift=(0.0, 1.0))
    fixed = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - torch.stack([T(e) - T(0 * e) for e in torch.eye(2).double()], 1),
                               T(0 * START))
    distance = float((fixed - START).norm())
    radii = []
    fl.solve(fl.FixedPoint(T, START), method, fl.Budget(steps=1000), callback=lambda m: radii.append(m.report.certificate.radius))
    assert 0.6 * distance < max(radii) <= distance * (1 + 1e-12)


@BOTH
def test_a_known_radius_makes_it_a_proof(method):
    v = torch.tensor([0.0, 0.1], dtype=torch.float64)
    result = fl.solve(fl.FixedPoint(lambda x: x - v, START, radius=2.0), method, fl.Budget(steps=1000), tol=1e-6, every=7)
    assert result.status == "failed" and not result.success and "no fixed point within" in result.message
    assert result.certificate.radius > 2.0
    slow = fl.FixedPoint(lambda x: x * (1 - 1e-4), START, radius=2.3)  # at 0, √5 away
    assert fl.solve(slow, method, fl.Budget(steps=4096), tol=1e-9).status == "budget"


@BOTH
def test_an_expansive_map_is_an_error(method):
    with pytest.raises(ValueError, match=r"T must be nonexpansive .* that are .* apart"):
        fl.solve(fl.FixedPoint(lambda x: 1.01 * x + 1, START), method, fl.Budget(steps=10))


def test_a_map_may_be_nonexpansive_in_another_norm():
    A = torch.tensor([[0.0, 3.0], [0.0, 0.5]], dtype=torch.float64)  # stretches the second axis in the Euclidean norm
    problem = fl.FixedPoint(lambda x: A @ x, START, norm=lambda x: (x[0] ** 2 / 100 + x[1] ** 2).sqrt())
    assert fl.solve(problem, Picard(), fl.Budget(steps=200), tol=1e-12).success
    along = torch.linalg.solve(A - torch.eye(2).double(), torch.tensor([0.0, 1.0]).double())  # the first step is along that axis
    with pytest.raises(ValueError, match="give FixedPoint its norm"):
        fl.solve(fl.FixedPoint(lambda x: A @ x, along), Picard(), fl.Budget(steps=200))


def test_single_precision_is_not_taken_for_an_expansion():
    problem = fl.FixedPoint(lambda x: rotation(2.0)(x.double()).float(), START.float() * 1e3)
    assert fl.solve(problem, Picard(), fl.Budget(steps=500)).status == "budget"


@BOTH
def test_a_fixed_point_at_the_very_radius_is_not_ruled_out_by_rounding(method):
    for seed in range(30):
        c, x0 = torch.randn(2, 5, dtype=torch.float64, generator=fl.Key(seed).fold("radius").generator())
        problem = fl.FixedPoint(lambda x, c=c: 2 * c - x, x0, radius=float((c - x0).norm()))
        assert fl.solve(problem, method, fl.Budget(steps=64), tol=1e-12).status != "failed"
