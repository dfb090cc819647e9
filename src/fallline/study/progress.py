"""How a comparison goes on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from fallline.study.numbers import setting_text, short
from fallline.study.runs import Watcher
from fallline.study.trial import Record

LINE_SECONDS = 1.0


class _Tally:
    """What has been finished, and how long the rest may take."""

    def start(self, total: Mapping[str, int]) -> None:
        self.total = sum(total.values())
        self.done = self.run = 0
        self.began = time.monotonic()

    def add(self, stored: bool) -> None:
        self.done += 1
        self.run += not stored

    @property
    def left(self) -> str:
        """Time left in words, from the pace of the trials that really ran."""
        if not self.run or self.done == self.total:
            return ""
        seconds = (time.monotonic() - self.began) / self.run * (self.total - self.done)
        return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"


class Lines:
    """A line on standard error for a finished trial, at most one a second."""

    def start(self, total: Mapping[str, int]) -> None:
        """Say what is planned."""
        self._tally = _Tally()
        self._tally.start(total)
        self._last = -LINE_SECONDS
        print(f"{self._tally.total} trials of {len(total)} methods", file=sys.stderr)

    def finished(self, record: Record, stored: bool) -> None:
        """Say what a trial gave."""
        tally = self._tally
        tally.add(stored)
        if time.monotonic() - self._last >= LINE_SECONDS or tally.done == tally.total:
            self._last = time.monotonic()
            outcome = f"{record.metric} {short(record.value)}" if record.status == "finished" else record.status
            said = f"{record.method} ({setting_text(dict(record.hyperparameters))}): {outcome}"
            print("  ".join(filter(None, (f"{tally.done}/{tally.total}", said, tally.left))), file=sys.stderr)

    def say(self, text: str) -> None:
        """A line of its own."""
        print(text, file=sys.stderr)

    def stop(self) -> None:
        """Nothing to close."""


class Live:
    """A bar for every method with its best value so far, and the time left."""

    def start(self, total: Mapping[str, int]) -> None:
        """Open the table."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._tally = _Tally()
        self._tally.start(total)
        name, said = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[said]}"))
        columns = (name, BarColumn(), MofNCompleteColumn(), said)
        self._bars = Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, Any] = {n: self._bars.add_task(n, total=count, said="") for n, count in total.items()}
        self._all = self._bars.add_task("all", total=self._tally.total, said="")
        self._best: dict[str, float] = {}
        self._bad: dict[str, int] = dict.fromkeys(total, 0)
        self._bars.start()

    def finished(self, record: Record, stored: bool) -> None:
        """Move the bars."""
        name = record.method
        self._tally.add(stored)
        if record.status == "finished":
            self._best[name] = min(record.value, self._best.get(name, record.value))
        elif record.status != "pruned":
            self._bad[name] += 1
        said = [f"best {record.metric} {short(self._best[name])}"] if name in self._best else []
        said += [f"{self._bad[name]} divergent or failed"] if self._bad[name] else []
        self._bars.update(self._tasks[name], advance=1, said=", ".join(said))
        self._bars.update(self._all, advance=1, said=self._tally.left)

    def say(self, text: str) -> None:
        """A line above the table."""
        from rich.text import Text

        self._bars.console.print(Text(text))

    def stop(self) -> None:
        """Leave the last state on the screen."""
        self._bars.stop()


def watcher_for(progress: bool | None) -> Watcher | None:
    """Live if asked for or in a terminal, lines if not, nothing if refused."""
    if progress is False:
        return None
    return Live() if progress or sys.stderr.isatty() else Lines()
