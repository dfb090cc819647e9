"""The papers of this library: every card is right, every claim has evidence, the pages are made from it.

Claims are run again by ``fallline check --all``, which fails when a figure contradicts its record; the tests here take no time.
"""

from __future__ import annotations

import importlib
from functools import reduce
from pathlib import Path

import pytest

from fallline.claims import evidence_folder, load, read, slugs, stale
from fallline.claims._pages import gallery, papers_table, with_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("slug", slugs())
def test_every_method_on_a_card_exists_in_its_room(slug: str) -> None:
    paper, _ = load(slug)
    importlib.import_module(f"fallline.{paper.room}")
    for name in paper.methods:
        room, *rest = name.split(".")
        assert callable(reduce(getattr, rest, importlib.import_module(f"fallline.{room}")))
    assert paper.room in {name.split(".")[0] for name in paper.methods}


@pytest.mark.parametrize("slug", slugs())
def test_evidence_is_recorded_for_the_current_statements(slug: str) -> None:
    found = read(slug)
    assert found is not None, f"run: fallline check {slug} --record"
    assert stale(found, load(slug)[1]) == []


def test_no_evidence_without_a_paper() -> None:
    assert {path.name.split(".")[0] for path in evidence_folder().glob("*.json")} <= set(slugs())


def test_the_pages_are_made_from_the_evidence() -> None:
    cards = [load(slug)[0] for slug in slugs()]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme, papers_table(cards)), "run: fallline gallery"
    assert (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8") == gallery(cards), "run: fallline gallery"
