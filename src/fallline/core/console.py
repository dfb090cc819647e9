"""What a run has to do with a terminal: Ctrl-C, and a progress bar."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end a run between two steps, where the state is whole; pressed twice, it interrupts at once."""
    pressed = False

    def press(signum: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    ours = threading.current_thread() is threading.main_thread() and \
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def progress_bar(wanted: bool, title: str, run: Any) -> Iterator[Callable[[], None]]:
    """Draw how much of the budget ``run`` has used, on standard error, whenever the yielded function is called."""
    if not wanted:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=1.0, figures="")

        def show() -> None:
            figures = f"step {run.step:,}" + "".join(f"  {name.replace('_', ' ')} {number:.4g}" for name, number in run.figures.items())
            bar.update(task, completed=run.budget.fraction(run.step, run.seconds, run.counts), figures=figures)

        yield show
