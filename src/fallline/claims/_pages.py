"""What readers see of the papers and studies: the README's table, the gallery, and the measured part of *Which method?*

All of it is made from what is recorded, by ``fallline gallery``, and committed; a test fails when it is out of date.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from fallline.claims import _gallery, _guide
from fallline.claims._checking import load, slugs
from fallline.claims._gallery import cell, table, verdict_text
from fallline.claims._paper import Paper


def papers_table(found: Sequence[Paper], folder: Path | None = None) -> str:
    """The README's table: slug, title, room, methods, verdict."""
    return table(["paper", "title", "room", "methods", "claims"], [_row(paper, folder) for paper in found])


def _row(paper: Paper, folder: Path | None) -> list[str]:
    methods = ", ".join(f"`{name}`" for name in paper.methods)
    title = f"[{cell(paper.title)}]({paper.link})"
    return [f"`{paper.slug}`", title, f"`{paper.room}`", methods, verdict_text(paper.slug, folder)]


def replaced(text: str, mark: str, content: str) -> str:
    """The text with everything between ``<!-- mark -->`` and ``<!-- /mark -->`` replaced."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    pattern = re.compile(f"{start}.*?{end}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page must contain {start} and {end}; put them where {mark} belong")
    return pattern.sub(lambda _: f"{start}\n{content}\n{end}", text, count=1)


def pages(root: Path) -> dict[Path, str]:
    """Every page and picture that is made from what is recorded in the checkout ``root``, with its text."""
    found, evidence = [load(slug)[0] for slug in slugs()], root / "evidence"
    gallery = {"index.md": _gallery.index(found, evidence)}
    for paper in found:
        gallery[f"{paper.slug}.md"] = _gallery.page(paper, evidence)
        gallery |= _gallery.pictures(paper.slug, evidence)
    readme, guide = root / "README.md", root / "docs" / "which-method.md"
    measured = _guide.sections(_guide.studies(root / "docs" / "studies"))
    return {
        readme: replaced(readme.read_text(encoding="utf-8"), "papers", papers_table(found, evidence)),
        guide: replaced(guide.read_text(encoding="utf-8"), "studies", f"\n{measured}\n"),
        **{root / "docs" / "gallery" / name: text for name, text in gallery.items()},
    }


def write_pages(root: Path) -> list[Path]:
    """Bring all pages below ``root`` up to date, and remove those of papers that are gone; returns their paths."""
    made = pages(root)
    shutil.rmtree(root / "docs" / "gallery", ignore_errors=True)
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(made)
