"""Settings to copy are the settings that ran."""

from __future__ import annotations

import math

import pytest
import torch

import fallline as fl
from fallline.study import Contender, StudyError, runs

LR = 0.00123456789


def test_code_of_every_form_makes_what_ran() -> None:
    training, function = fl.problems.make("digits-mlp"), fl.problems.make("rosenbrock")
    names = {"fl": fl, "torch": torch, "model": training.model, "problem": function}  # type: ignore[attr-defined]
    frugal = eval(Contender("frugal").entrant(training).code({"lr": LR}, {"steps": 3}), names)
    assert {group["role"] for group in frugal.param_groups} > {"matrix"} and frugal.param_groups[0]["lr"] == LR
    lion = eval(Contender("lion").entrant(training).code({"lr": LR}, {"steps": 3}), names)
    assert lion.param_groups[0]["lr"] == LR
    for name in ("adam", "lazy-cubic-newton"):
        result = eval(Contender(name).entrant(function).code({}, {"steps": 12}), names)
        assert result.nit == 12
    assert Contender("adam").entrant(function).code({}, {"steps": 1234567}).endswith("fl.Budget(steps=1234567))")


def test_numbers_that_are_not_finite_survive_as_code() -> None:
    found = runs("least-squares", [Contender("sgd", fixed={"lr": 0.01}), Contender("adam", fixed={"lr": 1e-3, "eps": math.inf})],
                 budget=fl.Budget(steps=2), tune=0, seeds=1)
    record = found["adam"].evaluations[0]
    assert record.hyperparameters["eps"] == "inf"
    assert "eps=float('inf')" in found["adam"].entrant.code({}, {"steps": 2})


@pytest.mark.parametrize("seed", [-1, 2**70, 0.5, True])
def test_a_seed_out_of_range_is_refused_at_the_door(seed: object) -> None:
    with pytest.raises(StudyError, match="seed must be"):
        runs("least-squares", ["sgd"], seed=seed)  # type: ignore[arg-type]
