"""What readers see of the papers: the README's table and ``docs/gallery.md``, both made from the recorded evidence."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from fallline.claims._checking import load, slugs
from fallline.claims._evidence import Figure, Outcome, measured_text, threshold_text
from fallline.claims._paper import Paper, Scale
from fallline.claims._records import ClaimRecord, Record, read
from fallline.study.charts import curve_picture

START, END = "<!-- papers -->", "<!-- /papers -->"
MARK = {Outcome.HOLDS: "holds", Outcome.FAILS: "**fails**", Outcome.INCONCLUSIVE: "inconclusive", Outcome.RECORDED: "—"}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def verdict_text(slug: str, folder: Path | None = None) -> str:
    """The recorded verdict at the quick scale, or ``"not recorded"``."""
    found = read(slug, Scale.QUICK, folder)
    return str(found.verdict) if found else "not recorded"


def _row(paper: Paper, folder: Path | None) -> str:
    methods = ", ".join(f"`{name}`" for name in paper.methods)
    title = f"[{_cell(paper.title)}]({paper.link})"
    return f"| `{paper.slug}` | {title} | `{paper.room}` | {methods} | {verdict_text(paper.slug, folder)} |"


def papers_table(found: Sequence[Paper], folder: Path | None = None) -> str:
    """The README's table: slug, title, room, methods, verdict."""
    head = ["| paper | title | room | methods | claims |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(_row(paper, folder) for paper in found)])


def with_table(readme: str, table: str) -> str:
    """The README with everything between the markers replaced by the table."""
    pattern = re.compile(f"{START}.*?{END}", re.DOTALL)
    if not pattern.search(readme):
        raise ValueError(f"the README must contain {START} and {END}; put them where the table belongs")
    return pattern.sub(lambda _: f"{START}\n{table}\n{END}", readme, count=1)


def _figure_row(figure: Figure) -> str:
    cells = (_cell(figure.name), measured_text(figure), f"`{threshold_text(figure)}`", MARK[figure.outcome])
    return f"| {' | '.join(cells)} |"


def picture_name(slug: str, claim: ClaimRecord, scale: Scale) -> str | None:
    """Where a claim's curves are drawn, below the gallery's page; None for a claim without curves."""
    return f"gallery/{slug}-{claim.name}-{scale}.svg" if claim.evidence.curves else None


def _claim_section(slug: str, claim: ClaimRecord, scale: Scale) -> str:
    rows = ["| figure | measured | held against | |", "|---|---|---|---|"]
    rows += [_figure_row(figure) for figure in claim.evidence.figures]
    notes = "".join(f"\n{note}\n" for note in claim.evidence.notes)
    said = f"*{claim.evidence.verdict}* · `{claim.name}` · {claim.seconds:.1f} s"
    picture = picture_name(slug, claim, scale)
    drawn = f"\n![{'; '.join(claim.evidence.curves)}]({picture})\n" if picture else ""
    return f"**{_cell(claim.statement)}**\n\n{said}\n\n" + "\n".join(rows) + "\n" + drawn + notes


def _record_sections(found: Record) -> str:
    ran = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    where = f"Scale {found.scale}, seed {found.seed}, {found.cores} cores, {ran}."
    return "\n".join([*(_claim_section(found.slug, claim, found.scale) for claim in found.claims), where, ""])


def paper_section(paper: Paper, folder: Path | None = None) -> str:
    """One paper of the gallery: card, headline, and each claim with its figures."""
    card = f"[{_cell(paper.title)}]({paper.link}), {paper.year}. Room `{paper.room}`; "
    card += ", ".join(f"`{name}`" for name in paper.methods) + "."
    parts = [f"## {paper.slug}: {verdict_text(paper.slug, folder)}", card, f"The paper reports: {paper.headline}"]
    recorded = [found for scale in Scale if (found := read(paper.slug, scale, folder))]
    parts += [_record_sections(found) for found in recorded] or ["No evidence is recorded.\n"]
    return "\n\n".join(parts)


def gallery(found: Sequence[Paper], folder: Path | None = None) -> str:
    """The whole gallery page."""
    head = (
        "# Gallery of claims\n\nWhat every paper states, what was measured here, and what it was held against. "
        "Measured values are medians with their whole range over seeds; a figure is *inconclusive* when what it is held "
        "against lies within that range. "
        "This page is made by `fallline gallery` from the files under `evidence/`."
    )
    return "\n\n".join([head, *(paper_section(paper, folder) for paper in found)]).rstrip() + "\n"


def _write_pictures(found: Sequence[Paper], folder: Path, docs: Path) -> list[Path]:
    shutil.rmtree(docs / "gallery", ignore_errors=True)
    written = []
    for record in (record for paper in found for scale in Scale if (record := read(paper.slug, scale, folder))):
        for claim in record.claims:
            name = picture_name(record.slug, claim, record.scale)
            if name is not None:
                path = docs / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(curve_picture(claim.evidence.curves, claim.statement), encoding="utf-8")
                written.append(path)
    return written


def write_pages(root: Path) -> list[Path]:
    """Bring ``README.md``, ``docs/gallery.md`` and its pictures below ``root`` up to date with ``evidence/``; returns their paths."""
    found = [load(slug)[0] for slug in slugs()]
    readme, page, folder = root / "README.md", root / "docs" / "gallery.md", root / "evidence"
    text = with_table(readme.read_text(encoding="utf-8"), papers_table(found, folder))
    readme.write_text(text, encoding="utf-8")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(gallery(found, folder), encoding="utf-8")
    return [readme, page, *_write_pictures(found, folder, page.parent)]
