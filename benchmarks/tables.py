"""The page of benchmarks, made from all results

    python benchmarks/tables.py

writes ``docs/benchmarks.md`` from ``benchmarks/results/*.json`` and from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from figures import RESULTS, Benchmark, Goal, Quartiles, Row, Table, read

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEARABLE, NOISE = 5.0, 0.1
UNITS = {"milliseconds": "ms", "peak_bytes": "peak, MiB"}
HEAD = """# Benchmarks

Time and memory against peers, measured side by side. A ratio is the contestant's time to the reference's in the same pair: the
median over all repeats, with quartiles in brackets; below 1 is faster. Where the reference is raced, the first row is the reference
against another one of itself, which shows how much of a ratio is noise. Times of different runs or machines are not to be compared.
A goal is met or missed by the median, and undecided where the run was disturbed: other processes took more than 5 % of the cores' time,
or the quartiles of the reference against itself leave 0.9 to 1.1.

`make bench` runs all of it; `python benchmarks/tables.py` makes this page from `benchmarks/results/`, where the ratio of every repeat
is kept."""


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where it can be helped."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(found: Quartiles | None) -> str:
    """Median and quartiles."""
    return f"{number(found.median)} ({number(found.lower)} to {number(found.upper)})" if found else "—"


def shown(row: Row, figure: str) -> str:
    """One figure of a row."""
    if figure == "ratio":
        return spread(row.ratio)
    return number(row.peak_bytes / 2**20 if figure == "peak_bytes" and row.peak_bytes is not None else row.figure(figure))


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], rest: str = "---:") -> str:
    """A table in Markdown; the columns after the first are numbers and stand to the right, or as `rest` says."""
    lines = [head, ["---", *[rest] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def columns(table: Table) -> list[str]:
    """The figures that some row has, in the order in which they appear."""
    named = dict.fromkeys(name for row in table.rows for name in row.figures)
    return [name for name in ("ratio", "milliseconds", "peak_bytes", *named) if any(row.figure(name) is not None for row in table.rows)]


def measurements(table: Table) -> str:
    """The rows, and below them who is missing."""
    found, present = columns(table), [row for row in table.rows if row.missing is None]
    head = ["", *(f"ratio to {table.reference}" if name == "ratio" else UNITS.get(name, name) for name in found)]
    missing = "".join(f"\n\n{row.name} is missing: {row.missing}." for row in table.rows if row.missing is not None)
    return grid(head, ([row.name, *(shown(row, name) for name in found)] for row in present)) + missing


def _others(found: Benchmark) -> str:
    taken = found.machine["others_percent"]
    return " What other processes took was not measured." if taken is None else f" Other processes took {taken:g} % of the cores' time."


def doubts(found: Benchmark, table: Table) -> list[str]:
    """Why times of this table are not to be relied on; the same for all contestants, whatever came out."""
    others = found.machine["others_percent"]
    said = [f"other processes took {others:g} % of the cores' time"] if others is not None and others > BEARABLE else []
    same = next((row.ratio for row in table.rows if row.name == table.reference), None)
    if same and (same.lower < 1 - NOISE or same.upper > 1 + NOISE):
        said.append(f"the reference against itself gave {spread(same)}")
    return said


def verdict(found: Benchmark, table: Table, goal: Goal) -> str:
    """Whether the goal is met; bytes are counted, and so are decided in a disturbed run too."""
    measured, limit = table.judged(goal)
    if measured is None or limit is None:
        return "not measured"
    if doubts(found, table) and "bytes" not in goal.figure:
        return "undecided"
    return "met" if measured <= limit else "**missed**"


def held_against(table: Table, goal: Goal) -> str:
    """The goal's number, and whose it is."""
    limit = number(table.judged(goal)[1])
    return f"{limit}, {goal.at_most}" if isinstance(goal.at_most, str) else limit


def goals(found: Benchmark, table: Table) -> str:
    """Goal and measured side by side."""
    rows = []
    for goal in table.goals:
        row = next((row for row in table.rows if row.name == goal.row), Row(goal.row))
        against, measured = held_against(table, goal), shown(row, goal.figure)
        rows.append([f"{goal.row}: {goal.figure}", against, measured, verdict(found, table, goal), goal.why])
    return grid(["goal", "at most", "measured", "", "because"], rows, "---")


def origin(found: Benchmark) -> str:
    """Machine, date, versions and settings in one paragraph."""
    at, options = found.machine, found.settings
    memory = f", {at['memory_bytes'] / 2**30:.0f} GiB" if at["memory_bytes"] else ""
    versions = {name: at[name] for name in ("fallline", "torch", "python")} | dict(found.libraries)
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = f"{at['processor']}, {at['cores']} cores{memory}, {at['system']}"
    return f"{at['date']}: {where}; {named}; {options['repeats']} repeats, {options['threads']} threads.{_others(found)}"


def section(found: Benchmark) -> str:
    """One benchmark."""
    title, _, rest = found.description.replace("``", "`").partition("\n")
    parts = [f"## {title}", rest.strip("\n"), origin(found)]
    for table in found.tables:
        parts += [f"### {table.title}", *warning(found, table), measurements(table)]
        parts += [goals(found, table)] if table.goals else []
    return "\n\n".join(parts)


def warning(found: Benchmark, table: Table) -> list[str]:
    """A paragraph above the table of a disturbed run."""
    said = doubts(found, table)
    return [f"**Disturbed: {'; '.join(said)}. Times and ratios of this run decide nothing.**"] if said else []


def missed(benchmarks: Sequence[Benchmark]) -> str:
    """How many goals are met, and every one that is not."""
    held = [(verdict(found, table, goal), table, goal) for found in benchmarks for table in found.tables for goal in table.goals]
    others = [entry for entry in held if entry[0] != "met"]
    if not others:
        return f"All {len(held)} goals are met."
    lines = [f"Of {len(held)} goals {len(held) - len(others)} are met. The others:", ""]
    for said, table, goal in others:
        measured = number(table.figure(goal.row, goal.figure))
        lines.append(f"- {said}: {goal.row}, {goal.figure} ({table.title}): {measured}, goal {held_against(table, goal)}")
    return "\n".join(lines)


def page(benchmarks: Sequence[Benchmark]) -> str:
    """The whole page."""
    return "\n\n".join([HEAD, "## Goals", missed(benchmarks), *(section(found) for found in benchmarks)]) + "\n"


def recorded(folder: Path = RESULTS) -> list[Benchmark]:
    """All results, by name."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


if __name__ == "__main__":
    PAGE.write_text(page(recorded()), encoding="utf-8")
    print(PAGE)
