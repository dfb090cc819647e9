"""``fallline papers``, ``fallline show``, ``fallline gallery``: what is here, and what held."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fallline.claims import Paper


def papers(
    room: Annotated[str | None, typer.Option(help="Only the papers of this room, such as optim.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the papers, and whether their claims held here; ``show`` names the methods."""
    from fallline import claims
    from fallline.claims._gallery import verdict_text
    from fallline.core.errors import UnknownName

    found = list(claims.papers())
    rooms = {paper.room for paper in found}
    if room is not None and room not in rooms:
        raise UnknownName("room", room, rooms)
    rows = [_row(paper, verdict_text(paper.slug)) for paper in found if room in (None, paper.room)]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    _print_rows(rows)


def _row(paper: Paper, verdict: str) -> dict[str, Any]:
    card = {"slug": paper.slug, "title": paper.title, "room": paper.room, "methods": list(paper.methods)}
    return {**card, "verdict": verdict}


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    # A line a paper, whatever the width: methods, which are many, are on the card and in --json.
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("slug", "verdict", "room", "title"):
        whole = None if name == "title" else max(len(row[name]) for row in rows)
        table.add_column(name, no_wrap=True, min_width=whole)
    for row in rows:
        table.add_row(row["slug"], row["verdict"], row["room"], row["title"])
    Console().print(table)


def show(slug: Annotated[str, typer.Argument(help="Name of the paper, such as lion.")]) -> None:
    """Show a paper: its rule, what may be tuned, its claims, and the figures they gave."""
    from fallline import claims

    paper, stated = claims.load(slug)
    print(f"{paper.title} ({paper.year})\n{paper.link}\n\n{paper.headline}\n")
    for name in paper.methods:
        _print_method(name)
    for scale in claims.Scale:
        record = claims.read(slug, scale)
        if record is not None:
            _print_record(record)
    if claims.read(slug) is None:
        print("Claims, not recorded yet:")
        for claim in stated:
            print(f"  {claim.statement}")


def _print_method(name: str) -> None:
    from fallline.claims._gallery import resolved
    from fallline.study.numbers import range_text

    method = resolved(name)
    print(f"fallline.{name}\n")
    print(inspect.getdoc(method) or "")
    space = getattr(method, "space", {})
    tuned = "; ".join(f"{parameter}: {range_text(range_)}" for parameter, range_ in space.items())
    print(f"\nTuned over: {tuned or 'nothing'}\n")


def _print_record(record: Any) -> None:
    from fallline.claims._evidence import describe

    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    print(f"Claims at {record.scale} scale: {record.verdict} (seed {record.seed}, {versions}, {record.cores} cores)")
    for claim in record.claims:
        print(f"  {claim.statement}: {claim.evidence.verdict}")
        for figure in claim.evidence.figures:
            print(f"    {describe(figure)}")
        for note in claim.evidence.notes:
            print(f"    {note}")


def gallery(
    root: Annotated[Path, typer.Option(help="The checkout whose README.md and docs/ are written.")] = Path("."),
) -> None:
    """Write the README's table, the gallery and the measured part of the guide from recorded evidence and studies."""
    from fallline.claims._pages import write_pages
    from fallline.study import StudyError

    try:
        for path in write_pages(root):
            print(path)
    except OSError as error:
        raise StudyError(f"--root {str(root)!r} is no checkout that can be written: {error}; run it at the root") from error
