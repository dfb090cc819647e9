import math

import pytest
import torch

import fallline as fl
from fallline.core import sets
from fallline.equations import Displacement, Halpern, Picard
from fallline.solvers import Feasibility, Separation

BOTH = pytest.mark.parametrize("method", [Picard(), Halpern()], ids=repr)
START = torch.tensor([3.0, -2.0], dtype=torch.float64)


def ball(x, y, radius=1.0):
    centre = torch.tensor([x, y], dtype=torch.float64)
    return lambda z: centre + (z - centre) * min(1.0, radius / max(float((z - centre).norm()), 1e-300))


def half_plane(angle, bound):
    n = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    return lambda z: z - n * max(0.0, float(n @ z) - bound)


def solve(A, B, method, steps=20_000, tol=1e-8, **options):
    return fl.solve(Feasibility(A, B, START, **options), method, fl.Budget(steps=steps), tol=tol, every=16)


def test_the_map_is_douglas_rachford():
    A, B = ball(0, 0), half_plane(0.3, -0.2)
    reflected = 2 * A(START) - START
    expected = (START + 2 * B(reflected) - reflected) / 2  # (I + R_B R_A)/2
    torch.testing.assert_close(Feasibility(A, B, START).map(START), expected)


@pytest.mark.parametrize(("A", "B", "gap"), [
    (ball(0, 0), ball(3, 0), 1.0),
    (half_plane(0.4, -1), half_plane(0.4 + math.pi, -1), 2.0),
    (sets.Box(-1.0, 1.0), half_plane(math.atan2(0.8, 0.6), -2.0), 0.6),
    (sets.L2Ball(1.0), sets.Box(torch.tensor([2.0, 0.0]), torch.tensor([5.0, math.inf])), 1.0),
])
@BOTH
def test_disjoint_sets_end_with_a_hyperplane_between_them(A, B, gap, method):
    result = solve(A, B, method, tol=1e-3)
    assert result.status == "failed" and result.message.startswith("infeasible") and isinstance(result.certificate, Separation)
    found = result.certificate
    assert float(found.normal.norm()) == pytest.approx(1) and 0 < found.gap <= gap + 1e-6 and found.radius > 1e7
    project = [getattr(each, "project", each) for each in (A, B)]
    generator = fl.Key(0).generator()
    points = [START + 10 * torch.randn(2, dtype=torch.float64, generator=generator) for _ in range(200)]
    nearest, furthest = (pick(float(found.normal @ p(z)) for z in points) for pick, p in zip((min, max), project, strict=True))
    assert nearest > furthest  # A lies wholly above B along the normal


@BOTH
def test_a_common_point_is_found(method):
    A, B = ball(0, 0), ball(1.5, 0)
    problem = Feasibility(A, B, START)
    result = fl.solve(problem, method, fl.Budget(steps=5_000), tol=1e-3)
    point = problem.point(result.x)
    assert result.success and float((point - B(point)).norm()) <= 1e-3 and float((point - A(point)).norm()) <= 1e-12


@pytest.mark.parametrize(("A", "B"), [
    (ball(0, 0), ball(2, 0)),  # touch
    (ball(0, 0), ball(2 - 1e-7, 0)),
    (half_plane(0.0, 0.0), half_plane(math.pi - 1e-6, -1.0)),  # meet a million away
    (ball(0, 0), lambda z: torch.stack([z[0], torch.ones((), dtype=z.dtype)])),  # a tangent
])
@BOTH
def test_sets_that_barely_meet_are_never_called_infeasible(A, B, method):
    assert solve(A, B, method, steps=3_000, tol=1e-13).status != "failed"


def test_a_gap_below_the_tolerance_of_the_proof_ends_no_run():
    assert solve(ball(0, 0), ball(2 + 1e-9, 0), Picard(), steps=500, tol=None).status == "budget"


def test_a_known_radius_is_enough_where_projections_say_little():
    angle = 1e-3  # lines that meet far away
    line = lambda a, h: (lambda z: (lambda d: d * (z[0] * d[0] + (z[1] - h) * d[1]) + torch.tensor([0.0, h]).double())(
        torch.tensor([math.cos(a), math.sin(a)]).double()))
    A, B = line(0.0, 0.0), line(angle, 1.0)  # at x = −1000
    unknown, near, far = (solve(A, B, Halpern(), steps=4_100, tol=1e-12, radius=radius) for radius in (None, 100.0, 1_010.0))
    assert unknown.status == far.status == "budget" and isinstance(unknown.certificate, Displacement)
    assert near.status == "failed" and near.certificate.radius > 100 and not near.success


def test_matrices_are_points_too():
    start = torch.full((2, 2), 3.0, dtype=torch.float64)
    assert fl.solve(Feasibility(sets.L2Ball(1.0), sets.Box(2.0, 3.0), start), Halpern(), fl.Budget(steps=100)).status == "failed"


def test_bad_input():
    with pytest.raises(TypeError, match=r"B must be a set with project\(x\)"):
        Feasibility(sets.Box(0.0, 1.0), 3, START)


@BOTH
def test_a_radius_that_holds_a_far_common_point_is_believed(method):
    """Two lines through (0, 0) and (0, 1) that meet 1e9 away."""
    one, start = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    other = torch.tensor([math.cos(1e-9), math.sin(1e-9)], dtype=torch.float64)

    def run(radius):
        problem = Feasibility(lambda x: one * (one @ x), lambda x: start + other * (other @ (x - start)), 0 * one, radius=radius)
        return fl.solve(problem, method, fl.Budget(steps=200), tol=1e-9)

    assert run(None).status == "failed" and run(1e12).status != "failed"
