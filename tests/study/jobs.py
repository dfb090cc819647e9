"""Jobs for the tests of executors; importable by worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from fallline.core.processes import run_gloo

Job = tuple[Any, ...]


def work(job: Job) -> Any:
    """Do what a job says: the name of a function here, and its arguments."""
    name, *arguments = job
    return globals()[name](*arguments)


def outcomes(executor: Any, *given: Job) -> list[Any]:
    """What the jobs gave, in the order in which they were submitted."""
    for job in given:
        executor.submit(job)
    found = {id(job): outcome for job, outcome in [executor.finished() for _ in given]}
    return [found[id(job)] for job in given]


def size(job: Job) -> int:
    """How many slots a job takes, by its name."""
    return {"pair": 2, "cores_of_pair": 2, "gloo": 2, "crowd": 9}.get(job[0], 1)


def square(x: float) -> float:
    return float(x) ** 2


def nothing() -> None:
    """A job whose outcome is None."""


def raising(kind: type[BaseException], text: str) -> None:
    raise kind(text)


def unpicklable() -> object:
    return threading.Lock()


def threads() -> int:
    return torch.get_num_threads()


def cores() -> set[int]:
    return os.sched_getaffinity(0)


cores_of_pair = cores


def lone(seconds: float) -> tuple[float, float]:
    """When the job began and when it ended, on the clock that all processes share."""
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


pair = crowd = lone


def dying(flag: str) -> str:
    """Killed at its first use."""
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def leaving(code: int) -> None:
    os._exit(code)


def dying_with_a_fork(file: str) -> None:
    """Killed, while a process that it forked goes on with all its pipes open."""
    if os.fork() == 0:
        noting(file)
    os.kill(os.getpid(), signal.SIGKILL)


def pid() -> int:
    return os.getpid()


def noting(file: str) -> None:
    """Append the process id to a file, then wait for ever."""
    with open(file, "a") as handle:
        handle.write(f"{os.getpid()}\n")
    while True:
        time.sleep(0.1)


def forking(file: str) -> None:
    """As `noting`, in two processes."""
    os.fork()
    noting(file)


def gloo(x: float) -> list[float]:
    return run_gloo(_summed, 2, x)


def gloo_noting(file: str) -> None:
    run_gloo(_waiting, 2, file)


def gloo_noting_once(file: str) -> str:
    if not Path(file).exists():
        gloo_noting(file)
    return "done"


def ray_address() -> str:
    import ray

    return ray.get_runtime_context().gcs_address


def _summed(rank: int, x: float) -> float:
    total = torch.tensor([x + rank])
    torch.distributed.all_reduce(total)
    return float(total)


def _waiting(rank: int, file: str) -> None:
    noting(file)


def noted(file: Path, count: int, seconds: float = 60.0) -> list[int]:
    """The process ids in a file, as soon as there are so many."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [int(line) for line in file.read_text().split()] if file.exists() else []
        if len(found) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{count} processes should have started")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers(pid: int) -> list[int]:
    """The processes that multiprocessing started for another."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if parent(int(entry.name)) == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return sorted(found)


def alive(pids: list[int], seconds: float = 30.0) -> list[int]:
    """Which of the processes are left when they have had some time to end."""
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _runs(pid: int) -> bool:
    """Whether a process is there, and not only as a zombie without threads."""
    try:
        ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not ended or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False
