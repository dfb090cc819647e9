"""What the report, its charts and the terminal show, of comparisons made by hand."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from fallline.cli.comparing import _present
from fallline.study import Comparison, Entrant, Record, RunTable, Side, Terms
from fallline.study.charts import Axis
from fallline.study.curves import band, figure
from fallline.study.progress import Live
from fallline.study.report import curve_charts, effort_chart, memory_chart, render, write_report
from fallline.study.terminal import as_text, leaderboard_table

EVIL = '"><img src=x onerror="window.X=1">'
Curve = Mapping[str, Sequence[float]]


def record(method: str, seed: int, value: float, curve: Curve | None = None, status: str = "", **more: object) -> Record:
    status = status or ("finished" if math.isfinite(value) else "divergent")
    return Record(method, "p", method, {}, {"steps": 8}, seed, status, "loss", value, curve=curve or {}, **more)  # type: ignore[arg-type]


def side(title: str, evaluations: Sequence[Record], tuned: Sequence[float] = ()) -> Side:
    tuning = tuple(record(title, 0, value) for value in tuned)
    return Side(Entrant(title, title, "method", {}, {}), {}, tuning, tuple(evaluations))


def comparison(*sides: Side, **terms: object) -> Comparison:
    given = replace(Terms("p", "smooth", {"steps": 8.0}, 0, 1, len(sides[0].evaluations), 0, "loss"), **terms)  # type: ignore[arg-type]
    return Comparison(RunTable(given, sides))


def evil() -> Comparison:
    """Everything that users or a foreign database name is markup."""
    curve = {"steps": [0.0, 8.0], EVIL: [0.0, 8.0], "value": [5.0, 1.0]}
    runs = [record(EVIL, seed, 1.0 + seed, curve, counts={EVIL: 8}, state_bytes=8) for seed in range(3)]
    failing = [record("b" + EVIL, seed, math.inf, status="error", message=EVIL) for seed in range(3)]
    found = comparison(side(EVIL, runs, [5.0, 4.0, 3.0, 2.0]), side("b" + EVIL, failing), problem=EVIL, metric=EVIL, limits={EVIL: 8.0})
    return Comparison(found.table, EVIL)


class Elements(HTMLParser):
    """The names of all elements, and the axes of the figures."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.axes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.axes += [value or "" for name, value in attrs if name == "data-axis"]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_names_of_counts_are_text_in_the_page() -> None:
    found = Elements()
    found.feed(render([evil(), evil()]))
    assert "img" not in found.names and found.axes == [EVIL, "steps"] * 2


def test_names_in_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = ["gd [tuned]", "gd [/tuned]", ":smile:"]
    curve = {"steps": [0.0, 8.0], "[red]": [0.0, 8.0], "value": [5.0, 1.0]}
    sides = [side(name, [record(name, seed, 1.0 + seed, curve, counts={"[red]": 8}) for seed in range(3)]) for name in names]
    odd = Comparison(comparison(*sides, problem="p [/x]").table, "[red]")
    text = as_text(odd)
    assert all(text.count(name) >= 2 for name in names) and "p [/x]: loss" in text and "[red]" in text
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(leaderboard_table(odd))
    assert all(name in buffer.getvalue() for name in names)
    folder = tmp_path / "[bold]out[red]" / "[/x]"
    folder.mkdir(parents=True)
    _present(odd, folder, machine=False)
    assert str(folder / "report.html") in capsys.readouterr().out


def test_the_live_table_takes_names_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    live = Live()
    live.start({"gd [tuned]": 1, "gd [/tuned]": 1})
    live.finished(replace(record("gd [/tuned]", 0, 1.0), metric="[/loss]"), False)
    live.say("lost [/all] :smile:")
    live.stop()
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("gd [tuned]", "gd [/tuned]", "best [/loss] 1", "lost [/all] :smile:"))


def test_a_run_that_diverged_or_failed_is_infinite_from_its_end_on() -> None:
    whole = {"steps": [0.0, 4.0, 8.0], "seconds": [0.0, 1.0, 2.0], "value": [5.0, 3.0, 2.26]}
    half = {"steps": [0.0, 2.0, 4.0], "seconds": [0.0, 0.5, 1.0], "value": [5.0, 6.0, 9.0]}
    done, lost, failing = record("a", 0, 2.26, whole), record("a", 1, math.inf, half), record("a", 2, math.inf, status="error")
    assert band(side("a", [failing, failing, done]), "steps").x == []
    two = band(side("a", [lost, lost, done]), "steps")
    assert 3.5 < two.x[-1] < 4 and math.isfinite(two.median[-1])
    one = band(side("a", [lost, done, done]), "steps")
    assert one.x[-1] == 8 and one.median[-1] == 2.26 and one.high[-1] == math.inf and one.high[0] == 5
    gone = band(side("a", [failing, done, done]), "steps")
    assert gone.x[-1] == 8 and {*gone.high} == {math.inf} and gone.median[0] == 5
    assert 3.5 < band(side("a", [lost] * 3), "steps").x[-1] < 4
    assert band(side("a", [failing] * 3), "steps").x == []


