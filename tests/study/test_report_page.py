"""The report in a browser: what a user does with it, at two widths, in the light and in the dark, with and without a pointer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sides import ADAM, PROBLEM, SGD, WILD
from test_report import evil

from fallline.study import Comparison, compare

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(PROBLEM, [SGD, ADAM, WILD], tune=6, seeds=3, progress=False)


@pytest.fixture(scope="module")
def address(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> str:
    return comparison.report(tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        chromium = run.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


def opened(browser: Any, address: str, width: int = 1400, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what went wrong on it so far."""
    clipboard = ["clipboard-read", "clipboard-write"]
    context = browser.new_context(viewport={"width": width, "height": 900}, permissions=clipboard, **options)
    page, wrong = context.new_page(), []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url))
    page.goto(address)
    return page, wrong


def shown(page: Any) -> list[str]:
    """The methods of the leaderboard's visible rows, from the top."""
    return [row.get_attribute("data-method") for row in page.locator("tr[data-side]").all() if row.is_visible()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_and_reads_at_both_widths_and_schemes(browser: Any, address: str, width: int, scheme: str) -> None:
    page, wrong = opened(browser, address, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    channel = page.evaluate("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert channel > 200 if scheme == "light" else channel < 50
    smallest = page.evaluate("""Math.min(...[...document.querySelectorAll('svg.chart text')]
        .map(t => t.getBoundingClientRect()).filter(box => box.width).map(box => box.height))""")
    assert smallest > 8 and shown(page)[0] and wrong == []


def test_the_filter_hides_rows_lines_and_settings(browser: Any, address: str) -> None:
    page, wrong = opened(browser, address)
    assert len(shown(page)) == 3
    page.get_by_label("Show only").fill("ADAM wild")
    assert set(shown(page)) == {"adam", "wild"} and page.get_by_role("status").inner_text() == "2 of 3 methods"
    names = [t.text_content() for t in page.locator("figure:not([hidden]) svg text.name").all() if t.is_visible()]
    assert names and "sgd" not in names
    assert not page.get_by_role("button", name="Copy the setting of sgd").is_visible()
    page.get_by_label("Show only").fill("")
    assert len(shown(page)) == 3 and wrong == []


def test_columns_sort_by_click_and_by_key(browser: Any, address: str, comparison: Comparison) -> None:
    page, wrong = opened(browser, address)
    page.get_by_role("button", name="method").click()
    assert shown(page) == ["adam", "sgd", "wild"]
    page.get_by_role("button", name="method").press("Enter")
    assert shown(page) == ["wild", "sgd", "adam"]
    page.get_by_role("button", name="median").focus()
    page.keyboard.press("Space")
    assert shown(page) == [row.method for row in comparison.leaderboard]
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("median") and wrong == []


def test_values_are_told_to_the_pointer_and_to_the_arrow_keys(browser: Any, address: str) -> None:
    page, wrong = opened(browser, address)
    figure = page.locator("figure[data-axis=steps]")
    tip = figure.locator(".tip")
    figure.locator("svg").hover(position={"x": 400, "y": 150})
    assert all(name in tip.inner_text() for name in ("sgd", "adam", "wild"))
    page.mouse.move(0, 0)
    assert tip.evaluate("t => t.style.opacity") == "0"
    figure.locator("svg").focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert first.startswith("0\n") and tip.inner_text() != first
    page.keyboard.press("Escape")
    assert tip.evaluate("t => t.style.opacity") == "0" and wrong == []


def test_the_cost_axis_is_chosen_by_click_and_by_key(browser: Any, address: str) -> None:
    page, wrong = opened(browser, address)

    def axes() -> list[str]:
        return [f.get_attribute("data-axis") for f in page.locator("figure[data-axis]").all() if f.is_visible()]

    assert axes() == ["steps"]
    page.locator("fieldset").get_by_text("gradients", exact=True).click()
    assert axes() == ["gradients"]
    page.locator("input[value=steps]").focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    assert axes() == ["seconds"] and wrong == []


def test_a_setting_is_copied(browser: Any, address: str, comparison: Comparison) -> None:
    page, wrong = opened(browser, address)
    page.get_by_role("button", name="Copy the setting of sgd").click()
    page.wait_for_function("[...document.querySelectorAll('.copy')].some(b => b.textContent === 'Copied')")
    side = comparison.table["sgd"]
    assert page.evaluate("navigator.clipboard.readText()") == side.code
    assert wrong == []


def test_names_of_counts_run_no_script(browser: Any, tmp_path: Path) -> None:
    page, wrong = opened(browser, evil().report(tmp_path / "report.html").as_uri())
    page.locator("figure[data-axis] svg").first.hover(position={"x": 200, "y": 150})
    page.locator("fieldset").get_by_text("steps", exact=True).click()
    assert page.evaluate("typeof window.X") == "undefined" and page.locator("img").count() == 0
    shown = [f.get_attribute("data-axis") for f in page.locator("figure[data-axis]").all() if f.is_visible()]
    assert shown == ["steps"] and wrong == []


def test_a_small_screen_shows_every_column_and_the_method_and_median_first(browser: Any, address: str) -> None:
    page, wrong = opened(browser, address, 400)

    def ends(row: str) -> list[float]:
        return page.evaluate(f"[...document.querySelectorAll('.leaderboard {row} > *')].map(c => c.getBoundingClientRect().right)")

    rows = page.locator(".leaderboard tbody tr").first.locator("td")
    assert [rows.nth(i).is_visible() for i in range(9)] == [True] * 9
    assert max(ends("tbody tr:first-child")[:3]) <= 400 < ends("tbody tr:first-child")[-1]
    who = page.locator(".leaderboard td.who").first
    before = who.bounding_box()["x"]
    page.locator(".leaderboard").evaluate("e => e.scrollTo(10_000, 0)")
    assert ends("tbody tr:first-child")[-1] <= 400 and who.bounding_box()["x"] == before and wrong == []


def test_a_tap_tells_a_value_and_leaves_it_there(browser: Any, address: str) -> None:
    page, wrong = opened(browser, address, 400, has_touch=True)
    figure = page.locator("figure[data-axis=steps]")
    figure.locator("svg").tap(position={"x": 200, "y": 100})
    tip = figure.locator(".tip")
    assert tip.evaluate("t => t.style.opacity") == "1" and "sgd" in tip.inner_text()
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 400 and wrong == []


def test_ten_methods_stay_small(tmp_path: Path) -> None:
    sides = [replace(SGD, label=f"sgd-{i}") for i in range(10)]
    found = compare(PROBLEM, sides, tune=8, seeds=3, progress=False)
    assert found.report(tmp_path / "report.html").stat().st_size < 2_000_000
