"""``fallline compare`` and ``fallline report``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fallline.core.budget import Budget
    from fallline.study import Comparison, Contender


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
        if not 0 < number < math.inf:
            raise StudyError(f"--budget {name} must be a positive number, got {text!r}; for example --budget {name}=500")
        if name in limits:
            raise StudyError(f"--budget {name} is given twice, in {','.join(texts)!r}; give it once")
        limits[name] = number if name == "seconds" else int(number)
    return Budget(**limits) if limits else None  # type: ignore[arg-type]


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[Path]:
    """The folder, made if need be; refused before any work when nothing can be written there, and gone if nothing was."""
    from fallline.study import StudyError

    made = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise StudyError(f"--out {str(folder)!r} cannot be written: {error.strerror}; choose another folder") from error
        yield folder
    finally:
        with contextlib.suppress(OSError):  # the first one that is not empty, or was never made
            for place in made:
                place.rmdir()


def listed(methods: str) -> list[str | Contender]:
    """``"adamw,optim,mine=my.py:Descent"`` as names and labelled sides; modules are found from here, as by ``python -m``."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if any(":" in name for name in names) and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return [_labelled(name) for name in names]


def _labelled(name: str) -> str | Contender:
    """The side that ``LABEL=METHOD`` names; a name without a label, or a path with a ``=`` in its folders, as it is."""
    from fallline.study import StudyError
    from fallline.study.settings import contender

    label, equals, method = (part.strip() for part in name.partition("="))
    if not equals or {*"/\\:"} & {*label}:
        return name
    if not label or not method:
        raise StudyError(f"--methods must hold METHOD or LABEL=METHOD, got {name!r}; for example --methods mine=my.py:Descent,adamw")
    return dataclasses.replace(contender(method), label=label)


def compare(
    problem: Annotated[str, typer.Argument(help="A ready problem, or a Python file with `def problem(seed: int)`.")],
    methods: Annotated[
        str, typer.Option(
            help="Joined by commas: names, rooms, `all` or `all-first-order` that fit, your own as FILE.py:CLASS or MODULE:CLASS; "
            "LABEL=NAME or LABEL=FILE.py:CLASS calls one otherwise, and tells two of one name apart."
        ),
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
    spec, sides = problem_spec(problem), listed(methods)
    with writable(out or Path(f"fallline-{spec.name}")) as folder:
        comparison = run(
            spec,
            sides,
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
    from rich.text import Text

    from fallline.study.terminal import print_comparison, write_svg

    console, path = Console(), folder / "report.html"
    if machine:
        print(json.dumps({**comparison.to_dict(), "report": str(path)}, indent=1, ensure_ascii=False, default=repr))
    else:
        print_comparison(comparison, console)
    comparison.report(path)
    write_svg(comparison, folder / "leaderboard.svg")
    if not machine:
        console.print(Text(f"Report: {path}"), soft_wrap=True)


def report(
    storages: Annotated[list[str], typer.Argument(help="Database URLs, SQLite files, or folders that `compare` wrote.")],
    problems: Annotated[list[str], typer.Option("--problem", help="Only the studies of this problem; may be repeated.")] = [],  # noqa: B006
    every: Annotated[bool, typer.Option("--all", help="Also the earlier studies of the same question in a storage.")] = False,
    axis: Annotated[str | None, typer.Option(help="The cost shown first: steps, seconds, gradients …")] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcomes as a JSON list instead.")] = False,
) -> None:
    """Write the report anew from stored trials, several studies side by side; nothing is run."""
    from fallline.study import StudyError, stored
    from fallline.study.comparison import Comparison
    from fallline.study.report import write_report

    held = [stored(storage) for storage in dict.fromkeys(map(_storage_in, storages))]
    found = [entry for studies in held for entry in (studies if every else _latest(studies))]
    kept = [entry for entry in found if not problems or entry.table.terms.problem in problems]
    if not kept:
        there = ", ".join(sorted({entry.table.terms.problem for entry in found}))
        raise StudyError(f"no study of {', '.join(problems)} is stored; there are studies of {there}")
    shown = [Comparison(entry.table, axis) for entry in kept]
    if as_json:
        print(json.dumps([entry.to_dict() for entry in shown], indent=1, ensure_ascii=False, default=repr))
        return
    print(write_report(shown, out))


def _latest(studies: list[Comparison]) -> list[Comparison]:
    """Of studies of one storage, oldest first: the last one of every problem, budget, metric and set of methods."""
    found: dict[object, Comparison] = {}
    for study in studies:
        terms = study.table.terms
        question = terms.problem, frozenset(terms.limits.items()), terms.metric, frozenset(side.title for side in study.table.sides)
        found.pop(question, None)
        found[question] = study
    return list(found.values())


def _storage_in(place: str) -> str:
    """The storage itself, or the one in a folder that ``compare`` wrote."""
    inside = Path(place) / "trials.sqlite"
    return str(inside) if "://" not in place and inside.is_file() else place
