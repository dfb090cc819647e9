"""Every set's projection and linear minimisation against their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fallline.core.sets import Birkhoff, Box, L1Ball, L2Ball, LInfBall, NonNegative, NuclearBall, Set, Simplex

BOUNDED = [
    Box(-0.5, 1.5),
    Box(torch.linspace(-1, 0, 4).double(), torch.linspace(0, 2, 4).double()),
    LInfBall(0.7),
    Simplex(),
    Simplex(2.5, dim=-2),
    Simplex(1.5, dim=None),
    L1Ball(1.2),
    L1Ball(0.8, dim=0),
    L1Ball(2.0, dim=None),
    L2Ball(0.9),
    L2Ball(1.7, dim=None),
    L2Ball(1.7, dim=(-2, -1)),
    NuclearBall(1.6),
]
SETS = [*BOUNDED, NonNegative(), Box(-math.inf, 0.3)]
names = [f"{number}-{each!r}" for number, each in enumerate(SETS)]
SHAPE = (3, 4)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def members(each: Set, count: int) -> list[torch.Tensor]:
    """Points of the set that do not come from ``project``: convex combinations of vertices and scaled-down points."""
    if each in BOUNDED:
        vertices = [each.linear_minimize(draw(*SHAPE, seed=seed)) for seed in range(count)]
        mixes = [torch.softmax(3 * draw(count, seed=50 + seed), 0) for seed in range(count)]
        return vertices + [sum(w * v for w, v in zip(mix, vertices, strict=True)) for mix in mixes]
    sign = 1.0 if isinstance(each, NonNegative) else -1.0
    return [sign * draw(*SHAPE, seed=seed).abs() for seed in range(count)]


@pytest.mark.parametrize("each", SETS, ids=names)
def test_projection_is_the_nearest_point(each: Set) -> None:
    points = members(each, 20)
    assert all(each.contains(point) for point in points)
    for seed, scale in itertools.product(range(10), (0.1, 1.0, 10.0)):
        x = draw(*SHAPE, seed=100 + seed, scale=scale)
        p = each.project(x)
        assert each.contains(p)
        # p is the nearest point of a convex set exactly when <x - p, z - p> <= 0 for all z in it
        assert all(float(((x - p) * (z - p)).sum()) <= 1e-10 * scale for z in points)
        assert all(float(((x - p) * (each.project(p + e) - p)).sum()) <= 1e-10 * scale for e in (0.1 * x, -0.1 * x))
        torch.testing.assert_close(each.project(p), p, atol=1e-12, rtol=0)
        torch.testing.assert_close(each.prox(x, 0.3), p)


@pytest.mark.parametrize("each", SETS, ids=names)
def test_members_are_their_own_projection(each: Set) -> None:
    for point in members(each, 5):
        torch.testing.assert_close(each.project(point), point, atol=1e-12, rtol=0)


@pytest.mark.parametrize("each", BOUNDED, ids=names[: len(BOUNDED)])
def test_linear_minimisation_beats_every_member(each: Set) -> None:
    for seed in range(10):
        g = draw(*SHAPE, seed=200 + seed)
        s = each.linear_minimize(g)
        assert each.contains(s)
        least = float((g * s).sum())
        assert all(float((g * z).sum()) >= least - 1e-12 for z in members(each, 20))
        # <g, s> is also the limit of projections of -t g for t -> infinity
        assert float((g * each.project(-1e7 * g)).sum()) == pytest.approx(least, rel=1e-5)


def test_linear_minimisation_values_in_closed_form() -> None:
    g = torch.tensor([[3.0, -4.0, 1.0], [0.5, 2.0, 0.1]]).double()
    for each, expected in [
        (Box(-1.0, 2.0), -3 - 8 - 1 - 0.5 - 2 - 0.1),
        (Simplex(2.0), 2 * (-4.0 + 0.1)),
        (L1Ball(2.0), -2 * (4.0 + 2.0)),
        (L1Ball(2.0, dim=None), -8.0),
        (L2Ball(2.0), -2 * float(g.norm(dim=-1).sum())),
        (L2Ball(2.0, dim=None), -2 * float(g.norm())),
        (LInfBall(2.0), -2 * float(g.abs().sum())),
        (NuclearBall(2.0), -2 * float(torch.linalg.matrix_norm(g, 2))),
    ]:
        assert float((g * each.linear_minimize(g)).sum()) == pytest.approx(expected)
    assert torch.equal(Simplex().linear_minimize(g), torch.tensor([[0.0, 1, 0], [0, 0, 1]]).double())
    assert torch.equal(L1Ball().linear_minimize(g), torch.tensor([[0.0, 1, 0], [0, -1, 0]]).double())


def test_simplex_projection_in_closed_form() -> None:
    x = torch.tensor([[0.5, 0.8, -3.0], [10.0, 0.0, 0.0], [0.2, 0.2, 0.2]]).double()
    expected = torch.tensor([[0.35, 0.65, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]).double()
    torch.testing.assert_close(Simplex().project(x), expected)
    torch.testing.assert_close(L1Ball().project(-x[0]), torch.tensor([-0.0, -0.0, 1.0]).double())


def test_nuclear_projection_acts_on_singular_values() -> None:
    U, V = (torch.linalg.qr(draw(5, 3, seed=seed)).Q for seed in (1, 2))
    X = U @ torch.diag(torch.tensor([3.0, 2.0, 0.1]).double()) @ V.mT
    expected = U @ torch.diag(torch.tensor([1.5, 0.5, 0.0]).double()) @ V.mT
    torch.testing.assert_close(NuclearBall(2.0).project(X), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(300, 280), (280, 300), (7, 3), (3, 7), (2, 4, 5)])
def test_nuclear_vertex_has_rank_one_and_reaches_the_spectral_norm(shape: tuple[int, ...]) -> None:
    g = draw(*shape) * 1e-160
    s = NuclearBall(2.0).linear_minimize(g)
    sigma = torch.linalg.svdvals(s)
    torch.testing.assert_close(sigma[..., 0], torch.full_like(sigma[..., 0], 2.0))
    assert float(sigma[..., 1:].max()) < 1e-10
    reached = (g * 1e160 * s).sum(dim=(-2, -1))
    torch.testing.assert_close(reached, -2 * torch.linalg.matrix_norm(g * 1e160, 2), rtol=1e-9, atol=0)
    assert torch.equal(s, NuclearBall(2.0).linear_minimize(g))


@pytest.mark.parametrize("each", BOUNDED, ids=names[: len(BOUNDED)])
def test_zero_gradient_gives_a_member(each: Set) -> None:
    s = each.linear_minimize(torch.zeros(SHAPE, dtype=torch.float64))
    assert torch.isfinite(s).all() and each.contains(s)


def test_unbounded_linear_functions_are_refused() -> None:
    assert torch.equal(NonNegative().linear_minimize(torch.tensor([1.0, 0.0])), torch.zeros(2))
    with pytest.raises(ValueError, match=r"NonNegative\(\) is unbounded along -g"):
        NonNegative().linear_minimize(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="unbounded along -g"):
        Box(-math.inf, 0.3).linear_minimize(torch.tensor([1.0]))


def test_contains_its_tolerance_and_the_indicator() -> None:
    ball = L2Ball(1.0)
    x = torch.tensor([1.001, 0.0]).double()
    assert not ball.contains(x) and ball.contains(x, tol=1e-2)
    assert float(ball.value(x)) == math.inf and float(ball.value(x / 2)) == 0
    assert not ball.contains(torch.tensor([math.nan, 0.0]))
    assert not Simplex().contains(torch.tensor([1.5, -0.5])) and not Simplex().contains(torch.tensor([0.5, 0.4]))
    assert not NonNegative().contains(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="tol must be >= 0"):
        ball.contains(x, tol=-1.0)


@pytest.mark.parametrize("each", [Simplex(), L1Ball(), Simplex(1000.0), L1Ball(1e-3)], ids=repr)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_long_float32_vectors_stay_in_the_set(each: Set, offset: float) -> None:
    x = draw(200_000).float() + offset
    p = each.project(x)
    assert p.dtype == torch.float32 and each.contains(p)
    exact = each.project(x.double())
    torch.testing.assert_close(p.double(), exact, atol=1e-5 * max(1.0, offset), rtol=1e-5)


@pytest.mark.parametrize("each", SETS, ids=names)
def test_gradients_through_the_projection(each: Set) -> None:
    for scale in (0.01, 3.0):
        x = draw(*SHAPE, seed=5, scale=scale).requires_grad_()
        if isinstance(each, NuclearBall) and scale < 1:
            continue  # inside, the singular values are not projected and their ties not resolved
        assert torch.autograd.gradcheck(each.project, (x,))
    if not isinstance(each, NuclearBall):
        zero = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
        each.project(zero).sum().backward()
        assert zero.grad is not None and torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("each", [s for s in SETS if not isinstance(s, NuclearBall)], ids=repr)
def test_half_precision(each: Set) -> None:
    x = draw(*SHAPE).bfloat16()
    assert each.project(x).dtype == torch.bfloat16
    torch.testing.assert_close(each.project(x).double(), each.project(x.double()), atol=0.03, rtol=0.03)


def test_a_restricted_box_has_the_bounds_of_its_entries() -> None:
    index, x = torch.tensor([4, 2]), torch.tensor([-9.0, 9.0])
    one, five = torch.tensor([1.0]), torch.arange(5.0)
    for box, low, high in ((Box(-one, one), -1, 1), (Box(-1.0, one), -1, 1), (Box(-one, five), -1, 2), (Box(-five, one), -4, 1)):
        assert box.restricted(index).project(x).tolist() == [low, high]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="low must be <= high"):
        Box(1.0, 0.0)
    with pytest.raises(ValueError, match="low must be <= high"):
        Box(float("nan"), 1.0)
    for make in (L1Ball, L2Ball, LInfBall, NuclearBall):
        for radius in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="radius must be a finite number > 0"):
                make(radius)
    with pytest.raises(ValueError, match="total must be"):
        Simplex(0.0)


def test_a_vertex_of_the_birkhoff_polytope_is_the_cheapest_permutation() -> None:
    g = draw(3, 4, 4)
    s = Birkhoff().linear_minimize(g)
    for cost, vertex in zip(g, s, strict=True):
        totals = {order: sum(float(cost[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(4))}
        assert torch.equal(vertex, torch.eye(4, dtype=g.dtype)[list(min(totals, key=totals.__getitem__))])


def test_the_birkhoff_polytope_knows_its_members_and_refuses_what_it_cannot_hold() -> None:
    each = Birkhoff()
    assert each.contains(torch.full((2, 5, 5), 0.2)) and each.contains(torch.eye(3))
    assert not each.contains(torch.full((5, 5), 0.3)) and not each.contains(torch.tensor([[1.5, -0.5], [-0.5, 1.5]]))
    assert not each.contains(torch.tensor([[0.9, 0.1], [0.5, 0.5]])) and not hasattr(each, "project")
    with pytest.raises(ValueError, match=r"square matrices in the last two dimensions, got shape \(2, 3\)"):
        each.linear_minimize(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="square"):
        each.contains(torch.zeros(4))
    with pytest.raises(ValueError, match="finite g"):
        each.linear_minimize(torch.full((2, 2), math.nan))
