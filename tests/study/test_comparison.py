"""What a comparison says, and the report."""

from __future__ import annotations

import html
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
from fallline.core.space import LogUniform
from fallline.study import Comparison, Entrant, Memory, Record, RunTable, Side, StudyError, Terms, compare, stored
from fallline.study.report import write_report
from fallline.study.terminal import write_svg


def made(**values: list[float]) -> Comparison:
    """A comparison with these metrics over seeds."""

    def side(title: str, found: list[float]) -> Side:
        records = [
            Record(title, "p", title, {}, {"steps": 3}, i, "finished" if math.isfinite(v) else "divergent", "loss", v)
            for i, v in enumerate(found)
        ]
        return Side(Entrant(title, title, "parameters", {}, {}), {}, (), tuple(records))

    sides = tuple(side(title, found) for title, found in values.items())
    seeds = len(next(iter(values.values())))
    return Comparison(RunTable(Terms("p", "smooth", {"steps": 3.0}, 0, 1, seeds, 0, "loss"), sides))


def test_a_winner_is_told_apart_from_every_other_at_the_same_seeds() -> None:
    clear = made(a=[1.0, 1.1, 1.2], b=[1.3, 1.4, 1.5], c=[2.0, 3.0, 2.5])
    assert clear.winner == "a" and "a wins: loss 1.1 (1 to 1.2), 21% below b" in clear.headline
    assert "p = 0.0" in clear.outcome and clear.leaderboard[0].p is None
    paired = made(a=[1.0, 2.0, 4.0], b=[1.2, 2.5, 4.7])  # ranges overlap, and a is ahead by alike factors at every seed
    assert paired.winner == "a"
    close = made(a=[1.0, 1.1, 1.35], b=[1.3, 1.4, 1.4])
    assert close.winner is None and "No clear winner between a and b" in close.headline
    assert [row.method for row in close.leaders] == ["a", "b"]
    third = made(a=[1.0, 1.1, 1.2], b=[1.3, 1.4, 1.5], c=[2.0, 3.0, 1.21])
    assert third.winner is None and [row.method for row in third.leaders] == ["a", "c"]


def test_the_same_run_at_every_seed_is_one_seed() -> None:
    found = made(a=[1.0] * 3, b=[9.0] * 3)
    assert found.winner is None and "every seed gave a and b the same run, which is one seed: no winner" in found.headline
    assert [row.p for row in found.leaderboard] == [None, None]
    assert made(a=[1.0] * 3, b=[8.0, 9.0, 9.5]).winner == "a"


def test_runs_that_diverged_at_some_seeds_are_tested_not_dismissed() -> None:
    lost_once = made(a=[1.62, 1.92, 1.7], b=[math.inf, math.inf, 1e-4])
    assert lost_once.winner is None and [row.method for row in lost_once.leaders] == ["a", "b"]
    assert lost_once.leaderboard[1].p == 1.0 and "b finished at 1 of 3 seeds, p = 1" in lost_once.outcome
    always = made(a=[1.6, 1.9, 1.7], b=[math.inf] * 3)
    assert always.winner == "a" and "a alone finished" in always.outcome
    partly = made(a=[1.6, 1.9, math.inf], b=[math.inf] * 3)
    assert partly.winner is None and "not at every seed: no winner" in partly.outcome
    most = made(a=[math.inf, 1.9, 2.2], b=[math.inf, math.inf, 0.4])
    assert most.winner is None and [row.method for row in most.leaders] == ["a", "b"]


def test_two_seeds_and_constant_leads_name_no_winner() -> None:
    assert made(a=[3.0, 5.0], b=[6.0, 10.0]).winner is None and "at 2 seeds run" in made(a=[3.0, 5.0], b=[6.0, 10.0]).outcome
    constant = made(a=[3.0, 5.0, 4.0], b=[6.0, 10.0, 8.0])
    assert constant.winner is None and constant.leaderboard[1].p == 0.25


