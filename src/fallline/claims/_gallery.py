"""The gallery: an index of all papers, and a page for each with its claims, their figures and their curves."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from fallline.claims._docstrings import opening
from fallline.claims._evidence import Evidence, Figure, Outcome, number, threshold_text
from fallline.claims._paper import Paper, Scale
from fallline.claims._records import ClaimRecord, Record, read
from fallline.study.charts import curve_picture
from fallline.study.numbers import range_text

MARK = {Outcome.HOLDS: "holds", Outcome.FAILS: "**fails**", Outcome.INCONCLUSIVE: "inconclusive", Outcome.RECORDED: "recorded"}
INDEX = """# Gallery of claims

What every paper states, what was measured here, and what it was held against. A claim can fail, and some do: thresholds come from
the paper or from theory, before the run. `fallline check NAME` runs a paper's experiments again and compares them with what is
recorded.

| verdict | means |
|---|---|
| holds | every figure is on the right side of what it is held against, at every seed |
| holds in part | some figures hold and some fail |
| inconclusive | none fails, but what some are held against lies within their spread over seeds |
| does not hold here | some fail and none holds, at the scale that was run |

Verdicts are those of the quick scale: seconds on one thread of a machine of two cores. A paper's page says how that differs from
the paper's own setting.
"""


def cell(text: str) -> str:
    """Text as a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def verdict_text(slug: str, folder: Path | None = None) -> str:
    """The recorded verdict at the quick scale, or ``"not recorded"``."""
    found = read(slug, Scale.QUICK, folder)
    return str(found.verdict) if found else "not recorded"


def index(found: Sequence[Paper], folder: Path | None = None) -> str:
    """The page that lists all papers."""
    rows = [
        [f"[{paper.slug}]({paper.slug}.md)", verdict_text(paper.slug, folder), f"`{paper.room}`", cell(paper.title), str(paper.year)]
        for paper in found
    ]
    return f"{INDEX}\n{table(['paper', 'verdict', 'room', 'title', 'year'], rows)}\n"


def page(paper: Paper, folder: Path | None = None) -> str:
    """A paper's page: its card, its methods, each claim with its figures, and how to run them."""
    card = [f"[All papers](index.md) · `{paper.slug}`",
            f"- Paper: [{cell(paper.title)}]({paper.link}), {paper.year}\n"
            f"- Room: [`{paper.room}`](../api/{paper.room}.md)\n"
            f"- Verdict here: **{verdict_text(paper.slug, folder)}**",
            f"The paper reports: {paper.headline}"]
    methods = ["## Methods", *(_method(name) for name in paper.methods)]
    records = [found for scale in Scale if (found := read(paper.slug, scale, folder))]
    claims = [part for found in records for part in _record(found)] or ["## Claims", "No evidence is recorded yet."]
    run = ["## Run it yourself", f"```console\nfallline check {paper.slug}\nfallline check {paper.slug} --full\n```"]
    return "\n\n".join([f"# {cell(paper.title)}", *card, *methods, *claims, *run]) + "\n"


def _method(name: str) -> str:
    method = resolved(name)
    link = f"../api/{name.split('.')[0]}.md#{method.__module__}.{method.__qualname__}"
    space = "; ".join(f"{parameter} {range_text(range_)}" for parameter, range_ in getattr(method, "space", {}).items())
    tuned = [f"Worth tuning: {space}."] if space else []
    return "\n\n".join([f"[`{name}`]({link})", opening(inspect.getdoc(method) or ""), *tuned])


def resolved(name: str) -> Any:
    """What ``optim.Lion`` names below ``fallline``."""
    module, *rest = name.split(".")
    return reduce(getattr, rest, importlib.import_module(f"fallline.{module}"))


def _record(found: Record) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    where = f"Recorded at the {found.scale} scale: seed {found.seed}, {found.cores} cores, {versions}."
    return [f"## Claims, {found.scale} scale", where, *(_claim(found.slug, claim, found.scale) for claim in found.claims)]


def _claim(slug: str, claim: ClaimRecord, scale: Scale) -> str:
    name, evidence = claim.name.replace("_", " ").capitalize(), claim.evidence
    figures = table(["figure", "measured", "spread", "held against", "outcome"], [_figure(figure) for figure in evidence.figures])
    parts = [f"### {name}: {evidence.verdict}", f"> {claim.statement}", figures]
    if evidence.curves:
        parts.append(f"![{cell(claim.statement)}]({picture_name(slug, claim, scale)})\n\n*{_caption(claim.statement, evidence)}*")
    return "\n\n".join([*parts, *evidence.notes])


def _figure(figure: Figure) -> list[str]:
    found = figure.spread
    spread = "—" if found.count == 1 else f"{number(found.low)} to {number(found.high)}, {found.count} seeds"
    held = "—" if figure.outcome is Outcome.RECORDED else f"`{threshold_text(figure)}`"
    return [cell(figure.name), number(found.median), spread, held, MARK[figure.outcome]]


def _caption(statement: str, evidence: Evidence) -> str:
    return f"{evidence.axes[1]} against {evidence.axes[0]}" if evidence.axes else f"The curves of: {statement}"


def picture_name(slug: str, claim: ClaimRecord, scale: Scale) -> str:
    """The file in which a claim's curves are drawn."""
    return f"{slug}-{claim.name}-{scale}.svg"


def pictures(slug: str, folder: Path | None = None) -> dict[str, str]:
    """The pictures of a paper's curves, by the names of their files."""
    records = [found for scale in Scale if (found := read(slug, scale, folder))]
    drawn = {picture_name(slug, claim, found.scale): claim for found in records for claim in found.claims if claim.evidence.curves}
    return {name: _picture(claim) for name, claim in drawn.items()}


def _picture(claim: ClaimRecord) -> str:
    return curve_picture(claim.evidence.curves, claim.statement, claim.evidence.axes or ("", ""))
