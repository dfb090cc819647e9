"""A comparison whose processes are killed at random moments loses nothing and runs nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import logged_run
import pytest

from fallline.study import runs

KILLS, PARENTS, SEEDS = 20, 3, 3
PAUSE = 0.03
Stored = dict[str, tuple[Any, ...]]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc, to find the worker processes")
def test_twenty_kills_lose_nothing_and_run_nothing_twice(tmp_path: Path) -> None:
    run = KilledRun(tmp_path)
    victims = ["parent"] * PARENTS + ["worker"] * (KILLS - PARENTS)
    run.chance.shuffle(victims)
    try:
        for victim in victims:
            run.kill(victim)
        run.finish()
    finally:
        run.process.kill()
        run.process.wait()

    calm = runs(logged_run.problem, logged_run.SIDES, tune=logged_run.TUNE, seeds=run.seeds)
    expected = json.loads(json.dumps(logged_run.outcomes(calm)))
    assert run.outcomes == expected
    planned = [entry[0] for _, found in expected for entry in found]
    assert len(planned) == len(set(planned)) == 2 * (logged_run.TUNE + run.seeds)
    # A trial whose worker was killed twice is an error, and the settings asked for after it may be others than in a calm run.
    assert run.kept.keys() >= set(planned) and (run.errors or len(run.kept) == len(planned))


class KilledRun:
    """One command, started again whenever it was killed."""

    def __init__(self, folder: Path) -> None:
        self.storage, self.log, self.out = (folder / name for name in ("trials.sqlite", "log", "out"))
        self.chance, self.seeds = random.Random(0), SEEDS
        self.kept: Stored = {}
        self.errors: set[str] = set()
        self.outcomes: Any = None
        self.log.touch()
        self.start()

    def start(self, workers: int = 2, pause: float = PAUSE) -> None:
        """Start the command; what is finished must not run again."""
        self.check()
        self.begun_with = {row[1:4] for row in self.kept.values()}
        self.lines = self.started()
        command = [sys.executable, logged_run.__file__, str(self.storage), str(self.out), str(self.seeds), str(workers)]
        environment = os.environ | {"TRIALS_LOG": str(self.log), "TRIALS_PAUSE": str(pause)}
        self.process = subprocess.Popen(command, env=environment)

    def kill(self, victim: str) -> None:
        """Wait for a moment that may fall anywhere in a trial or in the start of a process, then kill."""
        wanted = self.started() + self.chance.choice([0, 1, 1])
        while self.started() < wanted or (victim == "worker" and not jobs.workers(self.process.pid)):
            if self.process.poll() is not None:  # finished before all kills were made: there shall be more to do
                self.finish()
                self.seeds += 2
                self.start()
            time.sleep(0.01)
        time.sleep(self.chance.uniform(0, PAUSE * logged_run.STEPS))
        before, workers = finished(self.stored()), jobs.workers(self.process.pid)
        if victim == "worker":
            os.kill(self.chance.choice(workers), signal.SIGKILL)
        else:
            self.process.kill()
            self.process.wait()
            assert not jobs.alive(workers)
        assert before.items() <= self.stored().items()
        if victim == "parent":
            self.start()

    def finish(self) -> None:
        """Wait for the end, again and again while a trial lost two workers."""
        while True:
            assert self.process.wait(120) == 0
            self.check()
            errors, self.outcomes = json.loads(self.out.read_text())
            if not errors:
                return
            self.start(workers=1, pause=0.0)

    def started(self) -> int:
        """How many trials have started."""
        return self.log.read_bytes().count(b"\n")

    def check(self) -> None:
        """What was finished once is there as it was, and none of it has been started since the last start."""
        now = self.stored()
        done = finished(now)
        assert self.kept.items() <= done.items()
        self.errors |= now.keys() - done.keys()
        if self.kept:
            lines = self.log.read_text().splitlines()[self.lines :]
            assert not self.begun_with & {tuple(json.loads(line)) for line in lines}
        self.kept = done

    def stored(self) -> Stored:
        """Every stored trial by its id: the time of writing, momentum, learning rate, seed, status, and the whole text."""
        if not self.storage.exists():
            return {}
        with sqlite3.connect(self.storage, timeout=30) as connection:
            try:
                rows = connection.execute("select id, written, status, record, curve from fallline_records").fetchall()
            except sqlite3.OperationalError:  # killed before it had made the table
                return {}
        texts = {id: (written, status, json.loads(record), record, curve) for id, written, status, record, curve in rows}
        assert len(texts) == len(rows)
        return {
            id: (written, said["hyperparameters"]["momentum"], said["hyperparameters"]["lr"], said["seed"], status, record, curve)
            for id, (written, status, said, record, curve) in texts.items()
        }


def finished(stored: Stored) -> Stored:
    """The stored trials that need not run again."""
    return {id: row for id, row in stored.items() if row[4] != "error"}
