"""A paper's card and its claims: `Paper`, `Scale`, and the decorator `claim`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fallline.claims._evidence import Evidence


class Scale(StrEnum):
    """How large the experiment is: ``QUICK`` on two cores in seconds, ``FULL`` as near to the paper as an hour allows."""

    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True)
class Paper:
    """The card of one paper.

    Parameters
    ----------
    slug
        Lower-case words joined by hyphens; the module is named the same with underscores.
    title, year
        As published.
    arxiv
        Identifier such as ``"2302.06675"``; a paper that is not on arXiv gives `url` instead.
    room
        The package that holds its code, such as ``"optim"``.
    methods
        Names below ``fallline``, such as ``"optim.Lion"``.
    headline
        The figures the paper itself reports.
    """

    slug: str
    title: str
    year: int
    room: str
    methods: tuple[str, ...]
    headline: str
    arxiv: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ValueError(f"slug must be lower-case words joined by hyphens, got {self.slug!r}")
        if self.arxiv is None and self.url is None:
            raise ValueError(f"paper {self.slug!r} needs arxiv='2302.06675' or url='https://...'; got neither")
        if self.arxiv is not None and not re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}", self.arxiv):
            raise ValueError(f"arxiv must be an identifier such as '2302.06675', got {self.arxiv!r}")
        if isinstance(self.methods, str) or not self.methods:
            raise ValueError(f"methods must be a tuple of names such as ('optim.Lion',), got {self.methods!r}")

    @property
    def link(self) -> str:
        """Where to read it."""
        return self.url or f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class Claim:
    """A statement and the experiment that tests it; calling it runs the experiment."""

    statement: str
    run: Callable[[Scale, int], Evidence]

    @property
    def name(self) -> str:
        """Name of the experiment's function."""
        return self.run.__name__

    def __call__(self, scale: Scale = Scale.QUICK, seed: int = 0) -> Evidence:
        evidence = self.run(scale, seed)
        if not isinstance(evidence, Evidence):
            raise TypeError(f"claim {self.name!r} must return Evidence, got {type(evidence).__name__}")
        return evidence


def claim(statement: str) -> Callable[[Callable[[Scale, int], Evidence]], Claim]:
    """Declare ``f(scale, seed) -> Evidence`` the test of ``statement``, one sentence that could be false."""
    if len(statement.split()) < 3:
        raise ValueError(f"statement must be a sentence that could be false, got {statement!r}")
    return lambda run: Claim(statement.strip(), run)
