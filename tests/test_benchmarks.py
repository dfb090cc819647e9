"""The benchmarks: what is measured is what is told, results have one shape, and the page is made from them. No time is judged."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import curvature  # noqa: E402
import harness  # noqa: E402
import linear_systems  # noqa: E402
import matrix_roots  # noqa: E402
import optim_rules  # noqa: E402
import optim_step  # noqa: E402
import overhead  # noqa: E402
import tables  # noqa: E402
import trajectories  # noqa: E402
from figures import RESULTS, Benchmark, Goal, Row, Table, read  # noqa: E402
from harness import Contestant, Missing, Operation, Options  # noqa: E402

import graphs  # noqa: E402
import study  # noqa: E402

RESULT_FILES = sorted(RESULTS.glob("*.json"))
QUICK = Options(repeats=2, threads=1, quick=True)


class Calls:
    """A contestant that notes its calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    @property
    def contestant(self) -> Contestant:
        def set_up() -> Operation:
            self.log.append(f"{self.name} set up")
            return Operation(lambda: self.log.append(self.name), lambda: self.log.append(f"{self.name} before"))

        return Contestant(self.name, set_up)


def test_contestant_and_reference_take_turns_and_either_comes_first_in_half_of_the_set_ups() -> None:
    log: list[str] = []
    pairs = harness.paired(Calls("r", log).contestant, Calls("c", log).contestant, repeats=6)
    assert len(pairs) == 6 and all(seconds >= 0 for pair in pairs for seconds in pair)
    expected = []
    for share, (first, second) in zip((2, 2, 1, 1), (("r", "c"), ("c", "r")) * 2, strict=True):
        turn = [f"{first} before", first, f"{second} before", second]
        expected += [f"{first} set up", f"{second} set up", *turn * (harness.WARM_UP + share)]
    assert log == expected


def test_a_pair_is_the_reference_and_then_the_contestant_whoever_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Operation, "seconds", lambda operation: operation.call())
    reference, contestant = (Contestant(str(value), lambda value=value: Operation(lambda: value)) for value in (1.0, 2.0))
    assert harness.paired(reference, contestant, 5) == [(1.0, 2.0)] * 5
    assert harness.paired(reference, contestant, 1) == [(1.0, 2.0)]


def test_a_row_tells_the_ratios_of_its_pairs() -> None:
    row = harness.measured("c", [(1.0, 2.0), (2.0, 2.0), (1.0, 4.0), (1.0, 3.0), (4.0, 2.0)])
    assert row.ratios == (2.0, 1.0, 4.0, 3.0, 0.5) and row.milliseconds == 2000
    assert row.ratio is not None and (row.ratio.lower, row.ratio.median, row.ratio.upper) == (1.0, 2.0, 3.0)


def test_a_race_has_the_reference_first_and_says_who_is_missing_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    absent = Contestant("absent", lambda: Operation(harness.peer("no_such_library", "Lion")))
    racing = [Calls("c", log).contestant, absent]
    further = lambda name, pairs: {"pairs": len(pairs)}
    (table,) = harness.race("turns", Calls("r", log).contestant, racing, Options(repeats=1), further=further)
    assert [row.name for row in table.rows] == ["r", "c", "absent"] and table.reference == "r"
    assert [row.figures for row in table.rows] == [{"pairs": 1}, {"pairs": 1}, {}]
    assert table.rows[2].missing is not None and "no_such_library" in table.rows[2].missing and table.rows[2].ratio is None
    assert "ModuleNotFoundError" in tables.measurements(table) and "missing" in capsys.readouterr().out


def test_mistakes_of_ones_own_are_not_missing_libraries() -> None:
    def set_up() -> Operation:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        harness.race("turns", Contestant("r", set_up), [Contestant("c", set_up)], Options(repeats=1))
    with pytest.raises(Missing, match=r"json\.NoSuchName"):
        harness.peer("json", "NoSuchName")


