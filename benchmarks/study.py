"""What a comparison costs around its trials

    python benchmarks/study.py

The machinery: ``runs`` gives trials to two worker processes of one thread each. A trial takes 100 steps, each of which burns 10 ms
of its core. A ratio is that of the wall-clock time from each worker's first finished trial to its last, to the seconds that the trials
in between report as their own; every repeat is a run of its own. So making problems, observing, sending and storing are overhead, and
so is a worker that waits. The same against the time that was burnt also holds what other processes took from the cores. What
comes before the first trials, mostly importing torch in the workers, is told apart.

The records: 10,000 copies of what a trial leaves, under names of their own, are written one by one into an SQLite file, and read
back by id from the file opened anew.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from figures import Goal, Row, Table
from harness import Operation, Options, measured, run, tell_all

import fallline as fl
from fallline.study import Contender, Database, Record, runs

WORKERS, TRIALS, STEPS, BURNT = 2, 12, 100, 0.01
RECORDS = 10_000
OVERHEAD, OVER_BURNT, START_UP = "overhead, % of the trials' own time", "overhead, % of the time burnt", "start of the workers, s"
MACHINERY_GOALS = (Goal("runs, 2 workers", OVERHEAD, 3.0, "trials are what a comparison is for"),)
RECORDS_GOALS = (Goal("read back", "seconds", 2.0, "a report is opened often"),)


class Burning(fl.Method):
    """A step burns a fixed time of its core and halves the point."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def init(self, problem: fl.Problem, key: fl.Key) -> dict[str, torch.Tensor]:
        return {"x": problem.x0.clone()}

    def step(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        return {"x": state["x"] / 2}

    def report(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> fl.Report:
        return fl.Report(state["x"], gap=state["x"].norm())


def bowl(seed: int) -> fl.Problem:
    """A problem that costs nothing to make or to observe."""
    return fl.Smooth(lambda x: (x * x).sum() / 2, torch.full((10,), 1.0 + seed), name="bowl")


class Clock:
    """A watcher that notes when trials end."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.ends: list[float] = []
        self.own: list[float] = []

    def start(self, total: Mapping[str, int]) -> None:
        """The door is passed; the workers start."""
        self.started = time.perf_counter()

    def finished(self, record: Record, stored: bool) -> None:
        """A trial ended."""
        self.ends.append(time.perf_counter())
        self.own.append(record.seconds)

    def say(self, text: str) -> None:
        """Something went wrong that the figures must not hide."""
        raise RuntimeError(text)

    def stop(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class Timed:
    """One run's times in seconds, summed over the workers: own and wall between each one's first and last finished trial."""

    own: float
    wall: float
    burnt: float
    start_up: float


def timed(trials: int, burnt: float) -> Timed:
    """Run the trials with the workers, who each finish one among the first and one among the last."""
    clock = Clock()
    burning = Contender("burning", factory=Burning, fixed={"seconds": burnt}, space={})
    runs(bowl, [burning], budget=fl.Budget(steps=STEPS), seeds=trials, workers=WORKERS, watcher=clock)
    wall = sum(clock.ends[-WORKERS:]) - sum(clock.ends[:WORKERS])
    own = clock.own[WORKERS:]
    start_up = statistics.mean(clock.ends[:WORKERS]) - clock.started - statistics.mean(clock.own[:WORKERS])
    return Timed(sum(own), wall, burnt * STEPS * len(own), start_up)


def machinery(options: Options) -> Table:
    """What `runs` costs beside the trials."""
    trials, burnt = (2 * WORKERS, BURNT / 20) if options.quick else (TRIALS, BURNT)
    found = [timed(trials, burnt) for _ in range(options.repeats)]
    figures = {
        OVERHEAD: statistics.median(100 * (one.wall / one.own - 1) for one in found),
        OVER_BURNT: statistics.median(100 * (one.wall / one.burnt - 1) for one in found),
        START_UP: statistics.median(one.start_up for one in found),
    }
    one = trials - WORKERS
    row = measured("runs, 2 workers", [(run.own / one, run.wall / one) for run in found], figures=figures)
    return Table("A trial of 1 s, two at a time", "the trial itself", (row,), MACHINERY_GOALS)


def left(count: int) -> list[Record]:
    """As many records, each as a trial leaves it."""
    record = runs(bowl, ["sgd"], budget=fl.Budget(steps=STEPS), tune=1, seeds=1).records[0]
    return [replace(record, id=f"{i:024x}", seed=i) for i in range(count)]


def records(options: Options) -> Table:
    """What finished trials cost to keep and to open."""
    kept = left(RECORDS // 50 if options.quick else RECORDS)
    ids = [record.id for record in kept]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'trials.sqlite'}"
        rows = (
            lasting("write", lambda: put_all(Database(url), kept), 1),
            lasting("read back", lambda: Database(url).get(ids), options.repeats),
        )
    return Table("10,000 recorded trials", None, rows, RECORDS_GOALS)


def put_all(database: Database, kept: list[Record]) -> None:
    """Keep them one by one, as they come."""
    for record in kept:
        database.put(record)


def lasting(name: str, call: Callable[[], object], repeats: int) -> Row:
    """A row without a reference."""
    seconds = statistics.median(Operation(call).seconds() for _ in range(repeats))
    return Row(name, milliseconds=1e3 * seconds, figures={"seconds": seconds})


def tables(options: Options) -> list[Table]:
    """Both tables."""
    made = {"machinery": machinery, "records": records}
    found = [made[name](options) for name in options.chosen(made)]
    for table in found:
        tell_all(table)
    return found


if __name__ == "__main__":
    run(__file__, __doc__, tables)