def test_the_headline_gives_each_p_to_its_own_method() -> None:
    found = made(a=[1.0, 1.1, 1.2, 1.3], b=[2.0, 2.2, 2.4, 2.61], c=[2.5, 9.0, 4.0, 20.0])
    second, third = (row.p for row in found.leaderboard[1:])
    assert second is not None and third is not None and second < 1e-3 < third < 0.05
    assert found.winner == "a" and f"p < 0.001; against the others at most {third:.2g})" in found.outcome


def test_a_hyperparameter_called_like_a_column_keeps_out_of_it() -> None:
    found = made(a=[1.0, 2.0])
    side = found.table["a"]
    records = tuple(replace(record, hyperparameters={"seed": 77, "lr": 0.1}) for record in side.evaluations)
    frame = Comparison(replace(found.table, sides=(replace(side, evaluations=records),))).to_frame()
    assert list(frame["seed"]) == [0, 1] and list(frame["setting seed"]) == [77, 77] and list(frame["lr"]) == [0.1, 0.1]


def test_what_is_said_of_the_tuning_is_what_was_done(real: Comparison) -> None:
    assert "tuned with up to 6 settings and then run at 3 fresh seeds of 30 steps each" in real.given  # wild has two choices
    assert made(a=[1.0] * 3).given == "Each method was run at 3 fresh seeds of 3 steps each, at its own settings."


def test_the_environment_is_that_of_the_trials() -> None:
    found = made(a=[1.0, 2.0])
    side = found.table["a"]
    one, two = (replace(record, versions={"torch": v, "python": "3"}) for record, v in zip(side.evaluations, "12", strict=True))
    table = replace(found.table, sides=(replace(side, evaluations=(one, two)),))
    assert Comparison(table).environment == {"torch": "1 / 2", "python": "3"}


def test_runs_that_end_alike_and_went_differently_are_several() -> None:
    found = made(a=[0.0] * 3, b=[9.0, 9.1, 9.2])
    side = found.table["a"]
    runs = tuple(replace(record, curve={"value": [5.0 + i, 0.0]}) for i, record in enumerate(side.evaluations))
    table = replace(found.table, sides=(replace(side, evaluations=runs), found.table["b"]))
    assert Comparison(table).winner == "a"


def test_a_deterministic_problem_names_no_winner() -> None:
    still = Smooth(lambda x: (x**2).sum(), torch.ones(3), name="still")
    found = compare(still, [SGD, ADAM], tune=1, seeds=3, budget=Budget(steps=5), progress=False)
    assert found.winner is None and all(row.repeated for row in found.leaderboard)


