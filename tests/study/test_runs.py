"""The run machinery: fair, reproducible, stored, never run twice, whatever dies."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from descent_problem import problem
from sides import ADAM, PROBLEM, SGD, WILD, Notes, dying_sgd, unlucky_sgd

from fallline.core.budget import Budget
from fallline.core.constructors import BlackBox, Smooth
from fallline.core.errors import FalllineError, MissingOracle, UnknownName
from fallline.core.method import State, Train
from fallline.core.problem import Problem
from fallline.core.space import LogUniform
from fallline.study import Contender, Memory, StudyError, runs


def outcome(table: object) -> list[object]:
    return [(dict(side.setting), side.values, [r.score for r in side.tuning]) for side in table.sides]  # type: ignore[attr-defined]


def test_workers_do_not_change_what_comes_out() -> None:
    one = runs(PROBLEM, [SGD, ADAM], tune=7, seeds=2, workers=1)
    two = runs(PROBLEM, [SGD, ADAM], tune=7, seeds=2, workers=2)
    assert outcome(one) == outcome(two)
    assert [len(side.tuning) for side in one.sides] == [7, 7]


def test_what_a_script_defines_runs_in_workers_and_is_found_again(tmp_path: Path) -> None:
    def printed(workers: str, file: str) -> list[bytes]:
        command = [sys.executable, str(Path(__file__).with_name("script_run.py")), workers, str(tmp_path / file)]
        return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.split()

    found = printed("2", "shared")
    assert len(set(found[:10])) == 10
    assert found == printed("1", "shared") == printed("1", "other")
    assert sorted(id.encode() for id in stored_ids(tmp_path / "shared")) == found[:10]


def test_the_best_setting_is_run_at_seeds_that_were_not_tuned_on() -> None:
    side = runs(PROBLEM, [SGD], tune=5, seeds=3, tuning_seeds=2).sides[0]
    tuned, fresh = {r.seed for r in side.tuning}, {r.seed for r in side.evaluations}
    assert (tuned, fresh) == ({0, 1}, {2, 3, 4})
    sums: dict[float, float] = {}
    for r in side.tuning:
        sums[r.hyperparameters["lr"]] = sums.get(r.hyperparameters["lr"], 0.0) + r.score
    assert side.setting["lr"] == min(sums, key=sums.__getitem__)
    assert all(r.hyperparameters == side.setting for r in side.evaluations)


def test_records_hold_the_whole_run() -> None:
    record = runs(PROBLEM, [SGD], tune=1, seeds=1).sides[0].evaluations[0]
    assert record.metric == "gap" and record.steps == 30 and record.counts["gradients"] == 30
    assert record.start == pytest.approx(problem(1).observe(problem(1).x0)["gap"])
    assert record.curve["steps"][0] == 0 and record.curve["steps"][-1] == 30
    assert record.curve["value"][0] == pytest.approx(record.start) and record.curve["value"][-1] == record.value
    assert record.curve["oracle calls"][-1] == record.curve["gradients"][-1] == 30
    assert record.state_bytes == 0 and record.by_point[30] == record.curve["value"][15]
    assert set(record.versions) == {"fallline", "torch", "python", "machine", "threads"}


def test_what_is_stored_is_not_run_again_and_more_of_it_is_only_added(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trials.sqlite'}"
    first, second, third = Notes(), Notes(), Notes()
    one = runs(PROBLEM, [SGD], tune=6, seeds=2, storage=url, watcher=first)
    two = runs(PROBLEM, [SGD], tune=6, seeds=2, storage=url, watcher=second)
    runs(PROBLEM, [SGD, ADAM], tune=6, seeds=3, storage=url, watcher=third)
    assert outcome(one) == outcome(two)
    assert (len(first.run), len(second.run), len(second.stored)) == (8, 0, 8)
    assert len(third.stored) == 8 and len(third.run) == third.total - 8


def test_another_input_is_another_trial() -> None:
    def ids(**changes: object) -> set[str]:
        arguments = {"problem": PROBLEM, "methods": [SGD], "tune": 0, "seeds": 1} | changes
        return {record.id for record in runs(**arguments).records}  # type: ignore[arg-type]

    base = ids()
    assert base == ids()
    fixed = replace(SGD, fixed={"momentum": 0.5})
    for changed in (ids(seed=5), ids(budget=Budget(steps=31)), ids(methods=[ADAM]), ids(methods=[fixed]), ids(problem=problem)):
        assert not base & changed


def stored_ids(file: Path) -> list[str]:
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            return [id for (id,) in connection.execute("select id from fallline_records")]
    except sqlite3.OperationalError:
        return []


def test_a_dead_worker_loses_nothing(tmp_path: Path) -> None:
    flag = {"flag": str(tmp_path / "flag")}
    side = Contender("dying", factory=dying_sgd, fixed=flag, space={"lr": LogUniform(1e-3, 0.1)})
    found = runs(PROBLEM, [side], tune=4, seeds=1, workers=2).sides[0]
    assert [r.status for r in (*found.tuning, *found.evaluations)] == ["finished"] * 5


def test_a_trial_that_kills_every_worker_is_an_error_and_the_others_go_on(tmp_path: Path) -> None:
    fixed = {"flag": str(tmp_path / "flag"), "always": True}
    side = Contender("dying", factory=dying_sgd, fixed=fixed, space={"lr": LogUniform(1e-3, 0.1)})
    table = runs(PROBLEM, [side, SGD], tune=1, seeds=1, workers=2)
    assert {r.status for r in table["dying"].evaluations} == {"error"}
    assert "exit code 9" in table["dying"].evaluations[0].message
    assert {r.status for r in table["sgd"].evaluations} == {"finished"}


def test_divergent_trials_are_kept_with_the_worst_score() -> None:
    side = runs(PROBLEM, [WILD], tune=8, seeds=2).sides[0]
    assert {r.hyperparameters["lr"]: r.status for r in side.tuning} == {0.05: "finished", 1e6: "divergent"}
    assert side.setting == {"lr": 0.05}
    assert max(r.score for r in side.tuning) == math.inf


def test_ending_above_the_start_is_divergence() -> None:
    rising = Contender("rising", factory=torch.optim.SGD, fixed={"lr": 1e-3, "maximize": True}, space={})
    assert runs(PROBLEM, [rising], seeds=1).sides[0].evaluations[0].status == "divergent"


def test_what_raises_is_recorded_and_tried_again() -> None:
    storage, again = Memory(), Notes()
    side = Contender("unlucky", factory=unlucky_sgd, space={"lr": LogUniform(1e-3, 1.0)})
    found = runs(PROBLEM, [side], tune=8, seeds=1, storage=storage).sides[0]
    raised = [r for r in found.tuning if r.status == "error"]
    assert raised and all("out of luck" in r.message and r.score == math.inf for r in raised)
    assert len(found.tuning) == 8 and side.space is not None
    runs(PROBLEM, [side], tune=8, seeds=1, storage=storage, watcher=again)
    assert set(again.run) == {r.id for r in raised}


def test_a_method_that_gives_up_is_an_error_with_its_reason() -> None:
    saddle = Smooth(lambda x: (x**4).sum() - (x**2).sum(), torch.full((3,), 0.1, dtype=torch.float64), name="saddle")
    found = runs(saddle, ["lazy-newton", SGD], tune=1, seeds=1, budget=Budget(steps=5))
    for record in (*found["lazy-newton"].tuning, *found["lazy-newton"].evaluations):
        assert record.status == "error" and "Hessian" in record.message and record.score == math.inf
    assert found["sgd"].evaluations[0].status == "finished"


def test_a_method_that_exits_is_an_error() -> None:
    record = runs(PROBLEM, [Leaving], seeds=1).sides[0].evaluations[0]
    assert record.status == "error" and "SystemExit: 3" in record.message


def test_names_that_a_problem_counts_itself_are_a_budget() -> None:
    def value(x: torch.Tensor) -> torch.Tensor:
        counting.counts.add("flights")
        return (x**2).sum()

    counting = Smooth(value, torch.ones(3), name="counting")
    assert runs(counting, [Flying], tune=1, seeds=1, budget=Budget(flights=7)).sides[0].evaluations[0].counts["flights"] == 7


class Leaving(Train):
    """A method that calls exit."""

    def __init__(self) -> None:
        super().__init__(torch.optim.SGD, lr=0.1)

    def step(self, problem: Problem, state: State) -> State:
        sys.exit(3)


class Flying(Train):
    """Counts something that only it knows."""

    def __init__(self) -> None:
        super().__init__(torch.optim.SGD, lr=0.1)

    def step(self, problem: Problem, state: State) -> State:
        problem.counts.add("flights")
        return super().step(problem, state)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_without_a_scheme_is_an_sqlite_file(kind: type, tmp_path: Path) -> None:
    first, second = Notes(), Notes()
    for notes in (first, second):
        runs(PROBLEM, [SGD], tune=1, seeds=1, storage=kind(tmp_path / "trials.sqlite"), watcher=notes)
    assert len(first.run) == len(second.stored) == len(stored_ids(tmp_path / "trials.sqlite")) == 2


def test_a_gap_below_zero_by_rounding_is_zero_and_one_by_more_is_seen() -> None:
    for above, expected in ((1e-15, 0.0), (1e-3, -1e-3)):
        here = Smooth(lambda x: (x**2).sum() + 2, torch.zeros(2, dtype=torch.float64), facts={"best_value": 2 + above})
        record = runs(here, [SGD], tune=1, seeds=1, budget=Budget(steps=2)).sides[0].evaluations[0]
        assert record.status == "finished" and record.value == pytest.approx(expected, rel=1e-9, abs=0)


def test_nothing_to_tune_is_not_tuned() -> None:
    fixed = replace(SGD, space={}, fixed={"lr": 0.05})
    side = runs(PROBLEM, [fixed], tune=8, seeds=2).sides[0]
    assert side.tuning == () and len(side.evaluations) == 2


def test_a_problem_made_on_the_spot_runs_here_and_is_refused_by_workers() -> None:
    here = Smooth(lambda x: (x**2).sum(), torch.ones(3), name="bowl")
    assert runs(here, [SGD], tune=2, seeds=1, budget=Budget(steps=10)).terms.metric == "value"
    with pytest.raises(StudyError, match="workers=1"):
        runs(here, [SGD], tune=2, seeds=1, budget=Budget(steps=10), workers=2)


def test_budgets_of_counts_and_seconds_are_spent_alike() -> None:
    table = runs(PROBLEM, [SGD, ADAM], tune=2, seeds=1, budget=Budget(gradients=17))
    assert {record.counts["gradients"] for record in table.records} == {17}
    assert all(len(record.curve["steps"]) >= 17 for record in table.records)
    timed = runs(PROBLEM, [SGD], tune=1, seeds=1, budget=Budget(seconds=0.02), workers=2).records
    assert all(record.seconds >= 0.02 and record.status == "finished" for record in timed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"problem": "no/such_file.py"}, "no/such_file.py.*does not exist"),
        ({"methods": []}, "methods"),
        ({"methods": [SGD, SGD]}, "sgd.*twice"),
        ({"metric": "accuracy"}, "accuracy.*gap"),
        ({"tune": -1}, "tune.*-1"),
        ({"seeds": 0}, "seeds.*0"),
        ({"workers": 0}, "workers.*0"),
        ({"storage": "postgresql://me:secret@nowhere.invalid/x"}, "nowhere.invalid"),
        ({"storage": "sqlite:////no/such/folder/trials.sqlite"}, "no/such/folder"),
        ({"storage": "no/such/folder/trials"}, "no/such/folder/trials"),
        ({"storage": "no-such-database://here"}, "no-such-database"),
        ({"tune": 1.5}, "tune.*1.5"),
        ({"seeds": True}, "seeds.*True"),
        ({"budget": 3}, "budget must be a Budget, got 3"),
        ({"budget": Budget(gradiants=3)}, "gradiants.*did you mean 'gradients'"),
        ({"budget": Budget(stepz=3)}, "stepz.*did you mean 'steps'"),
        ({"budget": Budget(nosuch=3)}, "nosuch.*counted"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments: dict[str, object], said: str) -> None:
    notes = Notes()
    with pytest.raises(FalllineError, match=said) as caught:
        runs(**({"problem": PROBLEM, "methods": [SGD], "watcher": notes} | arguments))  # type: ignore[arg-type]
    assert "secret" not in str(caught.value) and not notes.run


def test_no_budget_is_refused() -> None:
    with pytest.raises(StudyError, match="no budget"):
        runs(Smooth(lambda x: (x**2).sum(), torch.ones(3)), [SGD])


def test_a_method_that_does_not_fit_is_refused_at_the_door() -> None:
    notes = Notes()
    values_only = BlackBox(lambda x: (x**2).sum(), torch.ones(3))
    with pytest.raises(MissingOracle):
        runs(values_only, [replace(SGD, factory=NewtonLike)], budget=Budget(steps=3), watcher=notes)
    assert not notes.run


def NewtonLike(lr: float) -> object:
    """A method with needs, of the library's own."""
    from fallline.core.method import Method

    class Needy(Method):
        needs = ("hessian",)

    return Needy()


def test_an_unknown_method_gets_suggestions() -> None:
    with pytest.raises(UnknownName, match="lazy-newton"):
        runs(PROBLEM, ["lazy-newtn"])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    runs(PROBLEM, [SGD], tune=5, seeds=1)
    assert torch.equal(before, torch.get_rng_state())
