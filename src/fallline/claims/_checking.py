"""Finding the papers and running their claims.

A paper is a module of this package whose name does not begin with an underscore; it defines ``PAPER`` and at least one
function decorated with ``claim``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fallline.claims._evidence import Evidence, Figure, Verdict, judge
from fallline.claims._paper import Claim, Paper, Scale
from fallline.core.errors import UnknownName
from fallline.study.environment import versions

PACKAGE = "fallline.claims"


def slugs() -> list[str]:
    """Slugs of all papers, sorted; nothing is imported."""
    folder = importlib.import_module(PACKAGE).__path__
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))


def load(slug: str) -> tuple[Paper, tuple[Claim, ...]]:
    """The card and the claims of one paper, in the order of its file.

    Raises
    ------
    UnknownName
        When there is no such paper.
    TypeError
        When the module is not a paper: no card, another slug, or no claim.
    """
    if slug not in slugs():
        raise UnknownName("paper", slug, slugs())
    module = importlib.import_module(f"{PACKAGE}.{slug.replace('-', '_')}")
    paper = getattr(module, "PAPER", None)
    if not isinstance(paper, Paper) or paper.slug != slug:
        raise TypeError(f"{module.__name__} must define PAPER = Paper(slug={slug!r}, ...), got {paper!r}")
    claims = tuple(value for value in vars(module).values() if isinstance(value, Claim))
    if not claims:
        raise TypeError(f"{module.__name__} must define a claim, got none; decorate a function with @claim('...')")
    return paper, claims


def papers() -> Iterator[Paper]:
    """The cards of all papers, sorted by slug."""
    for slug in slugs():
        yield load(slug)[0]


@dataclass(frozen=True)
class ClaimResult:
    """What one claim gave: its evidence, or the error it raised; and how long it took."""

    name: str
    statement: str
    seconds: float
    evidence: Evidence | None = None
    error: str | None = None


@dataclass(frozen=True)
class PaperResult:
    """What all claims of one paper gave, and where they ran."""

    slug: str
    scale: Scale
    seed: int
    claims: tuple[ClaimResult, ...]
    versions: dict[str, str]
    cores: int

    @property
    def errors(self) -> dict[str, str]:
        """Error text by claim; a claim that raised has no verdict."""
        return {claim.name: claim.error for claim in self.claims if claim.error is not None}

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures of all claims."""
        return tuple(figure for claim in self.claims if claim.evidence for figure in claim.evidence.figures)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict over all figures of the paper; none when a claim raised."""
        return None if self.errors else judge(self.figures)


def check(slug: str, scale: Scale = Scale.QUICK, seed: int = 0) -> PaperResult:
    """Run the claims of one paper.

    Parameters
    ----------
    slug
        Name of the paper, such as ``"lion"``.
    scale
        ``Scale.QUICK`` (default) or ``Scale.FULL``.
    seed
        Where the claims take their randomness from.
    """
    _, claims = load(slug)
    results = tuple(_run(claim, Scale(scale), seed) for claim in claims)
    return PaperResult(slug, Scale(scale), seed, results, versions(), os.cpu_count() or 1)


def _run(claim: Claim, scale: Scale, seed: int) -> ClaimResult:
    start = time.perf_counter()
    evidence, error = None, None
    try:
        with _reproducible(scale):
            evidence = claim(scale, seed)
    except Exception as raised:  # a claim is any code: what it raises is reported beside the other claims' verdicts
        error = "".join(traceback.format_exception(raised))
    return ClaimResult(claim.name, claim.statement, time.perf_counter() - start, evidence, error)


@contextmanager
def _reproducible(scale: Scale) -> Iterator[None]:
    """One torch thread at the quick scale: the number of threads orders sums, and training amplifies the last digit."""
    threads = torch.get_num_threads()
    if scale is Scale.QUICK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
