"""Jobs on a Ray cluster.

A process of its own, the driver, talks to Ray: what Ray prints, how it handles signals, and its end when a cluster is lost stay away
from the process that keeps the records. Jobs and outcomes pass through the driver as bytes.

What a job needs travels with it when it is defined in the calling script or comes from a user's problem file; everything that is
imported, fallline first, must be installed on the cluster.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Generic

from fallline.study.executors import ATTEMPTS, Assignment, Job, Lost, Out, one_slot
from fallline.study.processes import end_group, end_with_parent, stand_apart
from fallline.study.sources import StudyError

LOCAL = "local"
CONNECT_SECONDS, KNOCK_SECONDS, CLOSE_SECONDS = 60.0, 5.0, 10.0
SURROUNDINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about it
}


class Cluster(Generic[Job, Out]):
    """Jobs on the machines of a Ray cluster, with one torch thread a process; Ray reserves a processor for every process of a job.

    Parameters
    ----------
    work
        A function of a module, applied to every job; jobs and outcomes are pickled, also by value.
    address
        ``ray://host:10001``, ``host:6379`` on a machine of the cluster, ``auto`` for the cluster that this machine belongs to, or
        ``local`` for a Ray on this machine, which ends with the executor. Where a cluster asks for a token, Ray takes it from the
        environment (``RAY_AUTH_MODE=token``).
    size
        How many processors of one machine a job takes, all of the largest at most; one by default.
    cpus
        How many processors a local Ray takes; all of this machine by default.

    Raises
    ------
    StudyError
        When ray is not installed, or no cluster answers.
    """

    def __init__(
        self, work: Callable[[Job], Out], address: str, *, size: Callable[[Job], int] = one_slot, cpus: int | None = None
    ) -> None:
        self._pickle = _cloudpickle()
        self._size, self._address = size, address
        self._running: dict[int, Assignment[Job]] = {}
        self._numbers = 0
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = theirs, self._pickle.dumps(work), address, cpus
        self._driver = context.Process(target=_drive, args=arguments, daemon=True)
        self._driver.start()
        theirs.close()
        try:
            self._connect()
        except BaseException:
            end_group(self._driver)
            raise

    def _connect(self) -> None:
        try:
            answered = self._connection.poll(CONNECT_SECONDS)
            trouble = self._connection.recv() if answered else f"it has not answered within {CONNECT_SECONDS:g} seconds"
        except EOFError:
            trouble = "Ray ended while it was starting; its logs are under /tmp/ray"
        if trouble:
            raise StudyError(
                f"cluster {self._address!r} cannot be used: {trouble}; give the address of a Ray cluster that runs, such as "
                "ray://host:10001, or 'local' for a Ray on this machine"
            )

    def submit(self, job: Job) -> None:
        """Take a job; Ray starts it when its processors are free."""
        self._send(Assignment(job, self._size(job)))

    def _send(self, assignment: Assignment[Job]) -> None:
        try:
            packed = self._pickle.dumps(assignment.job)
        except Exception as error:  # whatever an object's pickling raises
            remedy = "define the problem in a file or a module"
            raise StudyError(f"this comparison cannot be sent to a cluster ({error}); {remedy}") from error
        self._numbers += 1
        self._running[self._numbers] = assignment
        try:
            self._connection.send((self._numbers, packed, assignment.size))
        except OSError:
            raise self._gone() from None

    def finished(self) -> tuple[Job, Out | Lost]:
        """Wait for the next job to end."""
        while True:
            try:
                number, outcome, death = self._connection.recv()
            except (EOFError, OSError):
                raise self._gone() from None
            assignment = self._running.pop(number)
            if not death:
                return assignment.job, pickle.loads(outcome)
            assignment.deaths += 1
            if assignment.deaths == ATTEMPTS:
                return assignment.job, Lost(
                    f"its worker process on the cluster ended {ATTEMPTS} times; memory may have run out there, or the machine was "
                    f"lost; Ray says: {death}"
                )
            self._send(assignment)

    def _gone(self) -> StudyError:
        return StudyError(f"cluster {self._address!r} was lost; start the same command again, and it goes on where it was")

    def close(self) -> None:
        """Cancel what runs, and end the Ray that was started here; a cluster goes on without us."""
        self._connection.close()
        self._driver.join(CLOSE_SECONDS)
        end_group(self._driver)


def _cloudpickle() -> ModuleType:
    try:
        from ray import cloudpickle
    except ImportError as error:
        raise StudyError("a cluster needs ray: pip install 'fallline[cluster]'") from error
    return cloudpickle


def _drive(connection: Connection, work: bytes, address: str, cpus: int | None) -> None:
    """The life of the driver; it ends when the other end of the pipe does, also when its parent is killed."""
    stand_apart()
    threading.Thread(target=end_with_parent, args=(CLOSE_SECONDS,), daemon=True).start()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.environ.update(SURROUNDINGS)
    if address == LOCAL:
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # its workers find what this process finds
    import ray

    try:
        _open(address, cpus)
    except Exception as error:  # Ray raises whatever it raises at an address that is no cluster's, or of another version
        connection.send(": ".join(_said(cause) for cause in (error, error.__cause__) if cause is not None))
        return
    connection.send("")
    try:
        _pass_on(connection, work)
    finally:
        ray.shutdown()


def _open(address: str, cpus: int | None) -> None:
    import ray

    if address == LOCAL:
        ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return
    if address != "auto":  # Ray itself asks for minutes when nobody is there
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
        except ValueError:
            raise ValueError("it is not host:port") from None
        except OSError as error:
            raise ConnectionError(f"nothing answers there ({error})") from None
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _pass_on(connection: Connection, work: bytes) -> None:
    """Give jobs to Ray as they come, and their outcomes back as they end, until the pipe ends."""
    import ray

    answering = threading.Lock()
    run = ray.remote(max_retries=0)(_run)  # Ray itself would try again without end when memory runs out
    running: dict[int, Any] = {}

    def answer(number: int, future: Any) -> None:
        outcome, death = _read(future)
        with answering:
            if running.pop(number, None) is not None:
                connection.send((number, outcome, death))

    while True:
        try:
            number, job, size = connection.recv()
        except (EOFError, OSError):
            break
        running[number] = reference = run.options(num_cpus=_processors(size)).remote(work, job)
        reference.future().add_done_callback(functools.partial(answer, number))
    with answering:
        left = list(running.values())
        running.clear()
    for reference in left:
        ray.cancel(reference, force=True)


def _processors(size: int) -> int:
    """As many as the largest machine has at most: Ray would wait for ever for more."""
    import ray

    if size == 1:
        return 1
    largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return max(1, min(size, int(largest)))


def _read(future: Any) -> tuple[bytes, str]:
    """A job's outcome, or how its worker died."""
    from ray.exceptions import RayError, RayTaskError

    try:
        return future.result(), ""
    except RayTaskError as error:  # the job was not even read: something is not installed there
        return pickle.dumps(Lost(f"the cluster could not read it; what it needs must be installed there\n{error}")), ""
    except RayError as error:
        return b"", _said(error)


def _said(error: BaseException) -> str:
    """The line that says what happened: the first, or the last of a traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback" in lines[0] else 0].rstrip(".")


def _run(work: bytes, job: bytes) -> bytes:
    """One job, in a process of Ray's."""
    if hasattr(signal, "pthread_sigmask"):  # Ray holds interrupts back, by which torch ends the processes of a worker that died
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    import torch
    from ray import cloudpickle

    torch.set_num_threads(1)
    try:
        outcome = cloudpickle.loads(work)(cloudpickle.loads(job))
    except Exception as error:  # the job is any code; its failure is its outcome
        outcome = Lost.to(error)
    return cloudpickle.dumps(outcome)
