"""Where a problem comes from: a name, a user's file, a function of the seed, or a Problem; each with an identity.

The identity of a problem is text that equals another's exactly if the two are the same problem, so that a stored trial is
found again: the name of a ready problem, and a hash of what any other is made of, holds and answers.

A user's file is read once and travels as its content, so a machine that does not have the file can run it. What the file itself
imports must be installed there.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.abc import ExecutionLoader
from pathlib import Path
from types import ModuleType

from fallline.core.counts import Counts
from fallline.core.errors import FalllineError, UnknownName
from fallline.core.problem import Problem
from fallline.core.warning import warn
from fallline.study.identity import digest, fingerprint, problem_identity


class StudyError(FalllineError, ValueError):
    """A comparison cannot start or go on; the message names what, its value, and the remedy."""


@dataclass(frozen=True)
class UserFile(ExecutionLoader):
    """A Python file as it was read; being the loader of its modules, it also gives tracebacks their lines."""

    path: str
    source: str

    def get_filename(self, fullname: str) -> str:
        """What tracebacks call the file."""
        return self.path

    def get_source(self, fullname: str) -> str:
        """The content."""
        return self.source

    def module(self, role: str) -> ModuleType:
        """Run the file as a fresh module; two files of the same content have the same module name.

        Raises
        ------
        StudyError
            When the file fails to import.
        """
        folder = str(Path(self.path).parent)
        if Path(folder).is_dir() and folder not in sys.path:  # what lies beside the file is imported as if it had been run
            sys.path.append(folder)
        name = f"fallline_{role}_{digest(self.source)}"
        spec = importlib.util.spec_from_loader(name, self)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            self.exec_module(module)
        except (Exception, SystemExit) as error:  # a user's file is any code; whatever it raises belongs in the message
            raise StudyError(
                f"file {self.path!r} fails to import: {type(error).__name__}: {error}; run `python {self.path}` to see where"
            ) from error
        return module

    def problem(self) -> Callable[..., Problem]:
        """The function ``problem``, of a module of its own at every call: no trial sees what another left in the module.

        Raises
        ------
        StudyError
            When the file fails to import, or has no such function.
        """
        make = getattr(self.module("problem"), "problem", None)
        if not callable(make):
            raise StudyError(f"problem file {self.path!r} has no function `problem`; define `def problem(seed: int) -> Problem`")
        return make


def read_file(path: str | Path) -> UserFile:
    """Read a user's Python file.

    Raises
    ------
    StudyError
        When there is no such file, or it is not text.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise StudyError(f"file {str(path)!r} does not exist or cannot be read ({error.strerror}); give the path of a Python file, "
                         "or a name") from error
    try:
        return UserFile(str(Path(path).resolve()), importlib.util.decode_source(content))
    except (UnicodeDecodeError, SyntaxError) as error:
        raise StudyError(f"file {str(path)!r} is not Python in UTF-8: {error}; save it as UTF-8") from error


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
        ``seed -> Problem``; None when a file has it.
    file
        A Python file with a function ``problem(seed)``.
    """

    name: str
    identity: str
    make: Callable[..., Problem] | None = field(default=None, compare=False)
    file: UserFile | None = field(default=None, compare=False, repr=False)

    def __call__(self, seed: int) -> Problem:
        make = self.file.problem() if self.file is not None else self.make
        assert make is not None
        try:
            found = make(seed)
        except (Exception, SystemExit) as error:  # a user's function is any code; whatever it raises belongs in the message
            place = f"problem {self.name!r}" + (f" of file {self.file.path!r}" if self.file is not None else "")
            raise StudyError(
                f"{place} cannot be made at seed {seed}: {type(error).__name__}: {error}; try its function by itself"
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


def _made(spec: ProblemSpec) -> str:
    """The identity of the problem made at seed 0; nothing, and a warning, if it is another one every time."""
    one, two = (problem_identity(spec(0)) for _ in range(2))
    if one == two:
        return one
    warn(f"problem {spec.name!r} is another one every time it is made at seed 0; draw everything from the seed, or figures at the same "
         "seed do not compare, and stored trials may be of another problem")
    return ""


def problem_spec(problem: str | Path | Problem | Callable[..., Problem] | ProblemSpec) -> ProblemSpec:
    """Accept a name of `fallline.problems`, a Python file, a function of the seed, or a Problem.

    A Problem is identified by its data, its functions, its starting point and what it answers there; a file by its content, and a
    function by its code, and both by the problem they make at seed 0, which sees what they import and read.
    """
    if isinstance(problem, ProblemSpec):
        return problem
    if isinstance(problem, Problem):
        return ProblemSpec(problem.name, problem_identity(problem), Fixed(problem))
    if callable(problem):
        name = getattr(problem, "__name__", type(problem).__name__)
        spec = ProblemSpec(name, "", problem)
        return replace(spec, identity=digest([fingerprint(problem), _made(spec)]))
    if str(problem).endswith(".py"):
        file = read_file(problem)
        spec = ProblemSpec(Path(problem).stem, "", file=file)
        return replace(spec, identity=digest([file.source, _made(spec)]))
    from fallline import problems

    name = str(problem)
    if name not in problems.names():
        raise UnknownName("problem", name, problems.names())
    return ProblemSpec(name, digest(["fallline.problems", name]), functools.partial(problems.make, name))
