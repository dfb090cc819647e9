"""Where a problem comes from: a name, a user's file, a function of the seed, or a Problem; each with an identity.

The identity of a problem is text that equals another's exactly if the two are the same problem, so that a stored trial is
found again: the name of a ready problem, the content of a file, a hash of where a given Problem starts and what it observes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fallline.core import tree
from fallline.core.counts import Counts
from fallline.core.errors import FalllineError, UnknownName
from fallline.core.problem import Problem


class StudyError(FalllineError, ValueError):
    """A comparison cannot start or go on; the message names what, its value, and the remedy."""


def digest(content: Any) -> str:
    """Hash of plain data, 24 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


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
        except Exception as error:  # a user's function is any code; whatever it raises belongs in the message
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
    except Exception as error:  # a user's file is any code; whatever it raises belongs in the message
        raise StudyError(
            f"problem file {path!r} fails to import: {type(error).__name__}: {error}; run `python {path}` to see where"
        ) from error
    make = getattr(module, "problem", None)
    if not callable(make):
        raise StudyError(f"problem file {path!r} has no function `problem`; define `def problem(seed: int) -> Problem`")
    return make


def problem_spec(problem: str | Path | Problem | Callable[..., Problem] | ProblemSpec) -> ProblemSpec:
    """Accept a name of `fallline.problems`, a Python file, a function of the seed, or a Problem.

    A file is identified by its content. A Problem is identified by its name, its starting point and what it observes there.
    """
    if isinstance(problem, ProblemSpec):
        return problem
    if isinstance(problem, Problem):
        return ProblemSpec(problem.name, _identity(problem), Fixed(problem))
    if callable(problem):
        name = getattr(problem, "__name__", type(problem).__name__)
        parameters = sorted(vars(problem).items()) if not inspect.isfunction(problem) else []
        where = getattr(problem, "__qualname__", type(problem).__qualname__)
        return ProblemSpec(name, digest([problem.__module__, where, parameters, _identity(problem(0))]), problem)
    if str(problem).endswith(".py"):
        load_file(str(problem))
        content = hashlib.sha256(Path(problem).read_bytes()).hexdigest()[:24]
        return ProblemSpec(Path(problem).stem, content, path=str(Path(problem).resolve()))
    from fallline import problems

    name = str(problem)
    if name not in problems.names():
        raise UnknownName("problem", name, problems.names())
    return ProblemSpec(name, digest(["fallline.problems", name]), functools.partial(problems.make, name))


def _identity(problem: Problem) -> str:
    numbers = hashlib.sha256()
    for leaf in tree.leaves(problem.x0):
        numbers.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest([problem.name, problem.kind, numbers.hexdigest(), sorted(problem.observe(problem.x0).items())])
