"""Checks of hyperparameters, by name: what they must be and what is typical."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch


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
    "beta1": _fraction("0.9 is typical"),
    "rho": _fraction("0.9 is typical"),
    "gamma": _positive("see the optimizer's docstring"),
    "reps_rel": _positive("1e-6 is typical, 1e-4 with batch normalisation"),
    "lipschitz": _positive("a bound on the norm of stochastic gradients"),
    "horizon": Check(lambda x: x >= 1 and x.is_integer(), "a whole number >= 1, got {}; the number of steps that will be taken"),
    "delta": Check(lambda x: 0 < x < 1, "a number in (0, 1), got {}; 0.01 is typical"),
    "root_every": Check(lambda x: x >= 1 and x.is_integer(), "a whole number >= 1, got {}; 1 to 100 are typical"),
    "warm_samples": Check(lambda x: x >= 1 and x.is_integer(), "a whole number >= 1, got {}; 10 is typical"),
    "k": Check(lambda x: x >= 1 and x.is_integer(), "a whole number >= 1, got {}; 10 is typical"),
    "update_gap": Check(lambda x: x >= 1 and x.is_integer(), "a whole number >= 1, got {}; 200 is typical"),
    "density": Check(lambda x: 0 <= x <= 1, "a number in [0, 1], got {}; 0.25 is typical"),
    "seed": Check(lambda x: x.is_integer(), "a whole number, got {}"),
    "betas_1d": _fraction("(0.9, 0.95) is typical"),
    "weight_decay_1d": _nonnegative("0.1 is typical"),
    "f_star": Check(math.isfinite, "a finite number, got {}; a lower bound of the loss"),
    "lam": _positive("1e-3 to 0.1 are typical"),
    "gammas": _fraction("(0.92, 0.008) is typical"),
    "every": Check(lambda x: x >= 1 and x.is_integer(), "a whole number >= 1, got {}; 100 is typical"),
    "b0": _nonnegative("1e-6 is typical"),
    "lr_1d": _nonnegative("3e-3 is typical"),
    "lr_1d_ratio": _nonnegative("lr_1d is 3e-3 by default"),
    "r": Check(lambda x: x >= 2 and x.is_integer(), "a whole number >= 2, got {}; 5 is typical"),
    "c": _positive("1 is typical"),
    "damp": _positive("0.1 to 1 is typical"),
    "beta2": _fraction("0.99 is typical"),
    "lr0": _nonnegative("1e-3 is typical"),
    "alpha": _nonnegative("see the optimizer's docstring"),
    "max_update": _positive("10 is typical"),
    "warmup_steps": Check(lambda x: x >= 0 and x.is_integer(), "a whole number >= 0, got {}; the length of the run is typical"),
    "free_lr_scale": _nonnegative("1 for training from scratch, 0.1 for fine-tuning"),
    "smoothness": _positive("the largest curvature of the expected loss"),
    "mu": _nonnegative("the least curvature of the expected loss, 0 where it is not strongly convex"),
    "growth": Check(lambda x: math.isfinite(x) and x >= 1, "a finite number >= 1, got {}; 1 is exact gradients"),
    "gamma0": _positive("mu is typical, or smoothness where mu is 0"),
    "primal_step": _positive("at most 1 / (6 tr H) for Gaussian features of covariance H"),
    "dual_step": _positive("at least primal_step"),
    "tail_start": Check(lambda x: x >= 0 and x.is_integer(), "a whole number >= 0, got {}; half of the steps is typical"),
}


def check(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless the value is a number that is legal for the hyperparameter ``name``."""
    _check(CHECKS[name], name, value)


def check_positive(name: str, value: Any, remedy: str) -> None:
    """Raise ``ValueError`` unless the value is a finite number above 0, for rules that cannot do with 0 where others can."""
    _check(_positive(remedy), name, value)


def check_nonnegative(name: str, value: Any, remedy: str) -> None:
    """Raise ``ValueError`` unless the value is a finite number of at least 0."""
    _check(_nonnegative(remedy), name, value)


def check_finite(name: str, value: Any, meaning: str) -> None:
    """Raise ``ValueError`` unless the value is a finite number."""
    _check(Check(math.isfinite, f"a finite number, {meaning}, got {{}}"), name, value)


def check_group(group: Mapping[str, Any], lengths: Mapping[str, int], optional: Container[str] = (),
                closed: Mapping[str, int] | None = None) -> None:
    """Check every hyperparameter of a parameter group that has a check.

    ``lengths`` says which are several numbers, and how many; ``optional`` which may be None; ``closed`` which of several numbers may
    be 1 where others may not.
    """
    for name, value in group.items():
        if value is None and name in optional:
            continue
        at = (closed or {}).get(name)
        if at is not None and isinstance(value, tuple | list) and len(value) > at and value[at] == 1:
            value = (*value[:at], 0.0, *value[at + 1:])
        several = isinstance(value, tuple | list)
        if name in lengths and not (several and len(value) == lengths[name]):
            raise ValueError(f"{name} must be {lengths[name]} numbers, got {value!r}")
        if name in CHECKS and several:
            for i, number in enumerate(value):
                _check(CHECKS[name], f"{name}[{i}]", number)
        elif name in CHECKS:
            check(name, value)


def _check(test: Check, name: str, value: Any) -> None:
    # A tensor may be a learning rate; a bool, which Python counts as a number, is a slip.
    number = isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    if isinstance(value, bool) or not number or not test.holds(float(value)):
        raise ValueError(f"{name} must be {test.wording.format(repr(value))}")


def lengths_of(optimizer: type, defaults: Mapping[str, Any]) -> dict[str, int]:
    """How many numbers each hyperparameter has that is a tuple by default."""
    own = {name: p.default for name, p in inspect.signature(optimizer).parameters.items()}
    return {name: len(value) for name, value in {**defaults, **own}.items() if isinstance(value, tuple)}


def optional_of(optimizer: type, defaults: Mapping[str, Any]) -> frozenset[str]:
    """The names of the hyperparameters that are None by default, and are so in this optimizer."""
    own = inspect.signature(optimizer).parameters
    return frozenset(name for name, value in defaults.items() if value is None and name in own and own[name].default is None)
