"""Executors: where jobs run. Two here, one process after the other or several beside each other; a cluster can be a third.

An executor takes jobs with ``submit`` and gives ``(job, outcome)`` with ``finished``, in whichever order they end. A
worker that dies loses the one job it had, which is given to a fresh worker once more; dying twice, the job's outcome is `Lost`.
"""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from fallline.study.sources import StudyError

Job = TypeVar("Job")
Out = TypeVar("Out", covariant=True)
ATTEMPTS = 2


@dataclass(frozen=True)
class Lost:
    """The outcome of a job that has none, and why."""

    reason: str


class Executor(Protocol[Job, Out]):
    """What `runs` asks of a place where trials run."""

    def submit(self, job: Job) -> None:
        """Take a job; it may start at once or wait."""

    def finished(self) -> tuple[Job, Out | Lost]:
        """Wait for the next job to end, and give it with its outcome."""

    def close(self) -> None:
        """End all workers; jobs that have not ended are dropped."""


class Serial(Generic[Job, Out]):
    """Jobs one after the other, in this process."""

    def __init__(self, work: Callable[[Job], Out]) -> None:
        self._work = work
        self._waiting: collections.deque[Job] = collections.deque()

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._waiting.append(job)

    def finished(self) -> tuple[Job, Out | Lost]:
        """Run the next job."""
        job = self._waiting.popleft()
        return job, self._work(job)

    def close(self) -> None:
        """Drop the jobs that wait."""
        self._waiting.clear()


@dataclass
class _Worker:
    process: Any
    connection: Connection
    job: Any = None
    busy: bool = False


class Processes(Generic[Job, Out]):
    """Jobs in processes of their own, with one torch thread each.

    Parameters
    ----------
    work
        A function of a module, applied to every job; jobs and outcomes are pickled.
    workers
        How many processes, at least 1.
    pin
        Whether every process is bound to a core of its own, where the system can; for jobs that are timed.
    """

    def __init__(self, work: Callable[[Job], Out], workers: int, *, pin: bool = False) -> None:
        if workers < 1:
            raise StudyError(f"workers must be at least 1, got {workers}; use 1 to run in this process")
        self._work, self._pin = work, pin
        self._context = multiprocessing.get_context("spawn")
        self._waiting: collections.deque[Job] = collections.deque()
        self._workers: list[_Worker | None] = [None] * workers
        self._deaths: collections.Counter[int] = collections.Counter()

    def submit(self, job: Job) -> None:
        """Take a job; an idle worker gets it at once."""
        self._waiting.append(job)
        self._hand_out()

    def finished(self) -> tuple[Job, Out | Lost]:
        """Wait for the next job to end."""
        while True:
            self._hand_out()
            busy = {w.connection: (i, w) for i, w in enumerate(self._workers) if w is not None and w.busy}
            for connection in wait(list(busy)):
                index, worker = busy[connection]  # type: ignore[index]
                job = worker.job
                try:
                    outcome = worker.connection.recv()
                except (EOFError, OSError):
                    if (lost := self._died(index, worker)) is None:
                        continue
                    return job, lost
                worker.busy, worker.job = False, None
                self._hand_out()
                return job, outcome

    def _died(self, index: int, worker: _Worker) -> Lost | None:
        worker.connection.close()
        worker.process.join()
        self._workers[index] = None
        self._deaths[id(worker.job)] += 1
        if self._deaths[id(worker.job)] < ATTEMPTS:
            self._waiting.appendleft(worker.job)
            return None
        return Lost(
            f"its worker process ended {ATTEMPTS} times with exit code {worker.process.exitcode}; memory may have run out, "
            "or the calling script lacks `if __name__ == '__main__':`"
        )

    def _hand_out(self) -> None:
        for index, worker in enumerate(self._workers):
            if not self._waiting:
                return
            if worker is None:
                worker = self._workers[index] = self._start(index)
            if not worker.busy:
                worker.job, worker.busy = self._waiting.popleft(), True
                self._send(worker)

    def _send(self, worker: _Worker) -> None:
        try:
            worker.connection.send(worker.job)
        except (BrokenPipeError, ConnectionResetError):
            return  # the worker is gone; finished() finds out and hands the job to another
        except Exception as error:  # pickle raises PicklingError, AttributeError, TypeError, whatever an object's hook raises
            raise StudyError(
                f"this comparison cannot be sent to a worker process ({error}); define the problem in a file or a "
                "module, or use workers=1"
            ) from error

    def _start(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work, index if self._pin else None), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def close(self) -> None:
        """End all workers at once."""
        for index, worker in enumerate(self._workers):
            if worker is not None:
                worker.connection.close()
                worker.process.terminate()
                worker.process.join()
                self._workers[index] = None
        self._waiting.clear()


def _serve(connection: Connection, work: Callable[[Any], Any], core: int | None) -> None:
    """The life of a worker: it ends when the other end of the pipe does, also when its parent is killed."""
    # A worker dies with its parent, yet its work may need processes of its own (a distributed method); daemons may not have any.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if core is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    while True:
        try:
            outcome = work(connection.recv())
        except EOFError:
            return
        except Exception as error:  # the job is any code; its failure is its outcome
            outcome = Lost("".join(traceback.format_exception(error)))
        try:
            connection.send(outcome)
        except BrokenPipeError:
            return