def test_only_leaves_contestants_out_and_tables_without_any() -> None:
    log: list[str] = []
    named = [Calls(name, log).contestant for name in ("lion", "lion compiled", "adamw")]
    (table,) = harness.race("turns", Calls("r", log).contestant, named, Options(repeats=1, only=("lion",)))
    assert [row.name for row in table.rows] == ["r", "lion", "lion compiled"]
    assert harness.race("turns", Calls("r", log).contestant, named, Options(repeats=1, only=("sgd",))) == []
    assert harness.options_of("Title", ["--only", "a,b", "--repeats", "3", "--quick"]) == Options(3, 2, ("a", "b"), True)


def test_the_peak_is_what_tensors_hold_at_once_beyond_what_they_held_before() -> None:
    def set_up() -> Operation:
        held, kept = torch.zeros(1000), {}

        def call() -> None:
            kept.setdefault("state", torch.zeros(500))
            torch.add(held, 1)  # two thousand bytes of state are kept, four thousand are needed for a while
            torch.zeros(250)

        return Operation(call)

    assert harness.peak_bytes(Contestant("c", set_up)) == pytest.approx(6000, abs=64)


def test_a_fresh_process_is_another_one_with_its_own_environment() -> None:
    assert harness.fresh(os.getenv, "FALLLINE_BENCHMARK", environment={"FALLLINE_BENCHMARK": "here"}) == "here"
    assert harness.fresh(os.getpid) != os.getpid() and "FALLLINE_BENCHMARK" not in os.environ


def example(others: float | None = 1.0) -> Benchmark:
    rows = (
        Row("r", (1.0, 1.0, 1.0), 2.0),
        Row("c", (0.5, 0.75, 1.5), 1.5, 3 * 2**20, {"first step, s": 4.0, "state": None}),
        Row("peer | odd", missing="it cannot be imported"),
    )
    goals = (
        Goal("c", "ratio", 0.8, "less work"),
        Goal("c", "milliseconds", 1.0, "less time"),
        Goal("c", "ratio", "r", "the peer"),
        Goal("c", "ratio", "peer | odd", "the other peer"),
    )
    table, settings = Table("T", "r", rows, goals), {"repeats": 3, "threads": 2}
    machine = harness.machine() | {"others_percent": others}
    return Benchmark("example", "A title\n\nWhat ``it`` is.", machine, {"peer": "1.0"}, settings, (table,))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = example().write(tmp_path)
    assert read(path) == example()
    plain = json.loads(path.read_text())["tables"][0]["rows"][1]
    assert plain["ratio"] == {"lower": 0.625, "median": 0.75, "upper": 1.125}


def test_goals_stand_beside_what_was_measured() -> None:
    text = tables.page([example()])
    assert "Of 4 goals 2 are met" in text and "What `it` is." in text
    assert "| c: ratio | 0.8 | 0.75 (0.625 to 1.12) | met | less work |" in text
    assert "| c: milliseconds | 1 | 1.5 | **missed** | less time |" in text
    assert "| c: ratio | 1, r | 0.75 (0.625 to 1.12) | met | the peer |" in text
    assert "| c: ratio | —, peer \\| odd | 0.75 (0.625 to 1.12) | not measured | the other peer |" in text
    assert "| c | 0.75 (0.625 to 1.12) | 1.5 | 3 | 4 |" in text and "peer | odd is missing: it cannot be imported." in text


def test_a_disturbed_run_decides_no_goal_of_time_whatever_came_out() -> None:
    quiet = example()
    noisy_reference = Row("r", (0.8, 1.0, 1.3), 2.0)
    noisy = replace(quiet, tables=(replace(quiet.tables[0], rows=(noisy_reference, *quiet.tables[0].rows[1:])),))
    assert "Other processes took 1 % of" in tables.page([quiet])
    assert all("Disturbed" not in tables.page([example(others)]) for others in (1.0, None))
    for found, said in ((example(40.0), "other processes took 40 %"), (noisy, "the reference against itself gave 1 (0.9 to 1.15)")):
        (table,) = found.tables
        assert f"Disturbed: {said}" in tables.page([found]) and "Of 4 goals 0 are met" in tables.page([found])
        assert {tables.verdict(found, table, goal) for goal in table.goals} == {"undecided", "not measured"}
        assert tables.verdict(found, table, Goal("c", "peak_bytes", 4.0 * 2**20, "counted")) == "met"
        assert tables.verdict(found, table, Goal("c", "peak_bytes", 1.0, "counted")) == "**missed**"


