"""``fallline new-problem``: a file to begin one's own problem from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

TEMPLATES = "cli/templates"


def kinds() -> list[str]:
    """The kinds of problem there is a template for."""
    return sorted(entry.name.removesuffix(".py") for entry in _folder().iterdir() if entry.name.endswith(".py"))


def _folder() -> resources.abc.Traversable:
    return resources.files("fallline").joinpath(TEMPLATES)


def new_problem(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("my_problem.py"),
    kind: Annotated[
        str, typer.Option(help="training, function, finite-sum, linear-system, fixed-point, bilevel, game or black-box.")
    ] = "training",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a problem file that runs as it is, for you to change: `fallline compare my_problem.py` takes it."""
    from fallline.core.errors import UnknownName
    from fallline.study import StudyError

    if kind not in kinds():
        raise UnknownName("kind of problem", kind, kinds())
    if path.suffix != ".py":
        raise StudyError(f"problem file {str(path)!r} must end with .py; for example my_problem.py")
    if path.exists() and not force:
        raise StudyError(f"problem file {str(path)!r} exists; give another name, or --force to replace it")
    try:
        path.write_text(_folder().joinpath(f"{kind}.py").read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"problem file {str(path)!r} cannot be written: {error.strerror}; choose another folder") from error
    print(f"{path}: change it, then fallline compare {path}")
