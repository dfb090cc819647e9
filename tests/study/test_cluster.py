"""A real Ray on this machine: outcomes as in one process, whatever dies, and nothing of Ray's on the terminal."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from sides import ADAM, PROBLEM, SGD

from fallline.study import StudyError, cluster, runs
from fallline.study.cluster import Cluster
from fallline.study.executors import Lost, Serial
from fallline.study.sources import problem_spec

SCRIPT = Path(__file__).with_name("interrupted_jobs.py")
on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc, to see which processes live")


@pytest.fixture(scope="module")
def local() -> Iterator[Cluster[jobs.Job, Any]]:
    pytest.importorskip("ray", reason="needs ray: pip install 'fallline[cluster]'")
    executor = Cluster(jobs.work, "local", size=jobs.size, cpus=2)
    yield executor
    executor.close()


def test_outcomes_are_those_of_one_process(local: Cluster[jobs.Job, Any]) -> None:
    given = [("square", x) for x in range(5)] + [("nothing",)]
    assert jobs.outcomes(local, *given) == jobs.outcomes(Serial(jobs.work), *given)
    assert jobs.outcomes(local, ("threads",)) == [1]


def test_what_a_job_raises_is_its_outcome(local: Cluster[jobs.Job, Any]) -> None:
    raised, unreadable, other = jobs.outcomes(local, ("raising", ValueError, "out of luck"), ("square", Absent()), ("square", 3.0))
    assert isinstance(raised, Lost) and "ValueError: out of luck" in raised.reason and "jobs.py" in raised.reason
    assert isinstance(unreadable, Lost) and "No module named 'not_installed_there'" in unreadable.reason
    assert other == 9.0


class Absent:
    """Something that needs a module which the cluster does not have."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("not_installed_there",)


def test_what_a_test_or_script_defines_itself_travels(local: Cluster[jobs.Job, Any]) -> None:
    class Five:
        def __float__(self) -> float:
            return 5.0

    assert jobs.outcomes(local, ("square", Five())) == [25.0]


def test_a_job_of_several_processes_runs_also_where_there_are_fewer_processors(local: Cluster[jobs.Job, Any]) -> None:
    assert jobs.outcomes(local, ("gloo", 2.0), ("crowd", 0.0))[0] == [5.0, 5.0]


def test_a_job_whose_worker_dies_is_given_to_another_once_and_ray_is_quiet(
    local: Cluster[jobs.Job, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    died, lost, other = jobs.outcomes(local, ("dying", str(tmp_path / "flag")), ("leaving", 9), ("square", 5.0))
    assert died == "done" and other == 25.0
    assert isinstance(lost, Lost) and "on the cluster ended 2 times" in lost.reason and "memory" in lost.reason
    assert capfd.readouterr() == ("", "")


@on_linux
def test_what_a_job_started_ends_with_its_worker(local: Cluster[jobs.Job, Any], tmp_path: Path) -> None:
    file = tmp_path / "pids"
    local.submit(("gloo_noting_once", str(file)))
    pids = jobs.noted(file, 2)
    os.kill(jobs.parent(pids[0]), signal.SIGKILL)
    assert not jobs.alive(pids)
    assert local.finished()[1] == "done"


def test_an_interrupt_reaches_who_waits(local: Cluster[jobs.Job, Any]) -> None:
    local.submit(("lone", 1.0))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        local.finished()
    assert local.finished()[0] == ("lone", 1.0)


def test_a_comparison_on_a_cluster_needs_no_file_there_and_leaves_it_running(
    local: Cluster[jobs.Job, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # a Ray on this machine asks for the token in the user's home
    (address,) = jobs.outcomes(local, ("ray_address",))
    file = Path(shutil.copy(PROBLEM, tmp_path / "gone.py"))
    spec = problem_spec(file)
    file.unlink()
    here, there = (runs(spec, [SGD, ADAM], tune=5, seeds=2, cluster=place) for place in (None, address))
    assert {record.status for record in there.records} == {"finished"}
    assert [(r.id, r.value, r.curve["value"]) for r in here.records] == [(r.id, r.value, r.curve["value"]) for r in there.records]
    assert jobs.outcomes(local, ("square", 3.0)) == [9.0]


@on_linux
def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install 'fallline[cluster]'")
    file = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, str(SCRIPT), "cluster", f"noting,{file}", f"noting,{file}", f"noting,{file}"])
    pids = jobs.noted(file, 2)
    started = [*pids, *(jobs.parent(pid) for pid in pids), *jobs.workers(parent.pid)]
    parent.kill()
    assert len(set(started)) == 4 and not jobs.alive(started)
    assert len(jobs.noted(file, 2)) == 2, "the job that waited never started"
    parent.wait()


def test_an_address_where_nothing_answers_is_named() -> None:
    pytest.importorskip("ray", reason="needs ray: pip install 'fallline[cluster]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(StudyError, match=f"cluster '127.0.0.1:{port}' cannot be used: nothing answers there.*refused.*'local'"):
        Cluster(jobs.work, f"127.0.0.1:{port}")


def test_an_address_that_answers_as_no_cluster_does_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install 'fallline[cluster]'")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StudyError, match=rf"127\.0\.0\.1:{port}.*has not answered within 4 seconds"):
            Cluster(jobs.work, f"127.0.0.1:{port}")


def test_a_missing_ray_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"pip install 'fallline\[cluster\]'"):
        Cluster(jobs.work, "local")
