"""Evidence files: ``evidence/<slug>.json`` for the quick scale, ``evidence/<slug>.full.json`` for the full one.

A recorded file says what the claims gave on one machine at one seed. A later run *contradicts* it when a figure that
held now fails or the other way round. An inconclusive figure contradicts nothing: a margin within the spread may fall
on either side on another machine. A figure that is new or gone, or whose relation changed, contradicts it too.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fallline.claims._checking import ClaimResult, PaperResult
from fallline.claims._evidence import Evidence, Figure, Outcome, Verdict, judge
from fallline.claims._paper import Claim, Scale

DIGITS, CURVE_POINTS = 8, 80


def evidence_folder() -> Path:
    """``evidence/`` of the checkout, or the copy shipped inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "evidence"
    return checkout if (package.parents[1] / "pyproject.toml").exists() else package / "evidence"


def evidence_path(slug: str, scale: Scale = Scale.QUICK, folder: Path | None = None) -> Path:
    """Where the evidence of one paper lies."""
    suffix = "" if scale is Scale.QUICK else f".{scale}"
    return (folder or evidence_folder()) / f"{slug}{suffix}.json"


@dataclass(frozen=True)
class ClaimRecord:
    """One claim as it was recorded."""

    name: str
    statement: str
    seconds: float
    evidence: Evidence


@dataclass(frozen=True)
class Record:
    """One evidence file."""

    slug: str
    scale: Scale
    seed: int
    versions: dict[str, str]
    cores: int
    claims: tuple[ClaimRecord, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict over all figures, computed anew from them."""
        return judge([figure for claim in self.claims for figure in claim.evidence.figures])


def _plain(value: float) -> float | str:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)


def _thinned(values: Sequence[float]) -> list[float | str]:
    n = len(values)
    keep = range(n) if n <= CURVE_POINTS else (round(i * (n - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS))
    return [_plain(values[i]) for i in keep]


def _figure_to_json(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "measured": [_plain(v) for v in figure.measured],
        "relation": figure.relation,
        "threshold": [_plain(v) for v in figure.threshold],
        "tolerance": figure.tolerance,
        "outcome": str(figure.outcome),
    }


def _claim_to_json(claim: ClaimResult) -> dict[str, Any]:
    if claim.evidence is None:
        raise ValueError(f"claim {claim.name!r} raised and has no evidence to record; mend it first")
    return {
        "name": claim.name,
        "statement": claim.statement,
        "verdict": str(claim.evidence.verdict),
        "seconds": round(claim.seconds, 2),
        "figures": [_figure_to_json(figure) for figure in claim.evidence.figures],
        "curves": {name: {"x": _thinned(x), "y": _thinned(y)} for name, (x, y) in claim.evidence.curves.items()},
        **({"axes": list(claim.evidence.axes)} if claim.evidence.axes else {}),
        "notes": list(claim.evidence.notes),
    }


def record(result: PaperResult, folder: Path | None = None) -> Path:
    """Write the evidence of one paper; the old file stays whole until the new one is complete."""
    path = evidence_path(result.slug, result.scale, folder)
    content = {
        "slug": result.slug,
        "scale": str(result.scale),
        "seed": result.seed,
        "verdict": str(result.verdict),
        "versions": result.versions,
        "cores": result.cores,
        "claims": [_claim_to_json(claim) for claim in result.claims],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _claim_from_json(content: dict[str, Any]) -> ClaimRecord:
    figures = [
        Figure(
            f["name"],
            f["relation"],
            tuple(map(float, f["measured"])),
            tuple(map(float, f["threshold"])),
            float(f["tolerance"]),
        )
        for f in content["figures"]
    ]
    curves = {name: (curve["x"], curve["y"]) for name, curve in content["curves"].items()}
    evidence = Evidence(figures, curves=curves, axes=content.get("axes"), notes=content["notes"])
    return ClaimRecord(content["name"], content["statement"], float(content["seconds"]), evidence)


def read(slug: str, scale: Scale = Scale.QUICK, folder: Path | None = None) -> Record | None:
    """The recorded evidence of one paper, or none when nothing was recorded.

    Raises
    ------
    ValueError
        When the file is not evidence: unreadable, incomplete, or its verdict is not what its figures give.
    """
    path = evidence_path(slug, scale, folder)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        claims = tuple(_claim_from_json(claim) for claim in content["claims"])
        found = Record(
            content["slug"], Scale(content["scale"]), content["seed"], content["versions"], content["cores"], claims
        )
        stated = [content["verdict"], *(claim["verdict"] for claim in content["claims"])]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not evidence ({error!r}); write it again with: check {slug} --record") from error
    given = [str(found.verdict), *(str(claim.evidence.verdict) for claim in claims)]
    if stated != given or found.slug != slug:
        raise ValueError(f"{path} states {stated}, but its figures give {given}; evidence is recorded, never edited")
    return found


def stale(found: Record, claims: Sequence[Claim]) -> list[str]:
    """How the record differs from the paper's current claims; empty when it is of these statements."""
    was = {claim.name: claim.statement for claim in found.claims}
    now = {claim.name: claim.statement for claim in claims}
    return [f"claim {name!r} is not the recorded one" for name in {**was, **now} if was.get(name) != now.get(name)]


def contradictions(found: Record, result: PaperResult) -> list[str]:
    """Every way in which a new run disagrees with the record, as sentences; empty when it agrees."""
    was = {(c.name, f.name): f for c in found.claims for f in c.evidence.figures}
    now = {(c.name, f.name): f for c in result.claims if c.evidence for f in c.evidence.figures}
    raised = set(result.errors)
    said = []
    for key in {**was, **now}:
        if key[0] in raised:
            continue
        name, old, new = ": ".join(key), was.get(key), now.get(key)
        if old is None or new is None:
            said.append(f"{name}: {'not in the record' if old is None else 'recorded, no longer measured'}")
        elif old.relation != new.relation:
            said.append(f"{name}: recorded with {old.relation}, now {new.relation}")
        elif {old.outcome, new.outcome} == {Outcome.HOLDS, Outcome.FAILS}:
            said.append(f"{name}: recorded as {old.outcome}, now {new.outcome}")
    return said
