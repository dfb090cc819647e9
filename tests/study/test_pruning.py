"""Early stopping: only hopeless tuning trials, the same trials whatever the workers, and none of it at fresh seeds."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import torch
from sides import PROBLEM, Notes
from test_runs import outcome

from fallline.core.space import LogUniform
from fallline.study import Contender, RunTable, StudyError, runs

WIDE = Contender("wide", factory=torch.optim.SGD, space={"lr": LogUniform(1e-5, 0.15)})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunTable, Path]:
    file = tmp_path_factory.mktemp("pruning") / "trials.sqlite"
    return runs(PROBLEM, [WIDE], tune=24, seeds=2, prune="median", storage=file), file


def test_hopeless_trials_stop_early_and_are_never_chosen(pruned: tuple[RunTable, Path]) -> None:
    side = pruned[0].sides[0]
    stopped = [record for record in side.tuning if record.status == "pruned"]
    whole = [record for record in side.tuning if record.status == "finished"]
    assert len(side.tuning) == 24 and 3 <= len(stopped) <= 20
    assert all(7 <= record.steps < 30 for record in stopped) and all(record.steps == 30 for record in whole)
    best = min(whole, key=lambda record: record.value)
    assert side.setting == best.hyperparameters
    assert min(record.value for record in stopped) > best.value
    assert [record.status for record in side.evaluations] == ["finished"] * 2


def test_the_first_round_is_never_stopped_and_is_the_one_without_a_pruner(pruned: tuple[RunTable, Path]) -> None:
    plain = runs(PROBLEM, [WIDE], tune=24, seeds=1)
    first = [record.id for record in plain.sides[0].tuning[:4]]
    assert [record.id for record in pruned[0].sides[0].tuning[:4]] == first
    assert all(record.status == "finished" for record in pruned[0].sides[0].tuning[:4])


def test_the_same_trials_are_stopped_by_two_workers_and_found_in_the_storage(pruned: tuple[RunTable, Path]) -> None:
    notes = Notes()
    again = runs(PROBLEM, [WIDE], tune=24, seeds=2, prune="median", storage=pruned[1], watcher=notes)
    assert notes.run == [] and outcome(again) == outcome(pruned[0])
    two = runs(PROBLEM, [WIDE], tune=24, seeds=2, prune="median", workers=2)
    assert [(r.id, r.status) for r in two.records] == [(r.id, r.status) for r in pruned[0].records]


def test_any_of_optunas_pruners_and_nothing_else() -> None:
    strict = optuna.pruners.ThresholdPruner(upper=1e-12)
    found = runs(PROBLEM, [WIDE], tune=8, seeds=1, prune=strict)
    assert {record.status for record in found.sides[0].tuning[4:]} == {"pruned"} and found.terms.prune == "ThresholdPruner"
    for wrong in ("fast", 3, optuna):
        with pytest.raises(StudyError, match="prune must be"):
            runs(PROBLEM, [WIDE], prune=wrong)  # type: ignore[arg-type]


def test_trials_that_diverge_are_rivals_too(tmp_path: Path) -> None:
    wild = Contender("wild", factory=torch.optim.SGD, space={"lr": LogUniform(1e-3, 1e30)})
    first = runs(PROBLEM, [wild], tune=16, seeds=1, prune="median", storage=tmp_path / "trials.sqlite")
    statuses = [record.status for record in first.sides[0].tuning]
    assert "error" not in statuses and "divergent" in statuses
    notes = Notes()
    again = runs(PROBLEM, [wild], tune=16, seeds=1, prune="median", storage=tmp_path / "trials.sqlite", watcher=notes)
    assert notes.run == [] and [record.id for record in again.records] == [record.id for record in first.records]
