"""Where a problem comes from: a name, a user's file, a function of the seed, or a Problem; each with an identity.

The identity of a problem is text that equals another's exactly if the two are the same problem, so that a stored trial is
found again: the name of a ready problem, the content of a file, a hash of what a given Problem or function holds and answers.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fallline.core.counts import Counts
from fallline.core.errors import FalllineError, UnknownName
from fallline.core.problem import Problem
from fallline.study.identity import digest, fingerprint, problem_identity


class StudyError(FalllineError, ValueError):
    """A comparison cannot start or go on; the message names what, its value, and the remedy."""


@dataclass(frozen=True)
class ProblemSpec:
    """How to make a problem from a seed, in this process or another.

    Parameters
    ----------
    name
        Shown in tables and stored with the trials.
    identity
        What the problem is, as text: equal identities are the same problem.
    make
        ``seed -> Problem``; None when `path` says where to find it.
    path
        A Python file with a function ``problem(seed)``.
    """

    name: str
    identity: str
    make: Callable[..., Problem] | None = field(default=None, compare=False)
    path: str | None = None

    def __call__(self, seed: int) -> Problem:
        make = self.make if self.make is not None else load_file(str(self.path))
        try:
            found = make(seed)
        except (Exception, SystemExit) as error:  # a user's function is any code; whatever it raises belongs in the message
            raise StudyError(
                f"problem {self.name!r} cannot be made at seed {seed}: {type(error).__name__}: {error}; "
                "try its function by itself"
            ) from error
        if not isinstance(found, Problem):
            raise StudyError(f"problem {self.name!r} must return a fallline Problem, got {type(found).__name__}")
        return found


@dataclass(frozen=True)
class Fixed:
    """The same problem at every seed, each with counts of its own."""

    problem: Problem

    def __call__(self, seed: int) -> Problem:
        return self.problem.counted(Counts())


def load_file(path: str) -> Callable[[int], Problem]:
    """The function ``problem`` of a user's Python file.

    Raises
    ------
    StudyError
        When the file is missing, fails to import, or has no such function.
    """
    if not Path(path).is_file():
        raise StudyError(f"problem file {path!r} does not exist; give a file with `def problem(seed: int)`, or a name")
    name = "fallline_user_" + digest(str(Path(path).resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StudyError(f"problem file {path!r} is not a Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file is any code; whatever it raises belongs in the message
        raise StudyError(
            f"problem file {path!r} fails to import: {type(error).__name__}: {error}; run `python {path}` to see where"
        ) from error
    make = getattr(module, "problem", None)
    if not callable(make):
        raise StudyError(f"problem file {path!r} has no function `problem`; define `def problem(seed: int) -> Problem`")
    return make


def problem_spec(problem: str | Path | Problem | Callable[..., Problem] | ProblemSpec) -> ProblemSpec:
    """Accept a name of `fallline.problems`, a Python file, a function of the seed, or a Problem.

    A file is identified by its content; a Problem by its data, its functions, its starting point and what it answers there; a
    function by its code and by the problem it makes at seed 0.
    """
    if isinstance(problem, ProblemSpec):
        return problem
    if isinstance(problem, Problem):
        return ProblemSpec(problem.name, problem_identity(problem), Fixed(problem))
    if callable(problem):
        name = getattr(problem, "__name__", type(problem).__name__)
        made = ProblemSpec(name, "", problem)(0)
        return ProblemSpec(name, digest([fingerprint(problem), problem_identity(made)]), problem)
    if str(problem).endswith(".py"):
        load_file(str(problem))
        content = hashlib.sha256(Path(problem).read_bytes()).hexdigest()[:24]
        return ProblemSpec(Path(problem).stem, content, path=str(Path(problem).resolve()))
    from fallline import problems

    name = str(problem)
    if name not in problems.names():
        raise UnknownName("problem", name, problems.names())
    return ProblemSpec(name, digest(["fallline.problems", name]), functools.partial(problems.make, name))
