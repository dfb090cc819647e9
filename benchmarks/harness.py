"""How the benchmarks measure, and their command line.

In one process, every contestant races the reference alone: they take their turns one after the other, so that a disturbance hits both
of a pair, and what is told is the median and the quartiles of the pairs' ratios. The reference also races another one of itself,
which shows how much of a ratio is noise or luck. What happens once in a process (imports, compilation) is measured in fresh ones.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from figures import Benchmark, Goal, Row, Table
from torch.profiler import ProfilerActivity, profile

import fallline

WARM_UP, SET_UPS = 2, 4

Out = TypeVar("Out")
Pairs = Sequence[tuple[float, float]]
"""Seconds of the reference and of the contestant, a pair a repeat."""


class Missing(Exception):
    """A contestant cannot race, and why."""


@dataclass(frozen=True)
class Operation:
    """A call that is timed, and one before it that is not."""

    call: Callable[[], object]
    before: Callable[[], object] = lambda: None

    def seconds(self) -> float:
        """The time of one call."""
        self.before()
        start = time.perf_counter()
        self.call()
        return time.perf_counter() - start


@dataclass(frozen=True)
class Contestant:
    """A name, and how its operation is set up."""

    name: str
    set_up: Callable[[], Operation]


@dataclass(frozen=True)
class Options:
    """The options of every benchmark."""

    repeats: int = 15
    threads: int = 2
    only: tuple[str, ...] = ()
    quick: bool = False

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The names that contain one of the words of ``only``; all where there are none."""
        return [name for name in names if not self.only or any(word in name for word in self.only)]


def peer(module: str, name: str) -> Any:
    """A class of another library; the extra ``peers`` installs them."""
    kept = torch.get_default_dtype()  # some libraries set another one when they are imported
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs any code, and each library breaks in its own way
        reason = (str(error).splitlines() or [""])[0]
        raise Missing(f"{module}.{name} cannot be imported: {type(error).__name__}: {reason}") from error
    finally:
        torch.set_default_dtype(kept)


def paired(reference: Contestant, contestant: Contestant, repeats: int) -> Pairs:
    """Let the two take turns, each pair of turns a repeat, over several set-ups; the first turns of a set-up are not told.

    Of two equal contestants one may be faster by some percent for as long as both live, whoever takes the first turn: it depends on
    how their memory came to lie. So the repeats are shared among set-ups, and every other one has the contestant first, in setting
    up and in every turn.
    """
    shares = [len(range(k, repeats, SET_UPS)) for k in range(min(SET_UPS, repeats))]
    return [pair for k, share in enumerate(shares) for pair in _turns(reference, contestant, share, contestant_first=k % 2 == 1)]


def _turns(reference: Contestant, contestant: Contestant, repeats: int, contestant_first: bool) -> Pairs:
    order = (contestant, reference) if contestant_first else (reference, contestant)
    first, second = (entrant.set_up() for entrant in order)
    pairs = [(first.seconds(), second.seconds()) for _ in range(WARM_UP + repeats)][WARM_UP:]
    return [(theirs, ours) for ours, theirs in pairs] if contestant_first else pairs


