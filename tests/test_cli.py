"""The command line: what it prints, what it writes, and one clear line when the question is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fallline import claims
from fallline.cli import main
from fallline.cli.comparing import listed

PROBLEM = str(Path(__file__).parent / "study" / "descent_problem.py")
METHODS = "lazy-newton,lazy-cubic-newton"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fallline", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)


def compare(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str, problem: str = PROBLEM, budget: tuple[str, ...] = ("--budget", "steps=5")
) -> int:
    effort = ("--tune", "2", "--seeds", "2", "--workers", "1", *budget, "--out", str(folder))
    return run(monkeypatch, "compare", problem, *("--methods", METHODS) * ("--methods" not in more), *effort, *more)


def test_compare_writes_report_picture_and_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert compare(monkeypatch, tmp_path) == 0
    first = capsys.readouterr()
    assert "lazy-newton" in first.out and "report.html" in first.out and "8/8" in first.err
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "leaderboard.svg", "trials.sqlite"}
    assert compare(monkeypatch, tmp_path, "--json") == 0
    second = capsys.readouterr()
    found = json.loads(second.out)
    assert [row["rank"] for row in found["leaderboard"]] == [1, 2] and second.err == ""
    assert found["report"] == str(tmp_path / "report.html")
    again = tmp_path / "again.html"
    assert run(monkeypatch, "report", str(tmp_path), "--out", str(again)) == 0
    assert again.read_text() == (tmp_path / "report.html").read_text()
    assert run(monkeypatch, "report", str(tmp_path / "trials.sqlite"), "--problem", "other") == 2
    assert "there are studies of descent_problem" in capsys.readouterr().err
    assert run(monkeypatch, "report", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["leaderboard"] == found["leaderboard"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--methods", "lazy-newtn"), "did you mean 'lazy-newton'"),
        (("--budget", "steps"), "--budget must be NAME=NUMBER, got 'steps'"),
        (("--budget", "steps=1.7"), "--budget steps must be a whole number, got 'steps=1.7'"),
        (("--budget", "gradients=nan"), "--budget gradients must be a whole number"),
        (("--budget", "seconds=nan"), "--budget seconds must be a positive number, got 'seconds=nan'"),
        (("--budget", "seconds=inf"), "--budget seconds must be a positive number, got 'seconds=inf'"),
        (("--budget", "steps=0"), "steps must be a positive number"),
        (("--budget", "steps=5,gradients=3,steps=7"), "--budget steps is given twice"),
        (("--storage", "postgresql://u:secret@nowhere.invalid/db"), "nowhere.invalid"),
        (("--out", "{file}/inside"), "cannot be written"),
        (("--metric", "beauty"), "beauty"),
        (("--budget", "nosuch=5"), "'nosuch' is counted by no method here"),
        (("--budget", "gradiants=5"), "did you mean 'gradients'"),
        (("--prune", "hopeless"), "prune must be None, 'median'"),
        (("--methods", "mine.py:Own"), "mine.py"),
        (("--methods", "=lazy-newton"), "LABEL=METHOD, got '=lazy-newton'"),
        (("--methods", "a=lazy-newtn"), "did you mean 'lazy-newton'"),
        (("--methods", "a=lazy-newton,a=lazy-cubic-newton"), "['a'] twice"),
        (("--axis", "parsecs"), "axis 'parsecs' is counted by no method here"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    (tmp_path / "file").touch()
    options = [option.format(file=tmp_path / "file") for option in more]
    assert compare(monkeypatch, tmp_path / "deep" / "out", *options, budget=() if "--budget" in more else ("--budget", "steps=5")) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown and shown.count("\n") == 0 and shown.startswith("error: ") and "secret" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_was_there_stays_when_the_question_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert compare(monkeypatch, tmp_path, "--metric", "beauty") == 2
    assert tmp_path.is_dir()


def test_labels_tell_methods_of_one_name_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, lr in (("one", 0.01), ("two", 0.02)):
        (tmp_path / f"{name}.py").write_text(f"import torch\n\nclass GD(torch.optim.SGD):\n    space = {{}}\n\n"
                                             f"    def __init__(self, params): super().__init__(params, lr={lr})\n")
    methods = f"mine={tmp_path / 'one.py'}:GD,{tmp_path / 'two.py'}:GD,again=lazy-newton,lazy-newton"
    assert compare(monkeypatch, tmp_path / "out", "--methods", methods, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["leaderboard"]
    assert {row["method"] for row in rows} == {"mine", "gd", "again", "lazy-newton"}
    assert len({row["median"] for row in rows if row["method"] in ("mine", "gd")}) == 2


def test_a_path_with_an_equals_sign_is_no_label() -> None:
    assert listed("runs/lr=1/a.py:GD, adam") == ["runs/lr=1/a.py:GD", "adam"]


def test_what_lies_beside_a_problem_file_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "beside_the_problem.py").write_text("CURVATURE = 3.0")
    (tmp_path / "mine.py").write_text(
        "import torch, fallline as fl, beside_the_problem\n\n\ndef problem(seed):\n"
        "    return fl.Smooth(lambda x: beside_the_problem.CURVATURE * (x**2).sum(), torch.ones(3), name='mine')\n")
    assert compare(monkeypatch, tmp_path / "out", "--workers", "2", "--json", problem=str(tmp_path / "mine.py")) == 0
    assert all(not row["errors"] for row in json.loads(capsys.readouterr().out)["leaderboard"])


def test_a_report_drops_only_earlier_studies_of_one_question_in_one_storage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def shown(*arguments: str) -> list[tuple[float, int, int]]:
        capsys.readouterr()
        assert run(monkeypatch, "report", *arguments, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        return [(entry["given"]["budget"]["steps"], len(entry["leaderboard"]), entry["given"]["seeds"]) for entry in found]

    one, two = tmp_path / "one", tmp_path / "two"
    for options in (("--seeds", "3"), ("--budget", "steps=4"), ("--methods", "lazy-newton"), ("--seeds", "2")):
        budget = () if "--budget" in options else ("--budget", "steps=5")
        assert compare(monkeypatch, one, "--tune", "1", "--json", *options, budget=budget) == 0
    assert compare(monkeypatch, two, "--tune", "1", "--json") == 0
    assert shown(str(one)) == [(4, 2, 2), (5, 1, 2), (5, 2, 2)]
    assert shown(str(one), "--all") == [(5, 2, 3), (4, 2, 2), (5, 1, 2), (5, 2, 2)]
    assert shown(str(two), str(one), str(two / "trials.sqlite")) == [(5, 2, 2), (4, 2, 2), (5, 1, 2), (5, 2, 2)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("x = 1", "no function `problem`"),
        ("def problem(seed): return 3", "must return a fallline Problem, got int"),
        ("def problem(seed): return 1 / 0", "ZeroDivisionError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("import sys\ndef problem(seed): sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_wrong_problem_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    assert compare(monkeypatch, tmp_path / "out", problem=str(file)) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown and "mine" in shown and shown.count("\n") == 0


def test_papers_as_table_and_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "papers", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["slug"] for row in found] == claims.slugs()
    assert all(set(row) == {"slug", "title", "room", "methods", "verdict"} for row in found)
    assert run(monkeypatch, "papers", "--room", "solvers", "--json") == 0
    assert {row["room"] for row in json.loads(capsys.readouterr().out)} == {"solvers"}
    assert run(monkeypatch, "papers", "--room", "solvrs") == 2
    assert "did you mean 'solvers'" in capsys.readouterr().err


def test_show_gives_rule_space_and_claims(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "show", "lazy-newton") == 0
    shown = capsys.readouterr().out
    paper, stated = claims.load("lazy-newton")
    assert paper.headline in shown and "Tuned over: M:" in shown
    assert all(claim.statement in shown for claim in stated)
    assert run(monkeypatch, "show", "lazy-newtn") == 2


def test_check_needs_names_or_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "check") == 2
    assert run(monkeypatch, "check", "no-such-paper") == 2
    assert "no-such-paper" in capsys.readouterr().err


def test_check_records_and_fails_on_a_contradiction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = {"found": 1.0}
    paper = claims.load("lazy-newton")[0]

    def measure(scale: claims.Scale, seed: int) -> claims.Evidence:
        return claims.Evidence([claims.at_most("cost", values["found"], 2.0)])

    stated = (claims.Claim("the cost is at most two", measure),)
    monkeypatch.setattr("fallline.claims._checking.load", lambda slug: (paper, stated))
    monkeypatch.setattr("fallline.claims._records.evidence_folder", lambda: tmp_path)
    assert run(monkeypatch, "check", "lazy-newton", "--record") == 0
    assert run(monkeypatch, "check", "lazy-newton", "--quick") == 0
    values["found"] = 3.0
    assert run(monkeypatch, "check", "lazy-newton") == 1
    assert "recorded as holds, now fails" in capsys.readouterr().err
    del values["found"]
    assert run(monkeypatch, "check", "lazy-newton") == 1
    assert "KeyError" in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = "import sys, fallline, fallline.cli; sys.exit(any(m in sys.modules for m in ('torch', 'optuna', 'plotly')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
