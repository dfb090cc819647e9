"""Every term's proximal map against its definition, on random points, dtypes and batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fallline.core.terms import L1, L2, MCP, SCAD, ElasticNet, GroupL2, Scaled, SquaredL2, Term, Zero

CONVEX = [
    Zero(),
    L1(0.7),
    SquaredL2(0.7),
    ElasticNet(0.5, 0.8),
    L2(1.3),
    L2(1.3, dim=None),
    L2(0.9, dim=(0, 1)),
    GroupL2(2, 0.6),
    GroupL2(3, [0.4, 1.1]),
    GroupL2([[0, 3], [1, 2, 5]], 0.8),
    GroupL2([[4], [0, 1], [2, 3, 5]], [0.5, 1.2, 0.0]),
    2.5 * L1(0.3),
]
CONCAVE = [MCP(0.8, 2.0), MCP(1.0, 3.0), SCAD(0.6, 3.7), SCAD(1.0, 2.5), 0.5 * MCP(0.8, 1.5)]
TERMS = CONVEX + CONCAVE
names = [f"{number}-{term!r}" for number, term in enumerate(TERMS)]


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steps_for(term: Term) -> list[float]:
    bound = 1 / term.weak_convexity if term.weak_convexity else 3.0
    return [0.1 * bound, 0.5 * bound, 0.95 * bound]


@pytest.mark.parametrize("term", TERMS, ids=names)
def test_prox_minimises_its_objective(term: Term) -> None:
    for seed, step in enumerate(steps_for(term)):
        x = draw(3, 6, seed=seed)
        z = term.prox(x, step)

        def objective(point: torch.Tensor, x: torch.Tensor = x, step: float = step) -> float:
            return float(term.value(point) + (point - x).square().sum() / (2 * step))

        best = objective(z)
        assert best <= objective(x) + 1e-12 and best <= objective(torch.zeros_like(x)) + 1e-12
        for trial in range(200):
            direction = draw(3, 6, seed=1000 * seed + trial, scale=1.0)
            if trial % 2:
                direction = direction * torch.nn.functional.one_hot(torch.tensor(trial % 18), 18).reshape(3, 6)
            size = 10.0 ** -(trial % 5)
            # strongly convex objective: it grows at least quadratically around its minimiser
            growth = (1 / step - term.weak_convexity) / 2 * float((size * direction).square().sum())
            assert objective(z + size * direction) >= best + (1 - 1e-6) * growth - 1e-11 * (1 + abs(best))


@pytest.mark.parametrize("term", [t for t in TERMS if isinstance(t, L1 | SquaredL2 | ElasticNet | MCP | SCAD)], ids=repr)
def test_separable_prox_against_a_fine_grid(term: Term) -> None:
    grid = torch.linspace(-6, 6, 24_001).double()
    penalty = torch.vmap(term.value)(grid)
    for x in torch.linspace(-5, 5, 41).tolist():
        for step in steps_for(term):
            best = grid[(penalty + (grid - x).square() / (2 * step)).argmin()]
            assert float(term.prox(torch.tensor([x]).double(), step)) == pytest.approx(float(best), abs=6e-4)


@pytest.mark.parametrize("term", CONVEX, ids=names[: len(CONVEX)])
def test_convex_prox_is_firmly_nonexpansive(term: Term) -> None:
    for seed in range(20):
        x, y = draw(3, 6, seed=seed), draw(3, 6, seed=100 + seed)
        p, q = term.prox(x, 0.7), term.prox(y, 0.7)
        assert float(((p - q) * (x - y)).sum()) >= float((p - q).square().sum()) - 1e-12


@pytest.mark.parametrize("term", CONVEX, ids=names[: len(CONVEX)])
def test_moreau_identity(term: Term) -> None:
    x = draw(3, 6)
    torch.testing.assert_close(term.prox(x, 0.7) + 0.7 * term.conjugate_prox(x / 0.7, 1 / 0.7), x)


def test_conjugate_prox_of_norms_is_a_projection_on_the_dual_ball() -> None:
    x = draw(5)
    torch.testing.assert_close(L1(0.7).conjugate_prox(x, 0.3), x.clamp(-0.7, 0.7))
    torch.testing.assert_close(L2(0.7).conjugate_prox(x, 5.0), 0.7 * x / x.norm())
    # (λ/2 ‖·‖²)* = ‖·‖²/(2λ)
    torch.testing.assert_close(SquaredL2(0.7).conjugate_prox(x, 0.3), x / (1 + 0.3 / 0.7))


def test_values() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 1.0]]).double()
    for term, expected in [
        (Zero(), 0.0),
        (L1(2.0), 16.0),
        (SquaredL2(2.0), 26.0),
        (ElasticNet(1.0, 2.0), 34.0),
        (L2(2.0), 12.0),
        (L2(2.0, dim=None), 2 * 26**0.5),
        (L2(1.0, dim=0), 3 + 17**0.5),
        (GroupL2([[1]], 3.0), 15.0),
        (GroupL2(1, [1.0, 10.0]), 53.0),
        (3 * L1(2.0), 48.0),
        (L1(2.0) * 3, 48.0),
        # γλ = 2: entries 3 and 4 are beyond and cost γλ²/2 = 1, the entry 1 costs 1 - 1/4
        (MCP(1.0, 2.0), 1 + 1 + 0.75),
        # aλ = 3: entries 3 and 4 cost λ²(a + 1)/2 = 2, the entry 1 costs λ
        (SCAD(1.0, 3.0), 2 + 2 + 1),
    ]:
        value = term.value(x)
        assert value.ndim == 0
        assert float(value) == pytest.approx(expected)


@pytest.mark.parametrize("term", CONCAVE, ids=repr)
def test_weak_convexity_is_the_least_that_makes_the_sum_convex(term: Term) -> None:
    grid = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    values = torch.stack([term.value(point) for point in grid])
    second = (values[2:] - 2 * values[1:-1] + values[:-2]) / 0.005**2
    assert float(second.min()) == pytest.approx(-term.weak_convexity, rel=1e-6)


@pytest.mark.parametrize("term", CONCAVE, ids=repr)
def test_large_entries_are_not_shrunk(term: Term) -> None:
    x = torch.tensor([-50.0, 40.0])
    torch.testing.assert_close(term.prox(x, 0.5), x)


@pytest.mark.parametrize("term", TERMS, ids=names)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_is_kept(term: Term, dtype: torch.dtype) -> None:
    x = draw(3, 6).to(dtype)
    assert term.prox(x, 0.5).dtype == dtype and term.value(x).dtype == dtype
    torch.testing.assert_close(term.prox(x, 0.5).double(), term.prox(x.double(), 0.5), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("term", TERMS, ids=names)
def test_a_batch_is_each_of_its_vectors(term: Term) -> None:
    if isinstance(term, L2) and term.dim != -1:
        pytest.skip("reads the first dimension as part of the vector")
    x = draw(2, 3, 6)
    torch.testing.assert_close(term.prox(x, 0.5)[1, 2], term.prox(x[1, 2], 0.5))
    total = torch.stack([term.value(row) for row in x.reshape(-1, 6)]).sum()
    torch.testing.assert_close(term.value(x), total)


@pytest.mark.parametrize("term", TERMS, ids=names)
def test_gradients_through_prox_and_value(term: Term) -> None:
    x = draw(2, 6).requires_grad_()
    step = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda point, size: term.prox(point, size) + 0 * size, (x, step))
    zero = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    (term.prox(zero, step).sum() + term.value(zero) + 0 * zero.sum()).backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("term", TERMS, ids=names)
def test_step_zero_is_the_identity_and_bad_steps_are_refused(term: Term) -> None:
    x = draw(2, 6)
    torch.testing.assert_close(term.prox(x, 0.0), x)
    for step in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="step must be a finite number >= 0"):
            term.prox(x, step)


def test_steps_beyond_weak_convexity_name_the_bound() -> None:
    with pytest.raises(ValueError, match=r"below 1 / weak_convexity = 3 for MCP\(1, gamma=3\), got 3"):
        MCP(1.0, 3.0).prox(torch.ones(2), 3.0)
    with pytest.raises(ValueError, match=r"below 1 / weak_convexity = 2\.7 "):
        SCAD(1.0, 3.7).prox(torch.ones(2), 4.0)
    with pytest.raises(ValueError, match=r"below 1 / weak_convexity = 1\.5"):
        (2 * MCP(1.0, 3.0)).prox(torch.ones(2), 1.6)
    with pytest.raises(ValueError, match="not convex"):
        MCP().conjugate_prox(torch.ones(2), 0.5)
    with pytest.raises(ValueError, match="> 0 for a conjugate"):
        L1().conjugate_prox(torch.ones(2), 0.0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: L1(-1.0), "weight must be a finite number >= 0, got -1"),
        (lambda: SquaredL2(float("nan")), "weight must be"),
        (lambda: L2(float("inf")), "weight must be"),
        (lambda: ElasticNet(l2=-1.0), "l2 must be"),
        (lambda: MCP(gamma=1.0), "gamma must be a finite number > 1"),
        (lambda: SCAD(a=2.0), "a must be a finite number > 2"),
        (lambda: Scaled(0.0, L1()), "factor must be a finite number > 0"),
        (lambda: GroupL2(0), "block length must be >= 1"),
        (lambda: GroupL2([[0, 1], [1]]), "disjoint"),
        (lambda: GroupL2([[-1]]), "disjoint"),
        (lambda: GroupL2([[0]], [1.0, 2.0]), "2 entries for 1 groups"),
        (lambda: GroupL2(4).value(torch.ones(6)), "does not divide the last dimension 6"),
        (lambda: GroupL2([[6]]).value(torch.ones(6)), "index 6 is out of range"),
        (lambda: GroupL2(2, [1.0, 2.0]).value(torch.ones(6)), "2 entries for 3 groups"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()


@pytest.mark.parametrize("term", TERMS, ids=names)
def test_a_term_is_the_sum_of_its_split(term: Term) -> None:
    convex, concave = term.split()
    assert convex.weak_convexity == 0
    x = draw(3, 6, seed=4).requires_grad_()
    # Away from kinks, f − r is q, and its gradient is what split says.
    (gradient,) = torch.autograd.grad(term.value(x) - convex.value(x) + 0 * x.sum(), x)
    torch.testing.assert_close(concave(x.detach()), gradient)
    for seed in range(20):
        u, v = draw(3, 6, seed=seed), draw(3, 6, seed=100 + seed)
        change = concave(u) - concave(v)
        assert float((change * (u - v)).sum()) <= 1e-12  # concave
        assert float(change.norm()) <= term.weak_convexity * float((u - v).norm()) + 1e-12
