"""``fallline compare``."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


def as_json(comparison: Comparison, report: Path) -> dict[str, Any]:
    """The outcome for another program; a value that is not finite is null."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rows = [
        {
            "rank": row.rank,
            "method": row.method,
            "median": finite(row.spread.median),
            "low": finite(row.spread.low),
            "high": finite(row.spread.high),
            "seeds": row.spread.count,
            "diverged": row.diverged,
            "tuning_trials": row.tuning_trials,
            "tuning_diverged": row.tuning_diverged,
            "seconds": row.seconds,
            "counts": dict(row.counts),
            "spent": {comparison.spending: comparison.spent(row)},
            "different_runs": row.different,
            "setting": dict(row.setting),
            "errors": list(row.errors),
        }
        for row in comparison.leaderboard
    ]
    head = {"problem": comparison.table.problem.name, "metric": comparison.table.metric, "winner": comparison.winner}
    return {**head, "headline": comparison.headline, "leaderboard": rows, "report": str(report)}


def compare(
    problem: Annotated[str, typer.Argument(help="A ready problem, or a Python file with `def problem(seed: int)`.")],
    methods: Annotated[str, typer.Option(help="Names joined by commas, or `all` that fit.")] = "all",
    budget: Annotated[
        list[str], typer.Option(help="Of every trial: steps=500, seconds=10, gradients=2000; the problem's own by default.")
    ] = [],  # noqa: B006 - typer makes a fresh list for every call
    tune: Annotated[int, typer.Option(help="Settings tried of every method; 0 keeps their defaults.")] = 8,
    seeds: Annotated[int, typer.Option(help="Fresh seeds at which the best setting is run.")] = 3,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    metric: Annotated[str | None, typer.Option(help="What the problem observes and decides, smaller being better.")] = None,
    workers: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; `fallline-PROBLEM` by default.")] = None,
    storage: Annotated[str | None, typer.Option(help="Database URL or SQLite file of the trials; in the folder by default.")] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Tune every method alike on a problem, run the best settings over fresh seeds, and write report.html.

    Stopped and started again with the same arguments, it goes on where it was.
    """
    from fallline.study import compare as run
    from fallline.study.sources import problem_spec

    limits = parse_budget(budget)
    spec = problem_spec(problem)
    folder = writable(out or Path(f"fallline-{spec.name}"))
    names = "all" if methods.strip() == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    comparison = run(
        spec,
        names,
        limits,
        tune=tune,
        seeds=seeds,
        seed=seed,
        metric=metric,
        workers=workers,
        storage=storage or folder / "trials.sqlite",
        progress=False if as_json_ else None,
    )
    _present(comparison, folder, as_json_)
    if not comparison.leaders and len(comparison.errors) == len(comparison.leaderboard):
        raise typer.Exit(1)


def _present(comparison: Comparison, folder: Path, machine: bool) -> None:
    from rich.console import Console

    from fallline.study.terminal import print_comparison, write_svg

    report = comparison.report(folder / "report.html")
    write_svg(comparison, folder / "leaderboard.svg")
    if machine:
        print(json.dumps(as_json(comparison, report), indent=1, ensure_ascii=False, default=repr))
        return
    console = Console()
    print_comparison(comparison, console)
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
