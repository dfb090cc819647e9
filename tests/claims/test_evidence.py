"""The papers of this library: every card is right, every claim has evidence.

Claims are run again by ``fallline check --all``, which fails when a figure contradicts its record; the tests here take no time.
"""

from __future__ import annotations

import importlib
from functools import reduce

import pytest

from fallline.claims import evidence_folder, load, read, slugs, stale


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
