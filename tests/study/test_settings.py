"""Settings to copy are the settings that ran."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import fallline as fl
from fallline.study import Contender, Memory, StudyError, runs, stored, trial

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
    assert "eps=float('inf')" in found["adam"].code


@pytest.mark.parametrize("seed", [-1, 2**70, 0.5, True])
def test_a_seed_out_of_range_is_refused_at_the_door(seed: object) -> None:
    with pytest.raises(StudyError, match="seed must be"):
        runs("least-squares", ["sgd"], seed=seed)  # type: ignore[arg-type]


class Odd(fl.Method):
    """Descent with hyperparameters of every kind of value."""

    def __init__(self, clip: float, dtype: torch.dtype, norm: str, betas: tuple[float, ...]) -> None:
        self.given = clip, dtype, norm, betas

    def init(self, problem: fl.Problem, key: fl.Key) -> dict[str, torch.Tensor]:
        return {"x": problem.x0.clone()}

    def step(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": state["x"] - 0.1 * problem.gradient(state["x"])}

    def report(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> fl.Report:
        return fl.Report(state["x"])


def test_code_survives_the_storage() -> None:
    memory = Memory()
    given = {"clip": math.inf, "norm": "inf", "betas": (0.9, math.inf)}
    side = Contender("odd", factory=Odd, fixed=given, space={"dtype": fl.Choice(torch.float64)})
    fresh = runs("least-squares", [side], budget=fl.Budget(steps=2), tune=1, seeds=1, storage=memory)
    code = fresh["odd"].code
    made = eval(code.removeprefix("fl.solve(problem, ").rpartition(", fl.Budget")[0], {"Odd": Odd, "torch": torch})
    assert made.given == (math.inf, torch.float64, "inf", (0.9, math.inf))
    assert stored(memory)[0].table["odd"].code == code


def test_a_study_of_another_version_is_skipped_or_said(tmp_path: Path) -> None:
    memory = Memory()
    runs("least-squares", ["sgd"], budget=fl.Budget(steps=2), tune=0, seeds=1, storage=memory)
    memory.put_study("old", "old", {"terms": {"unknown": 1}, "sides": []})
    assert len(stored(memory)) == 1
    with pytest.raises(StudyError, match="another version"):
        only = Memory()
        only.put_study("old", "old", {"sides": [{}]})
        stored(only)


def test_every_code_path_of_a_class_is_warmed_up_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[object] = []
    monkeypatch.setattr(trial, "_warm_up", lambda found, group: warmed.append(found.contender.title))
    options: list[dict[str, bool]] = [{}, {"compile": False}]
    sides = [Contender("momentum", fixed={"lr": lr, **more}, label=f"{lr} {more}") for lr in (0.01, 0.02) for more in options]
    runs("least-squares", sides, budget=fl.Budget(seconds=0.01), tune=0, seeds=2)
    assert len(warmed) == 2