def test_runs_that_finished_sooner_end_the_band() -> None:
    slow, fast = ({"seconds": [0.0, end], "value": [5.0, 1.0]} for end in (4.0, 2.0))
    found = band(side("a", [record("a", 0, 1.0, slow), record("a", 1, 1.0, fast)]), "seconds")
    assert found.x[-1] == 2.0 and found.median[-1] == 2.0


def test_bands_with_an_infinite_end_are_drawn_to_the_top() -> None:
    whole = {"steps": [0.0, 4.0, 8.0], "value": [5.0, 3.0, 2.0]}
    failing = record("a", 2, math.inf, status="error", message="no")
    found = comparison(side("a", [record("a", 0, 2.0, whole), record("a", 1, 2.0, whole), failing]))
    drawn = re.search(r'<polygon class="band s0" points="([^"]*)"', render([found]))
    assert drawn and drawn.group(1).split()[0].endswith(",14")
    assert "inf" not in drawn.group(1).lower() and max(figure(found.table, "steps").data[0]["y"]) == 5.0


def test_a_line_that_comes_back_is_drawn_to_its_end() -> None:
    back, gone = ({"steps": [0.0, 1.0, 2.0, 8.0], "value": [5.0, 90.0, 90.0, end]} for end in (1.0, 99.0))
    found = comparison(side("a", [record("a", 0, 1.0, back)]), side("b", [record("b", 0, 99.0, gone)]))
    a, b = curve_charts(found)[0]["chart"].series
    assert a["points"][-1][2:] == ["1", "8"] and b["points"][-1][2] == "10"


def ticks(svg: str) -> list[str]:
    """The texts under the horizontal axis."""
    return re.findall(r'y="312" text-anchor="middle">([^<]*)<', svg)


def test_the_effort_is_drawn_from_four_settings_on_and_ticked_from_one() -> None:
    few, many = [3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]
    runs = [record("a", 0, 1.0)]
    assert effort_chart(comparison(side("a", runs, few), side("b", runs, few))) is None
    chart = effort_chart(comparison(side("a", runs, few), side("b", runs, many)))
    assert chart is not None and [series["title"] for series in chart.series] == ["b"]
    assert ticks(chart.svg) == ["1", "2", "3", "4"] and chart.series[0]["points"][0][0] == 66
    assert effort_chart(comparison(side("a", runs, many), tuning_seeds=2)) is None
    wild = effort_chart(comparison(side("a", runs, [math.inf, math.inf, math.inf, math.inf, 1.0])))
    assert wild is not None and ticks(wild.svg)[0] == "1" and wild.series[0]["points"][0][3] == "3"


@pytest.mark.parametrize(("low", "high", "texts"), [(1, 4, "1 2 3 4"), (1, 8, "1 2 4 6 8"), (1, 64, "1 20 40 60"), (0, 5, "0 2 4"),
                                                    (0, 2, "0 1 2"), (0, 1000, "0 250 500 750 1,000")])
def test_whole_ticks(low: float, high: float, texts: str) -> None:
    assert [text for _, text in Axis(low, high, 0, 100, whole=True).ticks()] == texts.split()


def test_no_state_is_seen_to_be_none() -> None:
    def drawn(*sizes: int) -> list[str]:
        sides = [side(f"m{size}", [record(f"m{size}", 0, 1.0, state_bytes=size)]) for size in sizes]
        chart = memory_chart(comparison(*sides))
        assert chart is not None
        return ticks(chart.svg)

    assert drawn(0, 100, 20_000)[0] == "0"
    assert drawn(100, 2_000_000) == ["100", "1000", "10⁴", "10⁵", "10⁶"]
    assert drawn(0, 3_000_000_000) == ["0", "1·10⁹", "2·10⁹", "3·10⁹"]


def test_problems_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = (comparison(side("a", [record("a", 0, 1.0)]), problem=name, limits={"steps": 1_234_567.0}) for name in ("p", "q"))
    text = write_report([one, other, one], tmp_path / "report.html").read_text()
    assert re.findall(r'<a href="#study-(\d)">([^<]*)</a>', text) == [("1", "p (1)"), ("2", "q"), ("3", "p (3)")]
    assert re.findall(r"fallline compare · ([^<]*)<", text) == ["p (1)", "q", "p (3)"]
    assert "1,234,567 steps" in text and "e+06" not in text


def test_every_style_is_there_once() -> None:
    text = render([comparison(side("a", [record("a", 0, 1.0)]))])
    assert [text.count(f".s{n} {{") for n in range(8)] == [1] * 8
