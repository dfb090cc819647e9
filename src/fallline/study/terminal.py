"""The leaderboard in a terminal, as text, and as an SVG picture of the terminal.

Names come from users, and rich reads brackets and colons in a str as markup and emoji: all that is printed is a Text.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fallline.study.numbers import amount, interval, p_text, setting_text, short

if TYPE_CHECKING:
    from fallline.study.comparison import Comparison


WIDE = 100


def leaderboard_table(comparison: Comparison, *, wide: bool = True) -> Table:
    """Rank, method, median, spread, p against the best, spending and best setting; if wide, lost trials and seconds too."""
    rows, leading = comparison.leaderboard, {row.method for row in comparison.leaders}
    kind = rows[0].spread.kind
    terms = comparison.table.terms
    table = Table(title=Text(f"{terms.problem}: {terms.metric}, smaller is better", "table.title"), title_justify="left")
    for name in ("", "method", "median"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    table.add_column(f"{kind} over {terms.seeds} seeds", no_wrap=True)
    for name in ("p", comparison.spending, *(("lost", "seconds") if wide else ())):
        table.add_column(Text(name), justify="right")
    table.add_column("best setting", overflow="fold")
    for row in rows:
        style = "bold" if row.method in leading else ""
        cells = [str(row.rank), row.method, row.median, interval(row.spread), p_text(row.p)]
        cells += [amount(comparison.spent(row)), *((row.lost, short(row.seconds)) if wide else ())]
        table.add_row(*map(Text, cells), Text(setting_text({**comparison.table[row.method].entrant.fixed, **row.setting})), style=style)
    return table


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Leaderboard, headline, the limits of the answer, and what trials raised."""
    console.print(leaderboard_table(comparison, wide=console.width >= WIDE))
    console.print(Text(comparison.headline))
    for sentence in comparison.limits:
        console.print(Text(f"· {sentence}"), style="dim")
    for method, messages in comparison.errors.items():
        more = f" (and {len(messages) - 1} more like it)" if len(messages) > 1 else ""
        console.print(Text(f"{method} raised: {messages[0]}{more}"))


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
