"""One module per paper: its card, its statement as a small experiment, and, recorded beside it, what came out.

A module ``claims/<slug>.py`` (hyphens as underscores) defines ``PAPER`` and functions ``f(scale, seed) -> Evidence`` under
the decorator ``claim``. The verdict is computed from the figures; whether it pleases is not a reason to change it.
"""

from fallline.claims._checking import ClaimResult, PaperResult, check, load, papers, slugs
from fallline.claims._evidence import (
    Evidence,
    Figure,
    Outcome,
    Verdict,
    at_least,
    at_most,
    between,
    exactly,
    judge,
    recorded,
)
from fallline.claims._paper import Claim, Paper, Scale, claim
from fallline.claims._records import contradictions, evidence_folder, evidence_path, read, record, stale

__all__ = [
    "Claim",
    "ClaimResult",
    "Evidence",
    "Figure",
    "Outcome",
    "Paper",
    "PaperResult",
    "Scale",
    "Verdict",
    "at_least",
    "at_most",
    "between",
    "check",
    "claim",
    "contradictions",
    "evidence_folder",
    "evidence_path",
    "exactly",
    "judge",
    "load",
    "papers",
    "read",
    "record",
    "recorded",
    "slugs",
    "stale",
]
