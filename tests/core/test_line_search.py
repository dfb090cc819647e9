"""Line searches: their conditions on many functions, SciPy beside them, and oracles that return NaN or infinity."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import line_search as scipy_line_search

from fallline.core.line_search import backtracking, strong_wolfe

Scalar = Callable[[float], tuple[float, float]]

# J. J. Moré and D. J. Thuente, ACM Trans. Math. Softw. 20 (1994) 286: like their functions 1, 2 and 4, and four others.
FUNCTIONS: dict[str, Scalar] = {
    "thuente-1": lambda a: (-a / (a * a + 2), (a * a - 2) / (a * a + 2) ** 2),
    "thuente-2": lambda a: ((a + 0.004) ** 5 - 2 * (a + 0.004) ** 4, 5 * (a + 0.004) ** 4 - 8 * (a + 0.004) ** 3),
    "thuente-4": lambda a: (
        0.998 * math.hypot(1 - a, 0.1) + math.hypot(a, 0.1),
        0.998 * (a - 1) / math.hypot(1 - a, 0.1) + a / math.hypot(a, 0.1),
    ),
    "quadratic": lambda a: ((a - 3) ** 2, 2 * (a - 3)),
    "quartic": lambda a: ((a - 1) ** 4 - a, 4 * (a - 1) ** 3 - 1),
    "exponential": lambda a: (math.exp(min(a, 700)) - 5 * a, math.exp(min(a, 700)) - 5),
    "wiggly": lambda a: (0.1 * a * a - math.sin(3 * a), 0.2 * a - 3 * math.cos(3 * a)),
}
STEPS = [1e-3, 0.1, 1.0, 10.0, 1e3]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_the_test_functions(name: str) -> None:
    phi = FUNCTIONS[name]
    for a in (0.0, 0.3, 1.7):
        assert phi(a)[1] == pytest.approx((phi(a + 1e-6)[0] - phi(a - 1e-6)[0]) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("c2", [0.9, 0.1, 1e-3])
def test_strong_wolfe_conditions_hold(name: str, step: float, c2: float) -> None:
    phi, calls = FUNCTIONS[name], []

    def counted(a: float) -> tuple[float, float]:
        calls.append(a)
        return phi(a)

    value, slope = phi(0.0)
    # The terms of thuente-2 cancel: its values near the minimum are right to a few machine precisions only.
    found = strong_wolfe(counted, value, slope, step=step, c1=1e-4, c2=c2, rounding=2e-15)
    assert found.success, found
    assert found.evaluations == len(calls) <= 25
    assert (found.value, found.slope) == phi(found.step)
    assert found.value <= value + 1e-4 * found.step * slope + 2e-15 * abs(value)
    assert found.slope is not None and abs(found.slope) <= c2 * abs(slope)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_no_more_evaluations_than_scipy_and_a_value_as_good(name: str, c2: float) -> None:
    phi = FUNCTIONS[name]
    value, slope = phi(0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step, calls, _, theirs, _, _ = scipy_line_search(
            lambda x: phi(x[0])[0], lambda x: np.array([phi(x[0])[1]]), np.zeros(1), np.ones(1), c1=1e-4, c2=c2
        )
    found = strong_wolfe(phi, value, slope, c2=c2)
    assert found.success
    if step is None:
        return
    assert found.evaluations <= calls + 2
    assert found.value <= value + 0.5 * (theirs - value)


def test_exact_on_a_quadratic_with_a_tight_slope() -> None:
    found = strong_wolfe(FUNCTIONS["quadratic"], 9.0, -6.0, c2=1e-3)
    assert found.step == pytest.approx(3.0, abs=0.01) and found.evaluations <= 3


def test_a_good_first_step_costs_one_evaluation() -> None:
    found = strong_wolfe(lambda a: ((a - 1) ** 2, 2 * (a - 1)), 1.0, -2.0)
    assert (found.step, found.evaluations) == (1.0, 1)


@pytest.mark.parametrize("wall", [1e-4, 0.5, 30.0])
@pytest.mark.parametrize("beyond", [(math.nan, math.nan), (math.inf, 1.0), (-math.inf, -1.0), (-1e9, math.nan)])
def test_non_finite_values_are_too_far(wall: float, beyond: tuple[float, float]) -> None:
    target = 0.7 * wall

    def phi(a: float) -> tuple[float, float]:
        return beyond if a > wall else ((a / target - 1) ** 2, 2 * (a / target - 1) / target)

    found = strong_wolfe(phi, *phi(0.0), step=100.0, c2=0.5)
    assert found.success and 0 < found.step <= wall and math.isfinite(found.value)
    decreased = backtracking(lambda a: phi(a)[0], *phi(0.0), step=100.0)
    assert decreased.step <= wall or beyond[0] == -1e9


def test_nothing_finite_gives_the_start_without_success() -> None:
    for found in (
        strong_wolfe(lambda a: (math.nan, math.nan), 1.0, -1.0),
        backtracking(lambda a: math.nan, 1.0, -1.0),
    ):
        assert not found.success and (found.step, found.value, found.slope) == (0.0, 1.0, -1.0)


def test_unbounded_descent_ends_without_success_at_the_best_step() -> None:
    found = strong_wolfe(lambda a: (-a, -1.0), 0.0, -1.0, max_evaluations=8)
    assert not found.success and found.evaluations == 8 and found.value == -found.step < -100
    capped = strong_wolfe(lambda a: (-a, -1.0), 0.0, -1.0, max_step=5.0)
    assert not capped.success and capped.step == 5.0 and "max_step" in capped.message
    assert strong_wolfe(FUNCTIONS["quadratic"], 9.0, -6.0, step=100.0, max_step=3.0).step <= 3.0


def test_backtracking_takes_the_first_step_that_decreases_enough() -> None:
    tried = []

    def phi(a: float) -> float:
        tried.append(a)
        return (a - 1) ** 2

    # φ(α) - φ(0) - c₁ α φ'(0) = α² - 2α(1 - c₁): decrease is enough for α <= 2(1 - c₁) = 1.5
    found = backtracking(phi, 1.0, -2.0, step=10.0, c1=0.25, shrink=0.5)
    assert tried == [10.0, 5.0, 2.5, 1.25] and found.success
    assert (found.step, found.value, found.evaluations, found.slope) == (1.25, 0.0625, 4, None)
    assert backtracking(phi, 1.0, -2.0, step=10.0, c1=0.25, max_evaluations=3).success is False


def test_rounding_lets_a_step_pass_where_decrease_drowns() -> None:
    # a decrease of 1e-17 on a value of 1 that is rounded up
    assert not backtracking(lambda a: 1 + 2e-16 if a else 1.0, 1.0, -1e-17, max_evaluations=5).success
    assert backtracking(lambda a: 1 + 2e-16 if a else 1.0, 1.0, -1e-17, rounding=1e-15).step == 1.0
    flat = strong_wolfe(lambda a: (1 + 2.3e-16, -1e-18), 1.0, -1e-17, rounding=1e-15)
    assert flat.success and flat.step == 1.0


@pytest.mark.parametrize("slope", [0.0, 2.5, math.nan, -math.inf])
def test_a_direction_that_does_not_descend_is_refused_with_its_slope(slope: float) -> None:
    with pytest.raises(ValueError, match=f"not a descent direction.*got {slope}"):
        strong_wolfe(lambda a: (a, 1.0), 0.0, slope)
    with pytest.raises(ValueError, match=f"not a descent direction.*got {slope}"):
        backtracking(lambda a: a, 0.0, slope)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"step": 0.0}, "step must be"),
        ({"c1": 0.95}, "c1 and c2"),
        ({"c2": 1.0}, "c1 and c2"),
        ({"max_step": 0.0}, "max_step must be"),
        ({"rounding": -1.0}, "rounding must be"),
        ({"max_evaluations": 0}, "max_evaluations must be"),
    ],
)
def test_strong_wolfe_names_bad_options(options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        strong_wolfe(FUNCTIONS["quadratic"], 9.0, -6.0, **options)


@pytest.mark.parametrize(
    ("options", "name"), [({"c1": 0.0}, "c1 must"), ({"shrink": 1.0}, "shrink must"), ({"step": -1}, "step must")]
)
def test_backtracking_names_bad_options(options: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        backtracking(lambda a: a, 0.0, -1.0, **options)
    with pytest.raises(ValueError, match="value must be finite"):
        backtracking(lambda a: a, math.nan, -1.0)
