"""The documentation says what is: its code runs and prints what stands there, its commands exist, its pages are up to date."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import fallline
from fallline.claims._pages import pages
from fallline.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
CODE = [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]
RUN = {"papers", "show"}
"""Commands that take a second at most; the others are parsed."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the rest of its opening line, its text."""

    language: str
    options: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(language, options.strip(), text) for language, options, text in found]


def in_kind(text: str) -> list[str]:
    """Lines with every number replaced by #: figures differ between machines, words do not."""
    masked = re.sub(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?", "#", text)
    return [" ".join(line.split()) for line in masked.splitlines() if line.strip()]


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.stem)
def test_code_runs_in_the_order_of_its_page_and_prints_what_follows_it(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, printed = {"__name__": "__main__"}, ""
    for block in blocks(page):
        title = re.search(r'title="([^"]+)"', block.options)
        if block.language == "python" and title:
            Path(title[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, str(page), "exec", dont_inherit=True), names)
            printed = out.getvalue()
        elif block.language == "text":
            assert in_kind(printed) == in_kind(block.text)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command line ``fallline …``; brackets mark what may be left out, a comment follows two spaces."""
    shell = (block.text for block in blocks(page) if block.language in ("console", ""))
    for line in "".join(shell).replace("\\\n", " ").splitlines():
        if line.startswith("fallline "):
            yield shlex.split(line.split("  #")[0].translate({ord("["): " ", ord("]"): " "}))[1:]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_commands_exist_and_take_their_options(page):
    known = typer.main.get_command(app).commands
    for name, *arguments in commands(page):
        assert name in known, f"fallline {name}"
        known[name].make_context(name, list(arguments))
        if name in RUN:
            result = CliRunner().invoke(app, [name, *arguments])
            assert result.exit_code == 0 and result.stdout, result.output


def test_pages_made_from_records_are_up_to_date():
    made = pages(ROOT)
    for path, text in made.items():
        assert path.exists() and path.read_text(encoding="utf-8") == text, f"{path}: run fallline gallery"
    there = set((ROOT / "docs" / "gallery").iterdir())
    assert there == {path for path in made if path.parent.name == "gallery"}, "run: fallline gallery"


def test_the_picture_of_the_leaderboard_is_of_today():
    drawn = re.sub(r"<[^>]*>|&#160;", " ", (ROOT / "docs" / "leaderboard.svg").read_text(encoding="utf-8"))
    assert re.search(r"method.*median.*quartiles over 5 seeds.* p .*samples.*lost.*seconds.*best setting", drawn, re.DOTALL)
    assert "paired test over 5 seeds" in " ".join(drawn.split())


class Links(HTMLParser):
    """What a page has anchors for, links to, and loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given["id"]} if "id" in given else set()
        if tag == "a":
            self.links |= {given.get("href") or ""}
        elif tag == "link" and given.get("rel") in ("prev", "next", "canonical"):
            return
        else:
            self.loaded |= {given[name] for name in ("src", "href", "srcset", "data") if given.get(name)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the documentation needs mkdocs: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the documentation needs mkdocstrings: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def exported():
    """Every package with a public interface, and what it exports."""
    yield from ((name, importlib.import_module(f"fallline.{name}")) for name in fallline._PACKAGES)


def test_the_site_builds_without_a_warning_and_shows_every_exported_name(site):
    for name, package in exported():
        anchors = {anchor.rpartition(".")[2] for anchor in Links(site / "api" / f"{name}.html").anchors if "fallline." in anchor}
        assert set(package.__all__) <= anchors, name
    targets = {re.split(r"[.#]", link.removesuffix(".html"))[-1] for link in Links(site / "api" / "index.html").links}
    assert set(fallline.__all__) - {"__version__"} <= targets


def test_the_site_loads_nothing_from_another_host(site):
    for page in site.rglob("*.html"):
        assert not [url for url in Links(page).loaded if re.match(r"(\w+:)?//", url)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
