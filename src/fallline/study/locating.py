"""A class by where it lies: ``my_methods.py:Descent`` in a file, ``package.module:Descent`` in a module."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fallline.study.sources import StudyError, UserFile, read_file


@dataclass(frozen=True)
class Location:
    """Where a Method or torch optimizer class (or a function making a Method) lies; a user's file travels with its content.

    Parameters
    ----------
    text
        ``file.py:Name`` or ``package.module:Name``.
    file
        The file as it was read; None for a module, which must be installed wherever trials run.
    """

    text: str
    file: UserFile | None

    @property
    def name(self) -> str:
        """What lies there."""
        return self.text.rpartition(":")[2]

    def found(self) -> Any:
        """The class itself.

        Raises
        ------
        StudyError
            When the file or module fails to import, or has no such name.
        """
        place = self.text.rpartition(":")[0]
        module = _module(self.file) if self.file is not None else _imported(place, self.text)
        found = getattr(module, self.name, None)
        if not callable(found):
            there = ", ".join(n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__)
            raise StudyError(f"method {self.text!r}: {place!r} has no class {self.name!r}; it defines {there or 'no class'}")
        return found


def location(text: str) -> Location:
    """Read the file, if it is one; StudyError where there is none."""
    place = text.rpartition(":")[0]
    return Location(text, read_file(place) if place.endswith(".py") else None)


@functools.cache
def _module(file: UserFile) -> ModuleType:
    """The module of a file's content, run once in a process: a class is one class."""
    return file.module("methods")


def _imported(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a user's module is any code; whatever it raises belongs in the message
        raise StudyError(
            f"method {text!r}: module {name!r} fails to import: {type(error).__name__}: {error}; "
            "give file.py:Name, or package.module:Name as Python would import it"
        ) from error
