"""A chain x_s = Φ(x_{s−1}) evaluated at many of its points at once.

Whoever guesses the points of a chain (by extrapolation, a surrogate, or the sweep before) can evaluate Φ at all of them beside each
other, and count one sequential iteration for it. Here is the part that such methods share: a map at many points, under an executor.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

Executor = Literal["serial", "threads", "processes"]
EXECUTORS = ("serial", "threads", "processes")


class ParallelMap:
    """``parallel(function, points)`` is ``[function(point) for point in points]``, the points beside each other.

    Parameters
    ----------
    executor : {"serial", "threads", "processes"}, default "serial"
        Processes are forked, with one torch thread each, at the first call, and serve later calls of an equal function; another
        function starts new ones. So the function need not be picklable, and what it changes stays in its process; points and values
        are sent. An exception reaches the caller whatever the executor.
    workers : int, default 1
        How many run beside each other.

    Raises
    ------
    ValueError
        An unknown executor; processes where they cannot be forked, or beside an accelerator, which torch's autograd forbids.

    Notes
    -----
    ``close()``, the end of a ``with`` block, the object's collection or the program's end ends the workers. A copy has its own.
    """

    def __init__(self, executor: Executor = "serial", workers: int = 1) -> None:
        check_executor(executor)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be a whole number of at least 1, got {workers!r}")
        self.executor, self.workers = executor, workers
        self._function: Callable[[Any], Any] | None = None
        self._processes: list[tuple[Any, Connection]] = []
        self._end: Callable[[], Any] = lambda: None

    def __call__(self, function: Callable[[Any], Any], points: Sequence[Any]) -> list[Any]:
        if self.executor == "serial" or len(points) < 2:
            return [function(point) for point in points]
        if self.executor == "threads":
            with ThreadPoolExecutor(self.workers) as pool:
                return list(pool.map(function, points))
        if self._function is None or self._function != function:
            self.close()
            self._start(function)
        try:
            return self._served(points)
        except BaseException:  # what is still under way would be taken for the next call's
            self.close()
            raise

    def _start(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("fork")
        for _ in range(self.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(function, theirs, [ours, *(c for _, c in self._processes)]), daemon=True)
            process.start()
            theirs.close()
            self._processes.append((process, ours))
        self._function = function
        self._end = weakref.finalize(self, _end, os.getpid(), self._processes)

    def _served(self, points: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for first in range(0, len(points), self.workers):
            chunk = list(zip(points[first:first + self.workers], self._processes, strict=False))
            for point, (_, connection) in chunk:
                connection.send_bytes(pickle.dumps(point))
            found += [_received(process, connection) for _, (process, connection) in chunk]
        return found

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        self._end()
        self._function, self._processes, self._end = None, [], lambda: None

    def __enter__(self) -> ParallelMap:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> ParallelMap:
        return ParallelMap(self.executor, self.workers)


def check_executor(executor: str) -> None:
    """Refuse an executor that is unknown or cannot work here."""
    if not isinstance(executor, str) or executor not in EXECUTORS:
        raise ValueError(f"executor must be {', '.join(map(repr, EXECUTORS))}, got {executor!r}")
    if executor == "processes" and "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError("executor='processes' needs a system that forks processes; use 'threads'")
    if executor == "processes" and torch.accelerator.is_available():
        raise ValueError("executor='processes' forks, which torch's autograd forbids beside an accelerator; use 'threads'")


def _received(process: Any, connection: Connection) -> Any:
    try:
        succeeded, value = pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        process.join(1)
        raise RuntimeError(f"a worker process ended with exit code {process.exitcode}; memory may have run out") from None
    if succeeded:
        return value
    raise value


def _serve(function: Callable[[Any], Any], connection: Connection, others: list[Connection]) -> None:
    """The life of a worker, which ends with the last holder of its pipe's other end."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while True:
            connection.send_bytes(_outcome(function, connection.recv_bytes()))


def _outcome(function: Callable[[Any], Any], point: bytes) -> bytes:
    try:
        return pickle.dumps((True, function(pickle.loads(point))))
    except Exception as error:
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)
        except Exception:  # an exception that cannot be sent
            return pickle.dumps((False, RuntimeError("".join(traceback.format_exception(error)))))
        return answer


def _end(owner: int, processes: list[tuple[Any, Connection]]) -> None:
    if os.getpid() != owner:  # a worker of another map, collecting its copy of this one
        return
    for process, connection in processes:
        connection.close()
        process.terminate()
    for process, _ in processes:
        process.join()
