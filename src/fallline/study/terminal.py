"""The leaderboard in a terminal, as text, and as an SVG picture of the terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fallline.study.numbers import interval, setting_text, short

if TYPE_CHECKING:
    from fallline.study.comparison import Comparison, Row


WIDE = 100


def leaderboard_table(comparison: Comparison, *, wide: bool = True) -> Table:
    """Rank, method, median, spread, spending and best setting; between them, if wide, divergent trials and seconds."""
    rows, leading = comparison.leaderboard, {row.method for row in comparison.leaders}
    kind = rows[0].spread.kind
    table = Table(title=f"{comparison.table.problem.name}: {comparison.table.metric}, smaller is better", title_justify="left")
    for name in ("", "method", "median"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    table.add_column(f"{kind} over {comparison.table.seeds} seeds", no_wrap=True)
    table.add_column(comparison.spending, justify="right")
    for name in ("divergent", "seconds") if wide else ():
        table.add_column(name, justify="right")
    table.add_column("best setting", overflow="fold")
    for row in rows:
        style = "bold" if row.method in leading else ""
        cells = [str(row.rank), row.method, short(row.spread.median), interval(row.spread), f"{comparison.spent(row):,.0f}"]
        cells += [_divergent(row), short(row.seconds)] if wide else []
        table.add_row(*cells, setting_text(dict(row.setting)), style=style)
    return table


def _divergent(row: Row) -> str:
    return f"{row.diverged + row.tuning_diverged} of {row.spread.count + row.tuning_trials}"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Leaderboard, headline, and what trials raised."""
    console.print(leaderboard_table(comparison, wide=console.width >= WIDE))
    console.print(comparison.headline, highlight=False, markup=False, soft_wrap=False)
    for method, messages in comparison.errors.items():
        console.print(f"{method} raised: {'; '.join(messages)}", highlight=False, markup=False)


def as_text(comparison: Comparison, width: int = 110) -> str:
    """What `print_comparison` prints, without colours."""
    buffer = io.StringIO()
    print_comparison(comparison, Console(file=buffer, width=width, color_system=None))
    return buffer.getvalue().rstrip()


def write_svg(comparison: Comparison, path: Path, width: int = 110) -> Path:
    """Write the leaderboard as an SVG picture that fetches nothing."""
    console = Console(record=True, file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    print_comparison(comparison, console)
    drawn = console.export_svg(title="fallline compare")
    drawn = re.sub(r"@font-face\s*\{.*?\}", "", drawn, flags=re.DOTALL)
    path.write_text(drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas"), encoding="utf-8")
    return path
