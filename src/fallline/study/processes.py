"""Jobs in processes on this machine.

A worker is the head of a process group of its own: whatever its job starts ends with it, and Ctrl-C reaches the parent alone, which
ends the workers. A worker whose parent dies, however that happens, ends at once, also in the middle of a job: a command that is
started again never runs beside what is left of the last one.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

from fallline.study.executors import ATTEMPTS, Assignment, Job, Lost, Out, one_slot
from fallline.study.sources import StudyError

POLL_SECONDS = 1.0
"""How often a process asks whether another lives, beside waiting for its pipe: a process that a job forked may hold the pipe open."""


@dataclass
class _Worker:
    """A process; while it works, what it has and the slots that are taken by it."""

    process: Any
    connection: Connection
    assignment: Assignment[Any] | None = None
    slots: list[int] = field(default_factory=list)


class Processes(Generic[Job, Out]):
    """Jobs in processes of their own, with one torch thread each, started in the order in which they were submitted.

    Parameters
    ----------
    work
        A function of a module, applied to every job; jobs and outcomes are pickled.
    workers
        How many slots there are, at least 1.
    pin
        Whether every job is bound to as many cores as it has slots, where the system can; for jobs that are timed.
    size
        How many slots a job takes, all of them at most; one by default.
    """

    def __init__(
        self, work: Callable[[Job], Out], workers: int, *, pin: bool = False, size: Callable[[Job], int] = one_slot
    ) -> None:
        if workers < 1:
            raise StudyError(f"workers must be at least 1, got {workers}; use 1 to run in this process")
        self._work, self._size, self._slots = work, size, workers
        self._cores = sorted(os.sched_getaffinity(0)) if pin and hasattr(os, "sched_getaffinity") else []
        self._context = multiprocessing.get_context("spawn")
        self._waiting: collections.deque[Assignment[Job]] = collections.deque()
        self._workers: list[_Worker] = []

    def submit(self, job: Job) -> None:
        """Take a job; an idle worker gets it at once."""
        self._waiting.append(Assignment(job, min(self._size(job), self._slots)))
        self._hand_out()

    def finished(self) -> tuple[Job, Out | Lost]:
        """Wait for the next job to end."""
        while True:
            self._hand_out()
            for worker in self._ready():
                assignment = worker.assignment
                assert assignment is not None
                try:
                    if worker.connection.poll():
                        outcome = worker.connection.recv()
                        worker.assignment, worker.slots = None, []
                        self._hand_out()
                        return assignment.job, outcome
                except (EOFError, OSError):
                    pass  # the pipe broke before or within the outcome
                if (lost := self._died(worker, assignment)) is not None:
                    return assignment.job, lost

    def _ready(self) -> list[_Worker]:
        """Busy workers that have something to say, or died."""
        busy = [worker for worker in self._workers if worker.assignment is not None]
        while True:
            talking = wait([worker.connection for worker in busy], POLL_SECONDS)
            found = [worker for worker in busy if worker.connection in talking or not worker.process.is_alive()]
            if found:
                return found

    def _died(self, worker: _Worker, assignment: Assignment[Job]) -> Lost | None:
        self._end(worker)
        assignment.deaths += 1
        if assignment.deaths < ATTEMPTS:
            self._waiting.appendleft(assignment)
            return None
        return Lost(
            f"its worker process ended {ATTEMPTS} times with exit code {worker.process.exitcode}; memory may have run out, "
            "or the calling script lacks `if __name__ == '__main__':`"
        )

    def _hand_out(self) -> None:
        """Start the jobs that come next, while the first of them finds its slots free."""
        for worker in [worker for worker in self._workers if worker.assignment is None and not worker.process.is_alive()]:
            self._end(worker)
        while self._waiting:
            taken = {slot for worker in self._workers for slot in worker.slots}
            free = [slot for slot in range(self._slots) if slot not in taken]
            if len(free) < self._waiting[0].size:
                return
            worker = next((worker for worker in self._workers if worker.assignment is None), None) or self._started()
            worker.assignment = self._waiting.popleft()
            worker.slots = free[: worker.assignment.size]
            self._send(worker)

    def _send(self, worker: _Worker) -> None:
        assert worker.assignment is not None
        cores = {self._cores[slot % len(self._cores)] for slot in worker.slots} if self._cores else None
        try:
            worker.connection.send((worker.assignment.job, cores))
        except (BrokenPipeError, ConnectionResetError):
            return  # the worker is gone; finished() finds out and hands the job to another
        except Exception as error:  # pickle raises PicklingError, AttributeError, TypeError, whatever an object's hook raises
            raise StudyError(
                f"this comparison cannot be sent to a worker process ({error}); define the problem in a file or a "
                "module, or use workers=1"
            ) from error

    def _started(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        worker = _Worker(process, ours)
        process.start()
        self._workers.append(worker)
        theirs.close()
        return worker

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        end_group(worker.process)

    def close(self) -> None:
        """End all workers at once."""
        self._waiting.clear()
        for worker in list(self._workers):
            self._end(worker)


def end_group(process: Any) -> None:
    """End a process that stands apart, and whatever it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it may not have come as far as making its group
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a worker."""
    stand_apart()
    threading.Thread(target=end_with_parent, daemon=True).start()
    # A worker dies with its parent, yet its work may need processes of its own (a distributed method); daemons may not have any.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        outcome = _outcome(work, request)
        try:
            connection.send(outcome)
        except OSError:
            return
        except Exception as error:  # whatever pickle raises at an outcome
            connection.send(Lost.to(error))


def stand_apart() -> None:
    """Leave the group that Ctrl-C reaches. Interrupts are not ignored: by one, torch ends processes whose parent died."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_parent(grace: float = 0.0) -> None:
    """Wait for the parent to die, then end this process and all that it started, at the latest so many seconds later."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while not wait([parent.sentinel], POLL_SECONDS) and os.getppid() == parent.pid:
        pass
    time.sleep(grace)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _outcome(work: Callable[[Any], Any], request: bytes) -> Any:
    try:
        job, cores = pickle.loads(request)
        if cores is not None:
            os.sched_setaffinity(0, cores)
        return work(job)
    except Exception as error:  # the job is any code; its failure is its outcome
        return Lost.to(error)
