"""The tester-learner for halfspaces: its certificate is true, its rejections say why."""

import math

import pytest
import torch

from fallline.core.keys import Key
from fallline.solvers import Accept, Reject, disagreement_bound
from fallline.solvers import halfspace_tester as tester

D = torch.float64


def normals(n, d, seed=0, tails=False):
    generator = Key(seed).generator()
    X = torch.randn(n, d, dtype=D, generator=generator)
    w = torch.randn(d, dtype=D, generator=generator)
    X = X / (torch.randn(n, 1, dtype=D, generator=generator).abs() + 0.05) if tails else X
    return X, w / w.norm()


@pytest.mark.parametrize("tails", [False, True])
@pytest.mark.parametrize("theta", [0.02, 0.3, 1.2])
def test_no_halfspace_within_the_angle_disagrees_more_than_the_bound(theta, tails):
    X, w = normals(2_000, 4, tails=tails)
    bound = disagreement_bound(X, 3 * w, theta)
    u = torch.randn(300, 4, dtype=D, generator=Key(1).generator())
    u = u - (u @ w)[:, None] * w
    # the worst direction is that of the data's largest spread; the boundary angle itself counts
    u = u / u.norm(dim=1, keepdim=True)
    v = math.cos(theta) * w + math.sin(theta) * u
    differ = ((X @ v.T).sign() != (X @ w).sign()[:, None]).double().mean(0)
    assert float(differ.max()) <= bound <= 1


def test_the_bound_of_two_strips_by_hand():
    # tan θ = 1: |x₁| = 0.5 is in strip 0, |x₁| = 2.5 in strip 2, where x₂² = 3 gives 3/4 > 1 → its share.
    X = torch.tensor([[0.5, 0.0], [2.5, 3.0**0.5], [2.5, 0.0], [2.5, 0.0]], dtype=D)
    w = torch.tensor([1.0, 0.0], dtype=D)
    assert disagreement_bound(X, w, math.pi / 4) == pytest.approx(1 / 4 + min(3 / 4, (3 / 4) / 4))
    assert disagreement_bound(X, w, 0.0) == 0.0


def test_fourth_moments_of_normal_data_are_near_and_of_tails_far():
    X, _ = normals(40_000, 4)
    assert tester._fourth_moment_error(X) < 0.1
    signs = torch.where(X > 0, 1.0, -1.0).double()  # E u⁴ = 1 for unit vectors along an axis, where the normal has 3
    assert tester._fourth_moment_error(signs) == pytest.approx(1.0, abs=0.02)


def test_clean_normal_data_are_accepted_and_the_angle_is_within_theta():
    X, w = normals(20_000, 3)
    found = tester.test_and_learn(X, (X @ w).sign(), eta=0.0)
    assert isinstance(found, Accept) and found
    assert found.error < 0.02 and math.acos(min(1.0, abs(float(found.w @ w)))) <= found.theta
    assert found.bound <= 10 * found.theta


def test_the_opposite_halfspace_is_never_accepted():
    X = torch.randn(40_000, 3, dtype=D, generator=torch.Generator().manual_seed(7))
    y = (X @ torch.tensor([1.0, 2.0, 3.0], dtype=D)).sign()
    for eps in (0.45, 0.49, 0.53, 1.0):
        found = tester.test_and_learn(X, y, eta=0.1, eps=eps, widths=(0.1,), steps=30, key=7)
        assert not found or found.error < 0.5


def test_narrow_bands_of_many_points_give_bounds_that_say_something():
    X, w = normals(400_000, 3)
    found = tester.test_and_learn(X, (X @ w).sign(), eta=0.0, eps=0.3, widths=(0.05, 0.1))
    assert found and found.bound <= 0.3


def test_a_basis_that_is_not_isotropic_is_whitened_and_w_is_for_the_data_as_given():
    X, w = normals(20_000, 3)
    S = torch.tensor([[5.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.1]], dtype=D)
    found = tester.test_and_learn(X @ S.T, (X @ w).sign(), eta=0.0)
    assert found and float(((X @ S.T @ found.w).sign() == (X @ w).sign()).double().mean()) > 0.98


def test_collapsed_bands_and_heavy_tails_are_rejected_with_a_reason():
    X, w = normals(20_000, 4, tails=True)
    found = tester.test_and_learn(X, (X @ w).sign())
    assert isinstance(found, Reject) and not found and "band" in found.reason


def test_an_eps_that_the_data_cannot_give_is_a_rejection():
    X, w = normals(20_000, 3)
    found = tester.test_and_learn(X, (X @ w).sign(), eta=0.0, eps=1e-3)
    assert not found and "eps" in found.reason


def test_the_key_decides():
    X, w = normals(20_000, 3)
    a, b = (tester.test_and_learn(X, (X @ w).sign(), eta=0.1, key=3) for _ in range(2))
    assert torch.equal(a.w, b.w) and a.bound == b.bound


@pytest.mark.parametrize(("change", "message"), [
    ({"noise": "gaussian"}, "noise"), ({"eta": 0.5}, "eta"), ({"widths": ()}, "widths"), ({"widths": (-1.0,)}, "widths"),
    ({"y": torch.zeros(20_000)}, "-1 or 1"), ({"y": torch.ones(3)}, "shapes"), ({"X": torch.randn(20_000, 1)}, "2 columns"),
    ({"X": torch.randn(40, 5), "y": torch.ones(40)}, "too small"),
    ({"X": torch.ones(20_000, 3)}, "vary in every direction"), ({"eps": math.nan}, "eps"), ({"steps": 0}, "steps"),
    ({"X": torch.full((20_000, 3), math.nan)}, "finite"),
])
def test_bad_input_is_named(change, message):
    X, w = normals(20_000, 3)
    with pytest.raises(ValueError, match=message):
        tester.test_and_learn(**{"X": X, "y": (X @ w).sign(), **change})


@pytest.mark.parametrize(("w", "theta", "message"), [(torch.zeros(3), 0.1, "not 0"), (torch.ones(2), 0.1, "3 numbers"),
                                                     (torch.ones(3), 2.0, "theta")])
def test_bad_bounds_are_named(w, theta, message):
    with pytest.raises(ValueError, match=message):
        disagreement_bound(torch.randn(10, 3), w, theta)
