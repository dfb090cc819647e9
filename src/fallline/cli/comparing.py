"""``fallline compare`` and ``fallline report``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fallline.core.budget import Budget
    from fallline.study import Comparison


def parse_budget(texts: list[str]) -> Budget | None:
    """``["steps=500", "gradients=2000"]`` as a Budget; nothing as None."""
    from fallline.core.budget import Budget
    from fallline.study import StudyError

    limits: dict[str, float] = {}
    for text in (part for entry in texts for part in entry.split(",")):
        name, equals, amount = text.partition("=")
        name = name.strip()
        try:
            number = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name.isidentifier():
            raise StudyError(f"--budget must be NAME=NUMBER, got {text!r}; for example --budget steps=500")
        if name != "seconds" and not number.is_integer():
            raise StudyError(f"--budget {name} must be a whole number, got {text!r}; only seconds may be a fraction")
        limits[name] = number if name == "seconds" else int(number)
    try:
        return Budget(**limits) if limits else None  # type: ignore[arg-type]
    except ValueError as error:
        raise StudyError(f"--budget {','.join(texts)!r} is empty: {error}; for example --budget steps=500") from error


def writable(folder: Path) -> Path:
    """The folder, made if need be; refused before any work when nothing can be written there."""
    from fallline.study import StudyError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise StudyError(f"--out {str(folder)!r} cannot be written: {error.strerror}; choose another folder") from error


def listed(methods: str) -> list[str]:
    """``"adamw,optim,my.py:Descent"`` as names; what Python imports from here is found, as it is by ``python -m``."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if any(":" in name for name in names) and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return names


def compare(
    problem: Annotated[str, typer.Argument(help="A ready problem, or a Python file with `def problem(seed: int)`.")],
    methods: Annotated[
        str, typer.Option(help="Joined by commas: names, rooms, `all` that fit, your own as FILE.py:CLASS or MODULE:CLASS.")
    ] = "all",
    budget: Annotated[
        list[str], typer.Option(help="Of every trial: steps=500, seconds=10, gradients=2000; the problem's own by default.")
    ] = [],  # noqa: B006 - typer makes a fresh list for every call
    tune: Annotated[int, typer.Option(help="Settings tried of every method; 0 keeps their defaults.")] = 8,
    seeds: Annotated[int, typer.Option(help="Fresh seeds at which the best setting is run.")] = 3,
    tuning_seeds: Annotated[int, typer.Option(help="Seeds at which every setting is tried.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    metric: Annotated[str | None, typer.Option(help="What the problem observes and decides, smaller being better.")] = None,
    prune: Annotated[str | None, typer.Option(help="Stop hopeless tuning trials early: median.")] = None,
    axis: Annotated[
        str | None, typer.Option(help="The cost shown first: steps, seconds, gradients, values, hvps, bytes, samples …")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    cluster: Annotated[
        str | None, typer.Option(help="Run the trials on a Ray cluster, ray://HOST:10001, or on a Ray of this machine: local.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; `fallline-PROBLEM` by default.")] = None,
    storage: Annotated[str | None, typer.Option(help="Database URL or SQLite file of the trials; in the folder by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Tune every method alike on a problem, run the best settings over fresh seeds, and write report.html.

    Stopped and started again with the same arguments, it goes on where it was.
    """
    from fallline.study import compare as run
    from fallline.study.sources import problem_spec

    limits = parse_budget(budget)
    spec = problem_spec(problem)
    folder = writable(out or Path(f"fallline-{spec.name}"))
    comparison = run(
        spec,
        listed(methods),
        limits,
        tune=tune,
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        seed=seed,
        metric=metric,
        prune=prune,
        axis=axis,
        workers=workers,
        cluster=cluster,
        storage=storage or folder / "trials.sqlite",
        progress=False if as_json else None,
    )
    _present(comparison, folder, as_json)
    if not comparison.leaders and len(comparison.errors) == len(comparison.leaderboard):
        raise typer.Exit(1)


def _present(comparison: Comparison, folder: Path, machine: bool) -> None:
    """Print the outcome, then write the report: a full disk does not take away what was found."""
    from rich.console import Console

    from fallline.study.terminal import print_comparison, write_svg

    console, path = Console(), folder / "report.html"
    if machine:
        print(json.dumps({**comparison.to_dict(), "report": str(path)}, indent=1, ensure_ascii=False, default=repr))
    else:
        print_comparison(comparison, console)
    comparison.report(path)
    write_svg(comparison, folder / "leaderboard.svg")
    if not machine:
        console.print(f"Report: {path}", highlight=False, soft_wrap=True)


def report(
    storages: Annotated[list[str], typer.Argument(help="Database URLs, SQLite files, or folders that `compare` wrote.")],
    problems: Annotated[list[str], typer.Option("--problem", help="Only the studies of this problem; may be repeated.")] = [],  # noqa: B006
    latest: Annotated[bool, typer.Option(help="Only the latest study of every problem, or all of them.")] = True,
    axis: Annotated[str | None, typer.Option(help="The cost shown first: steps, seconds, gradients …")] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcomes as a JSON list instead.")] = False,
) -> None:
    """Write the report anew from stored trials, several studies side by side; nothing is run."""
    from fallline.study import StudyError, stored
    from fallline.study.comparison import Comparison
    from fallline.study.report import write_report

    found = [entry for storage in storages for entry in stored(_storage_in(storage))]
    kept = [entry for entry in found if not problems or entry.table.terms.problem in problems]
    if not kept:
        there = ", ".join(sorted({entry.table.terms.problem for entry in found}))
        raise StudyError(f"no study of {', '.join(problems)} is stored; there are studies of {there}")
    if latest:
        kept = list({entry.table.terms.problem: entry for entry in kept}.values())
    shown = [Comparison(entry.table, axis) for entry in kept]
    if as_json:
        print(json.dumps([entry.to_dict() for entry in shown], indent=1, ensure_ascii=False, default=repr))
        return
    print(write_report(shown, out))


def _storage_in(place: str) -> str:
    """The storage itself, or the one in a folder that ``compare`` wrote."""
    inside = Path(place) / "trials.sqlite"
    return str(inside) if "://" not in place and inside.is_file() else place
