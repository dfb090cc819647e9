"""A map at many points: the same under every executor, workers that stay, errors that come through."""

import copy
import os
import signal
import time

import pytest
import torch

from fallline.core.fixed_point import ParallelMap

EXECUTORS = ["serial", "threads", "processes"]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("workers, count", [(1, 3), (2, 5), (4, 4), (4, 1), (3, 0)])
def test_values_in_the_order_of_the_points(executor, workers, count):
    shift = torch.ones(3)
    function = lambda point: (point["x"] * 2 + shift, {"sum": float(point["x"].sum())})  # no function of a module
    points = [{"x": torch.full((3,), float(i))} for i in range(count)]
    with ParallelMap(executor, workers) as parallel:
        for _ in range(2):
            for i, (x, figures) in enumerate(parallel(function, points)):
                assert torch.equal(x, torch.full((3,), 2.0 * i + 1)) and figures == {"sum": 3.0 * i}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_gradients_can_be_taken_inside(executor):
    def slope(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad((x**3).sum(), x)[0]

    slope(torch.ones(2))
    with ParallelMap(executor, 2) as parallel:
        first, second = parallel(slope, [torch.ones(2), torch.full((2,), 2.0)])
    assert torch.equal(first, torch.full((2,), 3.0)) and torch.equal(second, torch.full((2,), 12.0))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_exception_reaches_the_caller_and_the_map_goes_on(executor):
    class Local(Exception):  # cannot be pickled
        pass

    def fragile(x):
        if x == 2:
            raise ZeroDivisionError("two")
        if x == 3:
            raise Local("three")
        return x

    with ParallelMap(executor, 2) as parallel:
        with pytest.raises(ZeroDivisionError, match="two"):
            parallel(fragile, [1, 2, 4])
        with pytest.raises(Exception, match="three"):
            parallel(fragile, [3, 1])
        assert parallel(fragile, [1, 4, 5]) == [1, 4, 5]


def test_processes_are_started_once_for_a_function_and_closed():
    own = lambda _: (time.sleep(0.01), os.getpid())[1]
    parallel = ParallelMap("processes", 2)
    first = parallel(own, [0, 1])
    assert len({*first, os.getpid()}) == 3 and parallel(own, [0, 1]) == first
    assert not {*parallel(lambda x: os.getpid(), [0, 1])} & {*first}
    processes = [process for process, _ in parallel._processes]
    parallel.close()
    assert not any(process.is_alive() for process in processes)
    parallel(own, [0, 1])
    processes = [process for process, _ in parallel._processes]
    del parallel
    assert not any(process.is_alive() for process in processes)


def test_what_a_function_changes_stays_in_its_process():
    seen = []
    with ParallelMap("processes", 2) as parallel:
        parallel(seen.append, [1, 2])
    assert seen == []


def test_a_worker_that_dies_is_reported():
    def end(x):
        if x:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    with ParallelMap("processes", 2) as parallel:
        with pytest.raises(RuntimeError, match="ended with exit code -9"):
            parallel(end, [0, 1])
        assert parallel(end, [0, 0]) == [0, 0]


def test_a_copy_has_workers_of_its_own():
    function = lambda _: os.getpid()
    with ParallelMap("processes", 2) as parallel:
        first = parallel(function, [0, 1])
        with copy.deepcopy(parallel) as other:
            assert not {*other(function, [0, 1])} & {*first}
        assert parallel(function, [0, 1]) == first


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="executor must be 'serial', 'threads', 'processes', got 'fork'"):
        ParallelMap("fork")
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1, got 0"):
        ParallelMap("threads", 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match="beside an accelerator"):
        ParallelMap("processes")
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="a system that forks"):
        ParallelMap("processes")