def test_what_others_took_is_neither_idle_nor_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    start = harness.Moment(0.0, 100.0, 50.0)
    assert start.others_percent(harness.Moment(10.0, 116.0, 60.0)) == 30.0
    assert start.others_percent(harness.Moment(10.0, 109.0, 60.0)) == 0.0
    assert start.others_percent(harness.Moment(10.0, None, 60.0)) is None


def test_the_machine_is_described() -> None:
    assert set(harness.machine()) == {"processor", "cores", "memory_bytes", "torch", "python", "fallline", "system", "date"}


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.stem)
def test_recorded_results_can_be_recomputed_from_every_repeat(path: Path) -> None:
    found = read(path)
    assert found.name == path.stem and (BENCHMARKS / f"{found.name}.py").exists()
    for table, plain in zip(found.tables, json.loads(path.read_text())["tables"], strict=True):
        for row, entry in zip(table.rows, plain["rows"], strict=True):
            assert (row.missing is not None) or row.milliseconds is not None or row.figures  # a profile counts calls
            assert not row.ratios or len(row.ratios) == found.settings["repeats"]
            assert (entry["ratio"] and entry["ratio"]["median"]) == row.figure("ratio")
        names = {row.name for row in table.rows}
        for goal in table.goals:
            assert goal.row in names and (isinstance(goal.at_most, float) or goal.at_most in names)
            assert table.figure(goal.row, goal.figure) is not None or goal.row in {r.name for r in table.rows if r.missing}


def test_the_page_is_made_from_the_results() -> None:
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page(tables.recorded()), "run: python benchmarks/tables.py"


def test_every_benchmark_has_results() -> None:
    pages_of_their_own = {"trajectories", "tuning_free", "preconditioned_study"}
    helpers = {"harness", "figures", "tables", *pages_of_their_own}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - helpers == {path.stem for path in RESULT_FILES}