def test_sides_that_spent_different_amounts_are_said_to(tmp_path: Path) -> None:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    drawn = FiniteSum(lambda x, a: ((x - a) ** 2).mean(), rows, torch.ones(3), batch_size=2, name="drawn")
    found = compare(drawn, [SGD, "powersgd"], tune=1, seeds=2, budget=Budget(steps=5), progress=False)
    assert {row.method: found.spent(row) for row in found.leaderboard} == {"sgd": 10, "powersgd": 40}
    said = "different amounts of samples a run (powersgd 40, sgd 10)"
    report = found.report(tmp_path / "report.html").read_text()
    assert said in " ".join(found.limits) and said in report and "40 samples" in report and said in repr(found).replace("\n", "")
    equal = compare(drawn, [SGD, "powersgd"], tune=1, seeds=2, budget=Budget(samples=40), progress=False)
    assert "different amounts" not in " ".join(equal.limits) and {equal.spent(row) for row in equal.leaderboard} == {40}


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
    for axis in ("steps", "seconds", "oracle calls", "gradients"):
        assert {trace.name for trace in real.plot(axis).data if trace.name} == {"sgd", "adam", "wild"}
    for refused in (lambda: real.plot("parsecs"), lambda: Comparison(real.table, "parsecs")):
        with pytest.raises(StudyError, match=r"got 'parsecs'; they counted steps, seconds, oracle calls, gradients"):
            refused()


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
    assert real.outcome in html.unescape(text) and real.given in text
    assert f"fl.solve(problem, fl.Train(torch.optim.SGD, lr={real.table['sgd'].setting['lr']!r}), fl.Budget(steps=30))" in text
    points = json.loads(re.search(r'id="points">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert len(points) == text.count("data-chart=")
    sides = ({"sgd", "adam", "wild"}, {"sgd", "adam"})  # wild has too few settings for a curve of the effort
    assert all({series["title"] for series in chart} in sides for chart in points)
    assert all(f'value="{axis}"' in text for axis in ("steps", "seconds", "oracle calls", "gradients"))
    assert re.findall(r'type="radio"[^>]*value="([^"]*)" checked', text) == ["steps"]
    first = Comparison(real.table, "gradients").report(tmp_path / "other.html").read_text()
    assert re.findall(r'type="radio"[^>]*value="([^"]*)" checked', first) == ["gradients"]
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


def test_a_storage_gives_the_comparison_back(tmp_path: Path) -> None:
    file = tmp_path / "trials.sqlite"
    with pytest.raises(StudyError, match=r"trials\.sqlite"):
        stored(file)
    assert not file.exists()
    sides = [replace(SGD, fixed={"momentum": 0.5}), WILD]
    one = compare(PROBLEM, sides, tune=3, seeds=2, storage=file, progress=False)
    again = compare(PROBLEM, sides, tune=3, seeds=2, storage=file, progress=False)
    two = compare(PROBLEM, sides, tune=3, seeds=3, storage=file, progress=False)
    first, second = stored(file)
    for back, made in ((first, one), (second, two)):
        assert back.to_dict() == made.to_dict() and repr(back) == repr(made)
        assert back.report(tmp_path / "a.html").read_text() == made.report(tmp_path / "b.html").read_text()
    assert again.to_dict() == one.to_dict()


def test_several_studies_stand_side_by_side(real: Comparison, tmp_path: Path) -> None:
    other = made(sgd=[1.0, 1.1, 1.2], solo=[2.0, 3.0, 2.5])
    text = write_report([real, other], tmp_path / "report.html").read_text()
    overview = text[text.index("side by side</h1>") : text.index('id="study-1"')]
    assert [name in overview for name in ("sgd", "adam", "wild", "solo")] == [True] * 4
    assert '<td class="who">sgd</td><td class="n' in overview and '<td class="n best">1.1</td>' in overview
    assert real.outcome in html.unescape(text) and other.outcome in html.unescape(text)
    points = json.loads(re.search(r'id="points">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert [int(n) for n in re.findall(r'data-chart="(\d+)"', text)] == list(range(len(points)))


def test_what_limits_the_answer_is_said(real: Comparison) -> None:
    said = " ".join(real.limits)
    assert "Settings were chosen at one seed each." in said and "different amounts" not in said
    assert "tuning trials of wild" not in said  # half of a side's trials may diverge before it is worth a word
    sgd = real.table["sgd"]
    entrant = replace(sgd.entrant, space={"lr": LogUniform(1e-3, 1.0)})
    for lr, at_end in ((0.999, True), (0.03, False)):
        side = replace(sgd, entrant=entrant, setting={"lr": lr})
        limits = Comparison(replace(real.table, sides=(side,))).limits
        assert ("sgd (lr=0.999 of 0.001 to 1, logarithmic)" in " ".join(limits)) is at_end


def test_effort_is_reported_for_every_tuned_side(real: Comparison) -> None:
    for row in real.to_dict()["leaderboard"]:
        best = row["best_after_trials"]
        assert len(best) == row["tuning_trials"] and best[-1] == min(r.score for r in real.table[row["method"]].tuning)


def test_a_memory_storage_holds_studies_too() -> None:
    memory = Memory()
    one = compare(PROBLEM, [SGD], tune=1, seeds=2, storage=memory, progress=False)
    assert stored(memory)[0].to_dict() == one.to_dict()