def peak_bytes(contestant: Contestant) -> int:
    """The most bytes that tensors held at once during two calls, beyond what they held before the first.

    Counted by torch's profiler where its CPU allocator gives and takes memory, so it is exact and the same in every run: what the
    first call keeps (an optimizer's state) and what a call needs for a while. What a library allocates outside torch is not seen, nor
    is the memory of the compiler.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its start and stop would be printed
    operation = contestant.set_up()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        for _ in range(2):
            operation.before()
            operation.call()
    held = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def fresh(function: Callable[..., Out], *arguments: object, environment: Mapping[str, str] | None = None) -> Out:
    """What a function of a module gives in a new process, with further environment variables."""
    with ProcessPoolExecutor(1, get_context("spawn"), _enter, (dict(environment or {}),)) as pool:
        return pool.submit(function, *arguments).result()


def _enter(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def race(
    title: str,
    reference: Contestant,
    contestants: Iterable[Contestant],
    options: Options,
    *,
    memory: bool = False,
    further: Callable[[str, Pairs], Mapping[str, float | None]] = lambda name, pairs: {},
    goals: Sequence[Goal] = (),
) -> list[Table]:
    """One table, or none where ``only`` leaves no contestant.

    Parameters
    ----------
    memory
        Whether `peak_bytes` is measured.
    further
        The further figures of a row, from the contestant's name and the seconds of its pairs.
    """
    named = {contestant.name: contestant for contestant in contestants}
    racing = [named[name] for name in options.chosen(named)]
    if not racing:
        return []
    print(f"{title}, as a ratio to {reference.name}")
    rows = [_row(reference, contestant, options, memory, further) for contestant in [reference, *racing]]
    return [Table(title, reference.name, tuple(rows), tuple(goals))]


def _row(reference: Contestant, contestant: Contestant, options: Options, memory: bool, further: Any) -> Row:
    try:
        pairs = paired(reference, contestant, options.repeats)
        peak = peak_bytes(contestant) if memory else None
        row = measured(contestant.name, pairs, peak, further(contestant.name, pairs))
    except Missing as reason:
        row = Row(contestant.name, missing=str(reason))
    tell(row)
    return row


def measured(name: str, pairs: Pairs, peak: int | None = None, figures: Mapping[str, float | None] | None = None) -> Row:
    """A row from the seconds of its pairs."""
    ratios = tuple(float(f"{ours / theirs:.5g}") for theirs, ours in pairs)
    return Row(name, ratios, 1e3 * statistics.median(ours for _, ours in pairs), peak, figures or {})


def tell(row: Row) -> None:
    """Print a row."""
    parts = [f"missing: {row.missing}"] if row.missing else []
    if row.ratio:
        parts.append(f"{row.ratio.median:6.3f} x ({row.ratio.lower:.3f} to {row.ratio.upper:.3f})")
    if row.milliseconds is not None:
        parts.append(f"{row.milliseconds:9.3f} ms")
    if row.peak_bytes is not None:
        parts.append(f"{row.peak_bytes / 2**20:7.1f} MiB")
    parts += [f"{name} {value:.3g}" for name, value in row.figures.items() if value is not None]
    print(f"  {row.name:36} {'   '.join(parts)}", flush=True)


def tell_all(table: Table) -> None:
    """Print a table."""
    print(table.title)
    for row in table.rows:
        tell(row)


def machine() -> dict[str, Any]:
    """Where figures come from."""
    described: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "memory_bytes": None}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        described["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {"torch": torch.__version__, "python": platform.python_version(), "fallline": fallline.__version__}
    return {**described, "system": f"{platform.system()} {platform.machine()}", **versions, "date": f"{datetime.now(UTC):%Y-%m-%d}"}


@dataclass(frozen=True)
class Moment:
    """Seconds so far: on the clock, of all cores at work, None where the system hides it, and of this process and its children."""

    clock: float
    busy: float | None
    own: float

    def others_percent(self, end: Moment) -> float | None:
        """How much of all cores' time other processes took from this moment to the end, in percent."""
        if self.busy is None or end.busy is None:
            return None
        others = end.busy - self.busy - (end.own - self.own)
        return round(100 * max(others, 0.0) / ((end.clock - self.clock) * (os.cpu_count() or 1)), 1)


def now() -> Moment:
    """This moment."""
    used, stat = os.times(), Path("/proc/stat")
    busy = None
    if stat.exists():
        user, nice, system, _, _, interrupts, soft, stolen = map(int, stat.read_text().split()[1:9])
        busy = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return Moment(time.perf_counter(), busy, used.user + used.system + used.children_user + used.children_system)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def options_of(description: str, arguments: Sequence[str] | None = None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="how often each pair is measured")
    parser.add_argument("--threads", type=int, default=Options.threads, help="torch's threads")
    parser.add_argument("--only", default="", help="comma-separated words; contestants that contain none of them are left out")
    parser.add_argument("--quick", action="store_true", help="small and short, to see whether it runs; the figures mean nothing")
    given = parser.parse_args(arguments)
    return Options(given.repeats, given.threads, tuple(word for word in given.only.split(",") if word), given.quick)


def run(file: str, description: str, tables: Callable[[Options], list[Table]], libraries: Sequence[str] = ()) -> None:
    """The whole command: options, tables, and ``results/<name>.json`` where nothing was left out or made short."""
    options, start = options_of(description), now()
    torch.set_num_threads(options.threads)
    found = tables(options)
    if options.only or options.quick:
        print("not recorded: --only and --quick leave things out")
        return
    where = machine() | {"others_percent": start.others_percent(now())}
    versions = {library: _version(library) for library in libraries}
    print(Benchmark(Path(file).stem, description.strip(), where, versions, asdict(options), tuple(found)).write())