def test_optimizers_race_with_gradients_that_come_back() -> None:
    def thief(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        found = torch.optim.SGD(params, lr=0.5)
        found.register_step_post_hook(lambda *_: found.zero_grad())
        return found

    stepping = optim_step.Stepping(thief, [(2, 3)])
    before = stepping.params[0].detach().clone()
    for _ in range(3):
        stepping.operation.seconds()
    torch.testing.assert_close(stepping.params[0].detach(), before - 1.5 * stepping.gradients[0])


def test_a_quick_race_of_optimizers() -> None:
    found = optim_step.tables(replace(QUICK, only=("torch AdamW foreach", "no such thing")))
    assert [(table.title, [row.name for row in table.rows]) for table in found] == [
        (title, ["torch AdamW fused", "torch AdamW foreach"]) for title in optim_step.MODELS
    ]
    for row in found[0].rows:
        assert len(row.ratios) == 2 and row.figures["state bytes a parameter"] == 8.0
        assert row.peak_bytes is not None and row.peak_bytes >= 8 * sum(math.prod(s) for s in optim_step.SMALL)


def test_a_quick_race_of_rules() -> None:
    found = optim_rules.tables(replace(QUICK, only=("sgd-sai", "torch NAdam foreach")))
    for table in found:
        rows = {row.name: row for row in table.rows}
        assert set(rows) == {"torch AdamW fused", "sgd-sai", "sgd-sai compiled", "torch NAdam foreach"}
        assert rows["sgd-sai"].figures["state bytes a parameter"] == 4.0
    known = {name for many in (False, True) for name in optim_rules.contestants(many)}
    assert all(goal.row in known for many in (False, True) for goal in optim_rules.goals(many))


def test_a_quick_look_at_matrix_functions() -> None:
    found = matrix_roots.tables(replace(QUICK, only=("eigh", "pade, 5", "cholesky")))
    by_title = {table.title: table for table in found}
    assert len(by_title) == 9 and found[-1].goals[0].row == "pade, 5"
    roots = by_title["Inverse square roots, float64"]
    assert [row.name for row in roots.rows] == [f"{n}: {name}" for n in (8, 32) for name in ("eigh", "pade, 5")]
    assert roots.figure("32: eigh", "error at 1e2") < 1e-12 and roots.figure("32: eigh", "derivative at 1e2") < 1e-12
    assert 0.05 < roots.figure("32: pade, 5", "error at 1e2") < 0.5
    assert by_title["Orthonormal columns, float32"].figure("8: cholesky", "error at 1e8") < 1e-6


def test_a_quick_look_at_linear_systems() -> None:
    found = linear_systems.tables(replace(QUICK, only=("scipy", "fallline")))
    by_title = {table.title: table for table in found}
    assert [row.name for row in by_title["Conjugate gradients"].rows] == [
        f"64²: {name}" for name in ("scipy", "fallline", "fallline, every 10", "fallline, function")]
    cg = by_title["Conjugate gradients"]
    assert cg.figure("64²: fallline", "matvecs") == cg.figure("64²: scipy", "matvecs")
    for title in ("Conjugate gradients", "MINRES"):
        assert all(row.figures["residual"] <= 1.01e-8 for row in by_title[title].rows if "fallline" in row.name)


def test_trajectories_tell_rules_apart() -> None:
    pairs = {(pair.rule, pair.peer): pair for pair in trajectories.PAIRS}
    assert max(trajectories.apart(pairs["AdamW", "torch `AdamW`"])) < trajectories.SAME
    assert min(trajectories.apart(pairs["RMSprop", "torch `RMSprop`"])) > 1e-3
    text = trajectories.PAGE.read_text(encoding="utf-8")
    assert all(f"| {pair.rule} | {pair.peer} |" in text for pair in trajectories.PAIRS), "run: python benchmarks/trajectories.py"
    assert "we do not know why" not in text


def test_a_quick_look_at_the_driver() -> None:
    (table,) = overhead.tables(replace(QUICK, only=("solve",)))
    assert [row.name for row in table.rows] == ["bare loop", "solve"] and len(table.rows[1].ratios) == 2


def test_a_quick_look_at_curvature() -> None:
    found = curvature.tables(QUICK)
    products, steps = [["evaluated again", "kept"]] * 2, [["203 parameters", "803 parameters"]]
    assert [[row.name for row in table.rows] for table in found] == products + steps
    assert all(table.figure(goal.row, goal.figure) is not None for table in found for goal in table.goals)


def test_a_quick_look_at_graphs() -> None:
    (table,) = graphs.tables(replace(QUICK, only=("TopoSwap",)))
    assert [row.name for row in table.rows] == ["gcastle Notears", "TopoSwap", "NOTEARS, then TopoSwap"]
    assert len(table.goals) == 2 and table.rows[1].figures.keys() == {"SHD", "largest SHD", "SID"}
    assert table.rows[0].missing or len(table.rows[1].ratios) == 2


def test_a_quick_look_at_the_machinery_and_at_records() -> None:
    machinery, records = study.tables(replace(QUICK, repeats=1))
    assert [row.name for row in machinery.rows] == ["runs, 2 workers"] and len(machinery.rows[0].ratios) == 1
    assert [row.name for row in records.rows] == ["write", "read back"]
    for table in (machinery, records):
        assert all(table.figure(goal.row, goal.figure) is not None for goal in table.goals)


def test_a_peer_that_sets_torchs_default_dtype_is_put_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rude_peer.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\nThing = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert harness.peer("rude_peer", "Thing") == 1 and torch.get_default_dtype() == torch.float32
