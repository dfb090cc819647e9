"""What a comparison says, and the report."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from sides import ADAM, PROBLEM, SGD, WILD

from fallline.core.budget import Budget
from fallline.core.constructors import FiniteSum, Smooth
from fallline.study import Comparison, Contender, Record, RunTable, Side, StudyError, compare
from fallline.study.sources import problem_spec
from fallline.study.terminal import write_svg


def made(**values: list[float]) -> Comparison:
    """A comparison with these metrics over seeds."""

    def side(title: str, found: list[float]) -> Side:
        records = [
            Record(title, "p", title, {}, {"steps": 3}, i, "finished" if math.isfinite(v) else "divergent", "loss", v)
            for i, v in enumerate(found)
        ]
        return Side(Contender(title), {}, (), tuple(records))

    sides = tuple(side(title, found) for title, found in values.items())
    seeds = len(next(iter(values.values())))
    return Comparison(RunTable(problem_spec(PROBLEM), sides, {"steps": 3.0}, 0, 1, seeds, "loss"))


def test_a_winner_needs_a_spread_apart_from_every_other() -> None:
    clear = made(a=[1.0, 1.1, 1.2], b=[1.3, 1.4, 1.5], c=[2.0, 3.0, 1.21])
    assert clear.winner == "a" and "a wins: loss 1.1 (1 to 1.2), 21% below b" in clear.headline
    close = made(a=[1.0, 1.1, 1.35], b=[1.3, 1.4, 1.5])
    assert close.winner is None and "No clear winner between a and b" in close.headline
    assert [row.method for row in close.leaders] == ["a", "b"]


@pytest.mark.parametrize("values", [{"a": [1.0] * 3, "b": [9.0] * 3}, {"a": [1.0, 1.1, 1.2], "b": [9.0] * 3},
                                    {"a": [1.0] * 3, "b": [8.0, 9.0, 9.5]}])
def test_the_same_run_at_every_seed_is_one_seed(values: dict[str, list[float]]) -> None:
    found = made(**values)
    assert found.winner is None and "one seed: no winner" in found.headline
    assert found.repeated == [name for name, runs in values.items() if len(set(runs)) == 1]


def test_runs_that_end_alike_and_went_differently_are_several() -> None:
    found = made(a=[0.0] * 3, b=[9.0, 9.1, 9.2])
    side = found.table["a"]
    runs = tuple(replace(record, curve={"value": [5.0 + i, 0.0]}) for i, record in enumerate(side.evaluations))
    table = replace(found.table, sides=(replace(side, evaluations=runs), found.table["b"]))
    assert Comparison(table).winner == "a"


def test_a_deterministic_problem_names_no_winner() -> None:
    still = Smooth(lambda x: (x**2).sum(), torch.ones(3), name="still")
    found = compare(still, [SGD, ADAM], tune=1, seeds=3, budget=Budget(steps=5), progress=False)
    assert found.winner is None and set(found.repeated) == {"sgd", "adam"}


def test_sides_that_spent_different_amounts_are_said_to(tmp_path: Path) -> None:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    drawn = FiniteSum(lambda x, a: ((x - a) ** 2).mean(), rows, torch.ones(3), batch_size=2, name="drawn")
    found = compare(drawn, [SGD, "powersgd"], tune=1, seeds=2, budget=Budget(steps=5), progress=False)
    assert {row.method: found.spent(row) for row in found.leaderboard} == {"sgd": 10, "powersgd": 40}
    said = "different amounts of samples a run (powersgd 40, sgd 10)"
    report = found.report(tmp_path / "report.html").read_text()
    assert said in found.headline and said in report and "40 samples" in report and "samples" in repr(found)
    equal = compare(drawn, [SGD, "powersgd"], tune=1, seeds=2, budget=Budget(samples=40), progress=False)
    assert equal.unequal == "" and {equal.spent(row) for row in equal.leaderboard} == {40}


def test_one_seed_names_no_winner() -> None:
    found = made(a=[1.0], b=[9.0])
    assert found.winner is None and "no winner" in found.headline


def test_divergence_ranks_last_and_everything_diverging_ranks_nobody() -> None:
    found = made(a=[math.inf, math.inf, 0.1], b=[1.0, 2.0, 3.0])
    assert [row.method for row in found.leaderboard] == ["b", "a"]
    assert made(a=[math.inf] * 3, b=[math.inf] * 3).leaders == []


def test_order_of_names_does_not_change_the_ranking() -> None:
    values = {"a": [1.0, 2.0, 3.0], "b": [0.5, 0.6, 0.7], "c": [9.0, 9.0, 9.0]}
    backwards = dict(reversed(values.items()))
    for named in (values, backwards):
        assert [row.method for row in made(**named).leaderboard] == ["b", "a", "c"]


@pytest.fixture(scope="module")
def real() -> Comparison:
    return compare(PROBLEM, [SGD, ADAM, WILD], tune=6, seeds=3, progress=False)


def test_text_and_frame_hold_every_side_and_trial(real: Comparison) -> None:
    assert all(row.method in repr(real) for row in real.leaderboard)
    frame = real.to_frame()
    assert len(frame) == len(real.table.records) == 6 + 6 + 2 + 3 * 3
    assert set(frame["status"]) == {"finished", "divergent"}


def test_plot_has_a_line_a_side(real: Comparison) -> None:
    for axis in ("step", "seconds", "oracle calls"):
        assert {trace.name for trace in real.plot(axis).data if trace.name} == {"sgd", "adam", "wild"}
    with pytest.raises(StudyError, match="parsecs"):
        real.plot("parsecs")


class Page(HTMLParser):
    """Elements, and where they point."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pointers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)
        self.pointers += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.pointers += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_small_file_that_fetches_nothing(real: Comparison, tmp_path: Path) -> None:
    text = real.report(tmp_path / "new" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and page.pointers == ["data:,"]
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert len(text) < 2_000_000
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["report.html"]


def test_the_report_says_what_the_comparison_says(real: Comparison, tmp_path: Path) -> None:
    text = real.report(tmp_path / "report.html").read_text()
    assert real.outcome in text and real.terms in text
    assert f"torch.optim.SGD(model.parameters(), lr={real.table['sgd'].setting['lr']:.4g})" in text
    points = json.loads(re.search(r'id="points">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert len(points) == text.count("data-chart=")
    assert all({series["title"] for series in chart} == {"sgd", "adam", "wild"} for chart in points)
    assert text.count('class="cross') == sum(row.tuning_diverged for row in real.leaderboard) == 1
    assert not re.search(r'[ ,="]-?(nan|inf)[ ,"]', text)


def test_names_are_escaped(tmp_path: Path) -> None:
    odd = compare(PROBLEM, [replace(SGD, label="<i>&")], tune=1, seeds=1, progress=False)
    text = odd.report(tmp_path / "report.html").read_text()
    assert "<i>" not in text and "&lt;i&gt;&amp;" in text


def test_an_unwritable_report_names_the_path(real: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"file/report\.html"):
        real.report(tmp_path / "file" / "report.html")


def test_the_picture_of_the_terminal_fetches_nothing(real: Comparison, tmp_path: Path) -> None:
    drawn = write_svg(real, tmp_path / "leaderboard.svg").read_text()
    assert "font-face" not in drawn and "https://cdn" not in drawn and "sgd" in drawn
