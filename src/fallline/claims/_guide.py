"""The measured part of the guide *Which method?*: a section for every study under ``docs/studies``.

A study is what ``fallline compare … --json`` printed. What a version did not write yet is left out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fallline.claims._gallery import cell, table
from fallline.study.numbers import p_text, setting_text, short
from fallline.study.trial import METRICS

Study = Mapping[str, Any]


def studies(folder: Path) -> dict[str, Study]:
    """The studies by the names of their files, which are words joined by hyphens; sorted."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def sections(found: Mapping[str, Study]) -> str:
    """All studies: first what each said, then a section each."""
    parts = [_section(name, study) for name, study in found.items()]
    overview = table(["study", "winner", "methods, best first"], [_overview(name, study) for name, study in found.items()])
    return "\n\n".join([overview, *parts]) if parts else "No study is recorded yet."


def _overview(name: str, study: Study) -> list[str]:
    return [f"[{name}](#{name})", study.get("winner") or "none", ", ".join(row["method"] for row in study["leaderboard"])]


def _section(name: str, study: Study) -> str:
    parts = [f"### {name}", study["headline"], _leaderboard(study)]
    limits = study.get("limits_of_the_answer") or []
    if limits:
        parts.append("What limits this answer:\n\n" + "\n".join(f"- {cell(sentence)}" for sentence in limits))
    environment = study.get("given", {}).get("environment", {})
    if environment:
        parts.append("Run on " + ", ".join(f"{key} {value}" for key, value in environment.items()) + ".")
    return "\n\n".join([*parts, f"```console\n{command(study)}\n```"])


def _leaderboard(study: Study) -> str:
    rows = study["leaderboard"]
    tested = any(row.get("p") is not None for row in rows)
    head = ["", "method", study["metric"], "spread", *(["p against the best"] if tested else []), "cost of a run", "best setting"]
    return table(head, [_row(row, tested) for row in rows])


def _row(row: Mapping[str, Any], tested: bool) -> list[str]:
    median, low, high = (row.get(name) for name in ("median", "low", "high"))
    spread = "—" if low is None or high is None else f"{short(low)} to {short(high)}, {row.get('seeds', 1)} seeds"
    p = [p_text(row.get("p"))] if tested else []
    spent = ", ".join(f"{amount:,.0f} {name}" for name, amount in row.get("spent", {}).items())
    reached = "diverged" if median is None else short(median)
    setting = setting_text({**row.get("fixed", {}), **row.get("setting", {})})
    return [str(row["rank"]), f"`{row['method']}`", reached, spread, *p, spent or "—", f"`{setting}`"]


def command(study: Study) -> str:
    """The command that repeats a study, as far as it says what it was given."""
    given, rows = study.get("given", {}), study["leaderboard"]
    budget = given.get("budget", {}).items()
    limits = ",".join(f"{name}={int(limit) if limit == int(limit) else limit}" for name, limit in budget)
    options = {
        "methods": ",".join(sorted(row["method"] for row in rows)),
        "budget": limits,
        "tune": given.get("tune", max(row.get("tuning_trials", 0) for row in rows)),
        "seeds": given.get("seeds", max(row.get("seeds", 1) for row in rows)),
        "tuning-seeds": given.get("tuning_seeds", 1),
        "seed": given.get("first_seed", 0),
        "prune": given.get("prune", ""),
        "metric": study["metric"] if study["metric"] not in METRICS else "",
    }
    usual = {"budget": "", "tuning-seeds": 1, "seed": 0, "prune": "", "metric": ""}
    words = [word for name, value in options.items() if value != usual.get(name) for word in (f"--{name}", str(value))]
    return shlex.join(["fallline", "compare", study["problem"], *words])
