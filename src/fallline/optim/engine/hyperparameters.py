"""Checks of hyperparameters, by name: what they must be and what is typical."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Check(NamedTuple):
    """A condition with its wording."""

    holds: Callable[[float], bool]
    wording: str


NONNEGATIVE = "a finite number >= 0"
POSITIVE = "a finite number > 0"
FRACTION = "a number in [0, 1)"


def _nonnegative(typical: str) -> Check:
    return Check(lambda x: math.isfinite(x) and x >= 0, f"{NONNEGATIVE}, got {{}}; {typical}")


def _positive(typical: str) -> Check:
    return Check(lambda x: math.isfinite(x) and x > 0, f"{POSITIVE}, got {{}}; {typical}")


def _fraction(typical: str) -> Check:
    return Check(lambda x: 0 <= x < 1, f"{FRACTION}, got {{}}; {typical}")


CHECKS: dict[str, Check] = {
    "lr": _nonnegative("typical values are 1e-4 to 1e-1"),
    "weight_decay": _nonnegative("typical values are 0 to 0.1"),
    "eps": _nonnegative("typical values are 1e-12 to 1e-6"),
    "momentum": _fraction("0.9 is typical"),
    "betas": _fraction("(0.9, 0.999) is typical"),
    "beta": _fraction("0.9 is typical"),
    "rho": _fraction("0.9 is typical"),
    "gamma": _positive("see the optimizer's docstring"),
    "reps_rel": _positive("1e-6 is typical, 1e-4 with batch normalisation"),
    "lipschitz": _positive("a bound on the norm of stochastic gradients"),
    "horizon": Check(lambda x: x >= 1 and x == int(x), "a whole number >= 1, got {}; the number of steps that will be taken"),
    "delta": Check(lambda x: 0 < x < 1, "a number in (0, 1), got {}; 0.01 is typical"),
    "root_every": Check(lambda x: x >= 1 and x == int(x), "a whole number >= 1, got {}; 1 to 100 are typical"),
    "k": Check(lambda x: x >= 1 and x == int(x), "a whole number >= 1, got {}; 10 is typical"),
    "update_gap": Check(lambda x: x >= 1 and x == int(x), "a whole number >= 1, got {}; 200 is typical"),
    "density": Check(lambda x: 0 <= x <= 1, "a number in [0, 1], got {}; 0.25 is typical"),
    "free_lr_scale": _nonnegative("1 for training from scratch, 0.1 for fine-tuning"),
}


def check(name: str, value: float) -> None:
    """Raise ``ValueError`` unless the value is legal for the hyperparameter ``name``."""
    test = CHECKS[name]
    if not test.holds(float(value)):
        raise ValueError(f"{name} must be {test.wording.format(value)}")


def check_group(group: Mapping[str, Any]) -> None:
    """Check every hyperparameter of a parameter group that has a check; tuples are checked number by number."""
    for name, value in group.items():
        if name not in CHECKS:
            continue
        if isinstance(value, tuple | list):
            for i, number in enumerate(value):
                if not CHECKS[name].holds(float(number)):
                    raise ValueError(f"{name}[{i}] must be {CHECKS[name].wording.format(number)}")
        else:
            check(name, value)
