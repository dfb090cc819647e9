"""The errors that fallline raises at the door; each says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FalllineError(Exception):
    """Base of the library's own errors."""


class MissingOracle(FalllineError, TypeError):
    """A method asked a problem for something it cannot answer."""


class WrongProblem(FalllineError, TypeError):
    """A method was given a problem of a kind it does not solve."""


class NonFiniteError(FalllineError, ArithmeticError):
    """A value, gradient or update was NaN or infinite."""


class CheckpointError(FalllineError, RuntimeError):
    """A checkpoint is unreadable, or belongs to another run."""


class UnknownName(FalllineError, LookupError):
    """A name is not registered; the message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.suggestions = near
