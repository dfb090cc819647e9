"""Executors: where jobs run, one after the other here, beside each other in `processes`, on other machines in `cluster`.

An executor takes jobs with ``submit`` and gives ``(job, outcome)`` with ``finished``, in whichever order they end. A
worker that dies loses the one job it had, which is given to a fresh worker once more; dying twice, the job's outcome is `Lost`.

A job may need several slots, because it starts processes of its own: its executor keeps them free, the job fills them.
"""

from __future__ import annotations

import collections
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Job = TypeVar("Job")
Out = TypeVar("Out", covariant=True)
ATTEMPTS = 2


@dataclass(frozen=True)
class Lost:
    """The outcome of a job that has none, and why."""

    reason: str

    @classmethod
    def to(cls, error: Exception) -> Lost:
        """The outcome of a job that raised."""
        return cls("".join(traceback.format_exception(error)))


@dataclass
class Assignment(Generic[Job]):
    """A job on its way through an executor: how many slots it takes, and how often it lost the worker that had it."""

    job: Job
    size: int
    deaths: int = 0


def one_slot(job: Any) -> int:
    """The size of a job that runs in one process."""
    return 1


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
