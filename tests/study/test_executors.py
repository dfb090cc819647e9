"""Executors: every job comes back once, whatever dies, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest

from fallline.study import StudyError
from fallline.study.executors import Lost, Serial
from fallline.study.processes import Processes

SCRIPT = Path(__file__).with_name("interrupted_jobs.py")
on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc, to see which processes live")


@pytest.fixture(scope="module")
def two() -> Iterator[Processes[jobs.Job, Any]]:
    """Two slots, each with a core of its own."""
    executor = Processes(jobs.work, 2, pin=True, size=jobs.size)
    yield executor
    executor.close()


def test_outcomes_are_those_of_one_process(two: Processes[jobs.Job, Any]) -> None:
    given = [("square", x) for x in range(9)] + [("nothing",)]
    assert jobs.outcomes(two, *given) == jobs.outcomes(Serial(jobs.work), *given)


def test_what_a_job_raises_is_its_outcome(two: Processes[jobs.Job, Any]) -> None:
    given = [("raising", kind, "out of luck") for kind in (ValueError, EOFError, OSError)]
    found = jobs.outcomes(two, *given, ("unpicklable",), ("no_such_function",), ("square", 3.0))
    assert all(isinstance(lost, Lost) for lost in found[:-1]) and found[-1] == 9.0
    for (_, kind, _), lost in zip(given, found, strict=False):
        assert f"{kind.__name__}: out of luck" in lost.reason and "jobs.py" in lost.reason
    assert "pickle" in found[3].reason and "KeyError" in found[4].reason


def test_a_process_has_one_thread(two: Processes[jobs.Job, Any]) -> None:
    assert jobs.outcomes(two, ("threads",)) == [1]


def test_a_job_of_all_slots_or_more_runs_alone_and_none_overtakes_it(two: Processes[jobs.Job, Any]) -> None:
    jobs.outcomes(two, *[("square", 1.0)] * 4)
    names = ("lone", "pair", "lone", "lone", "crowd", "lone")
    times = jobs.outcomes(two, *[(name, 0.1) for name in names])
    for index, name in enumerate(names):
        if name != "lone":
            began, ended = times[index]
            assert all(end <= began for _, end in times[:index]) and all(begin >= ended for begin, _ in times[index + 1 :])
    assert times[2][0] < times[3][1] and times[3][0] < times[2][1], "two of one slot run beside each other"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores to bind jobs to")
def test_pinned_jobs_have_as_many_cores_as_slots(two: Processes[jobs.Job, Any]) -> None:
    single, double = jobs.outcomes(two, ("cores",), ("cores_of_pair",))
    assert len(single) == 1 and len(double) == 2


def test_a_job_whose_worker_dies_is_given_to_another_once(two: Processes[jobs.Job, Any], tmp_path: Path) -> None:
    died, lost, other = jobs.outcomes(two, ("dying", str(tmp_path / "flag")), ("leaving", 9), ("square", 5.0))
    assert died == "done" and other == 25.0
    assert isinstance(lost, Lost) and "2 times with exit code 9" in lost.reason and "memory" in lost.reason


def test_a_worker_that_dies_idle_costs_no_job_a_life(two: Processes[jobs.Job, Any], tmp_path: Path) -> None:
    pids = set(jobs.outcomes(two, *[("pid",)] * 4))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert not jobs.alive(list(pids))
    assert jobs.outcomes(two, ("dying", str(tmp_path / "flag")), ("square", 2.0)) == ["done", 4.0]


@on_linux
def test_a_death_is_seen_when_a_fork_holds_the_pipes_and_the_fork_ends(two: Processes[jobs.Job, Any], tmp_path: Path) -> None:
    (lost,) = jobs.outcomes(two, ("dying_with_a_fork", str(tmp_path / "pids")))
    assert isinstance(lost, Lost) and not jobs.alive(jobs.noted(tmp_path / "pids", 2))


@on_linux
def test_what_a_job_started_ends_with_its_worker_and_at_close(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    executor = Processes(jobs.work, 2, size=jobs.size)
    executor.submit(("gloo_noting", str(file)))
    executor.submit(("square", 2.0))
    assert executor.finished() == (("square", 2.0), 4.0)
    first = jobs.noted(file, 2)
    worker = jobs.parent(first[0])
    os.kill(worker, signal.SIGKILL)
    assert not jobs.alive([worker])
    executor.submit(("square", 3.0))
    assert executor.finished() == (("square", 3.0), 9.0)
    both = jobs.noted(file, 4)
    assert not jobs.alive(first) and jobs.alive(both, 0.0) == both[2:]
    executor.close()
    assert not jobs.alive(both)


@on_linux
def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, str(SCRIPT), "processes", f"gloo_noting,{file}", f"forking,{file}"])
    started = {*jobs.noted(file, 4), *jobs.workers(parent.pid)}
    parent.kill()
    assert len(started) == 5 and not jobs.alive(list(started))
    parent.wait()


@on_linux
@pytest.mark.parametrize("early", [True, False])
def test_an_interrupt_ends_everything_and_only_the_parent_speaks(early: bool, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    command = [sys.executable, str(SCRIPT), "processes", f"gloo_noting,{file}"]
    # A shell's background job ignores interrupts, and hands that on to what it starts.
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          preexec_fn=listening) as parent:
        assert parent.stdout and parent.stdout.readline() == "submitted\n"
        pids = [] if early else jobs.noted(file, 2)
        os.killpg(parent.pid, signal.SIGINT)
        _, said = parent.communicate(timeout=60)
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt")
    assert parent.returncode == -signal.SIGINT and not jobs.alive(pids)


def test_at_least_one_worker() -> None:
    with pytest.raises(StudyError, match=r"workers.*0"):
        Processes(jobs.work, 0)


def test_what_cannot_be_sent_is_refused(two: Processes[jobs.Job, Any]) -> None:
    mine = Processes(jobs.work, 1)
    with pytest.raises(StudyError, match="workers=1"):
        mine.submit((lambda: 1,))
    mine.close()
