"""Discovery, evidence files, contradictions, pages; on a package of papers made for the purpose."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fallline.claims import (
    Scale,
    Verdict,
    check,
    contradictions,
    evidence_path,
    load,
    papers,
    read,
    record,
    slugs,
    stale,
)
from fallline.claims import _checking as checking
from fallline.claims._gallery import index, page, pictures
from fallline.claims._guide import command, sections
from fallline.claims._pages import pages, papers_table, replaced, write_pages
from fallline.core.errors import UnknownName

MODULE = '''
from fallline.claims import Evidence, Paper, Scale, at_most, claim, recorded

PAPER = Paper(slug="steep-path", title="A | path", arxiv="2301.00001", year=2023, room="optim",
              methods=("optim.Lion",), headline="steeper")
LIMIT = 2.0
AXES = None

@claim("the path is at most two long")
def length(scale: Scale, seed: int) -> Evidence:
    long = [1.0 + seed, 1.5 + seed, float("nan") if seed > 90 else 1.2 + seed]
    return Evidence([at_most("length", long, LIMIT), recorded("scale is full", float(scale is Scale.FULL))],
                    curves={"path": (range(500), [float("inf")] * 500)}, axes=AXES, notes="short")

@claim("the other path is at most two long")
def other(scale: Scale, seed: int) -> Evidence:
    if seed == 13:
        raise RuntimeError("a black cat")
    return Evidence([at_most("other length", 1.0, LIMIT)])
'''


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "papers_for_tests"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "_machinery.py").touch()
    (folder / "steep_path.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checking, "PACKAGE", "papers_for_tests")
    yield folder
    for name in [name for name in sys.modules if name.startswith("papers_for_tests")]:
        del sys.modules[name]


def test_papers_are_found_by_their_modules() -> None:
    assert slugs() == ["steep-path"]
    paper, claims = load("steep-path")
    assert [paper] == list(papers()) and [claim.name for claim in claims] == ["length", "other"]
    with pytest.raises(UnknownName, match="did you mean 'steep-path'"):
        load("step-path")


@pytest.mark.parametrize(
    ("old", "new"), [('slug="steep-path"', 'slug="flat-path"'), ("PAPER =", "CARD ="), ("@claim", "(lambda text: lambda f: f)")]
)
def test_a_module_that_is_no_paper_is_refused(package: Path, old: str, new: str) -> None:
    (package / "steep_path.py").write_text(MODULE.replace(old, new))
    with pytest.raises(TypeError, match="must define"):
        load("steep-path")


def test_a_claim_that_raises_is_an_error_and_not_a_verdict(tmp_path: Path) -> None:
    result = check("steep-path", seed=13)
    assert result.verdict is None and "a black cat" in result.errors["other"]
    assert result.claims[0].evidence is not None
    with pytest.raises(ValueError, match="raised"):
        record(result, tmp_path)
    assert not evidence_path("steep-path", folder=tmp_path).exists()


def test_a_quick_claim_has_one_thread_whatever_its_process_has(package: Path) -> None:
    (package / "steep_path.py").write_text(MODULE.replace("long = [", "import torch; long = 3 * [0.5 * torch.get_num_threads()] or ["))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert check("steep-path").figures[0].measured == (0.5, 0.5, 0.5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    for scale in Scale:
        result = check("steep-path", scale, seed=0)
        path = record(result, tmp_path / "evidence")
        found = read("steep-path", scale, tmp_path / "evidence")
        assert found is not None and found.verdict is result.verdict is Verdict.HOLDS
        assert [f for c in found.claims for f in c.evidence.figures] == list(result.figures)
        assert len(found.claims[0].evidence.curves["path"][0]) == 80
        json.loads(path.read_text(), parse_constant=pytest.fail)
    assert sorted(f.name for f in (tmp_path / "evidence").iterdir()) == ["steep-path.full.json", "steep-path.json"]


def test_values_that_are_not_finite_survive_the_file(tmp_path: Path) -> None:
    record(check("steep-path", seed=99), tmp_path)
    found = read("steep-path", folder=tmp_path)
    assert found is not None and math.isnan(found.claims[0].evidence.figures[0].measured[2])


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    path = record(check("steep-path", seed=50), tmp_path)
    path.write_text(path.read_text().replace('"does not hold here"', '"holds"'))
    with pytest.raises(ValueError, match="never edited"):
        read("steep-path", folder=tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not evidence"):
        read("steep-path", folder=tmp_path)


@pytest.mark.parametrize(
    ("recorded_at", "run_at", "contradicts"),
    [(0, 0, 0), (0, 50, 1), (50, 0, 1), (0.7, 0, 0), (0.7, 50, 0), (50, 0.7, 0), (50, 50, 0)],
)
def test_only_a_flipped_figure_contradicts(tmp_path: Path, recorded_at: int, run_at: int, contradicts: int) -> None:
    record(check("steep-path", seed=recorded_at), tmp_path)
    found = read("steep-path", folder=tmp_path)
    assert found is not None and len(contradictions(found, check("steep-path", seed=run_at))) == contradicts


def test_a_changed_statement_or_figure_is_noticed(tmp_path: Path, package: Path) -> None:
    record(check("steep-path"), tmp_path)
    found = read("steep-path", folder=tmp_path)
    assert found is not None and stale(found, load("steep-path")[1]) == []
    del sys.modules["papers_for_tests.steep_path"]
    changed = MODULE.replace("is at most two long", "is at most two miles long").replace('"length"', '"miles"')
    (package / "steep_path.py").write_text(changed)
    assert len(stale(found, load("steep-path")[1])) == 2
    assert len(contradictions(found, check("steep-path"))) == 2


def test_pages_say_what_is_recorded(tmp_path: Path) -> None:
    (paper,) = papers()
    assert "not recorded" in papers_table([paper], tmp_path) and "No evidence is recorded yet." in page(paper, tmp_path)
    record(check("steep-path", seed=50), tmp_path)
    row = "| `steep-path` | [A \\| path](https://arxiv.org/abs/2301.00001) | `optim` | `optim.Lion` | holds in part |"
    assert papers_table([paper], tmp_path).splitlines()[-1] == row
    assert index([paper], tmp_path).splitlines()[-1] == "| [steep-path](steep-path.md) | holds in part | `optim` | A \\| path | 2023 |"
    text = page(paper, tmp_path)
    assert "# A \\| path" in text and "The paper reports: steeper" in text and "> the path is at most two long" in text
    assert "| length | 51.2 | 51 to 51.5, 3 seeds | `<= 2` | **fails** |" in text
    assert "(../api/optim.md#fallline.optim.lion.Lion)" in text and "```text\nθ ← (1 − η λ) θ" in text
    assert "![the path is at most two long](steep-path-length-quick.svg)" in text and "\n\nshort\n\n" in text
    assert "fallline check steep-path --full" in text and "full scale" not in text


def test_a_page_has_the_claims_of_both_scales(tmp_path: Path) -> None:
    for scale in Scale:
        record(check("steep-path", scale), tmp_path)
    (paper,) = papers()
    assert "## Claims, quick scale" in page(paper, tmp_path) and "## Claims, full scale" in page(paper, tmp_path)
    assert list(pictures("steep-path", tmp_path)) == ["steep-path-length-quick.svg", "steep-path-length-full.svg"]


def test_axes_are_recorded_and_drawn(tmp_path: Path, package: Path) -> None:
    (package / "steep_path.py").write_text(MODULE.replace("AXES = None", 'AXES = ("steps", "height")'))
    record(check("steep-path"), tmp_path)
    (drawn,) = pictures("steep-path", tmp_path).values()
    assert ">steps</text>" in drawn and ">height</text>" in drawn
    assert "*height against steps*" in page(next(papers()), tmp_path)


def test_pages_are_written_anew_and_those_of_papers_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "docs" / "gallery").mkdir(parents=True)
    (tmp_path / "README.md").write_text("top\n<!-- papers -->old<!-- /papers -->\nend")
    (tmp_path / "docs" / "which-method.md").write_text("guide <!-- studies --><!-- /studies -->")
    (tmp_path / "docs" / "gallery" / "flat-path.md").write_text("gone")
    record(check("steep-path"), tmp_path / "evidence")
    written = write_pages(tmp_path)
    assert {path.name for path in (tmp_path / "docs" / "gallery").iterdir()} == {
        "index.md", "steep-path.md", "steep-path-length-quick.svg"}
    assert {path: path.read_text() for path in written} == pages(tmp_path)


def test_what_stands_between_its_marks_is_replaced() -> None:
    text = replaced("top\n<!-- papers -->old<!-- /papers -->\nend", "papers", "new \\1")
    assert text == "top\n<!-- papers -->\nnew \\1\n<!-- /papers -->\nend"
    assert replaced(text, "papers", "new \\1") == text
    with pytest.raises(ValueError, match="papers"):
        replaced("no marks", "papers", "new")


STUDY = {
    "problem": "digits-mlp",
    "metric": "loss",
    "winner": "lion",
    "headline": "lion wins.",
    "leaderboard": [
        {"rank": 1, "method": "lion", "median": 0.0512, "low": 0.05, "high": 0.06, "seeds": 3, "setting": {"lr": 0.001}},
        {"rank": 2, "method": "dog", "median": None, "low": None, "high": None, "seeds": 3, "setting": {}, "tuning_trials": 0},
    ],
}


def test_a_study_is_a_section_of_the_guide() -> None:
    text = sections({"small-digits": STUDY})
    assert "| [small-digits](#small-digits) | lion | lion, dog |" in text and "### small-digits\n\nlion wins." in text
    assert "| 1 | `lion` | 0.0512 | 0.05 to 0.06, 3 seeds | — | `lr=0.001` |" in text
    assert "| 2 | `dog` | diverged | — | — | `its own defaults` |" in text
    assert command(STUDY) == "fallline compare digits-mlp --methods dog,lion --tune 0 --seeds 3"
    assert "No study" in sections({})


def test_what_a_study_was_given_is_in_its_command_and_what_limits_it_beside_it() -> None:
    given: dict[str, object] = {"budget": {"steps": 300, "seconds": 1.5}, "tune": 6, "tuning_seeds": 2, "seeds": 3}
    given |= {"first_seed": 7, "prune": "median"}
    rows = [{**row, "p": 0.013 * row["rank"], "spent": {"samples": 19200}} for row in STUDY["leaderboard"]]
    given["environment"] = {"torch": "2.13"}
    study = {**STUDY, "given": given, "limits_of_the_answer": ["few | seeds"], "leaderboard": rows}
    assert command(study) == ("fallline compare digits-mlp --methods dog,lion --budget steps=300,seconds=1.5 --tune 6 --seeds 3 "
                              "--tuning-seeds 2 --seed 7 --prune median")
    text = sections({"digits": study})
    assert "| 0.026 | 19,200 samples |" in text and "- few \\| seeds" in text and "torch 2.13" in text
