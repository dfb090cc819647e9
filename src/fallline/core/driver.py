"""The driver: one loop for every method, started by ``solve``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fallline.core.budget import Budget
from fallline.core.console import deferred_interrupts, progress_bar
from fallline.core.keys import Key, as_key
from fallline.core.method import Method
from fallline.core.problem import Problem
from fallline.core.result import Result
from fallline.core.run import Moment, Run
from fallline.core.warning import warn

__all__ = ["DEFAULT_BUDGET", "Moment", "solve"]

DEFAULT_BUDGET = Budget(steps=1_000)


def solve(
    problem: Problem,
    method: Method,
    budget: Budget | None = None,
    *,
    tol: float | None = None,
    key: Key | int = 0,
    callback: Callable[[Moment], Any] | None = None,
    progress: bool = False,
    every: int = 1,
    trace: int = 1_000,
    observe_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    within: Problem | None = None,
    group: Any = None,
) -> Result:
    """Run a method on a problem until the budget, the tolerance, or something else ends it.

    Parameters
    ----------
    problem : Problem
    method : Method
    budget : Budget, optional
        By default the problem's own, or 1,000 steps.
    tol : float, optional
        Converged when the reported gap is at most this; a warning tells of a method that reports none.
    key : Key or int, default 0
        All of the run's randomness.
    callback : callable, optional
        Called with a ``Moment`` at every report; ends the run by returning True or raising StopIteration.
    progress : bool, default False
        Show a progress bar with the time left, on standard error.
    every : int, default 1
        Steps between reports; the tolerance and the callback see reports only.
    trace : int, default 1,000
        At most about this many rows are kept, evenly spread.
    observe_every : int, optional
        Steps between calls of ``problem.observe``, at the first report from then on, and at the end. The figures join the trace as
        ``observed_value`` and so on. Observing is free: not counted, not timed.
    checkpoint : path, optional
        Where to keep the run's state: every ``checkpoint_seconds``, at the end, and where a callback or report raises. A step that
        raises or is interrupted inside leaves the previous file as it is, for it may have spoiled the state it was given. If the
        file exists, the run goes on from there, exactly.
    checkpoint_seconds : float, default 60
        At most this much work, and the step under way, is lost to a kill or to a step that raises.
    within : Problem, optional
        Inside another method's step: the problem whose counts and budget this run shares. The outer run's seconds move only between
        its steps, so that its limit in seconds does not end this run: give this one a budget of its own seconds.
    group : torch.distributed process group, optional
        Processes that run this together, with the same ``every`` and all with a checkpoint or none; they save and stop at the
        same step, with the gravest status among theirs.

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type or out of range.
    WrongProblem, MissingOracle
        The method cannot solve this problem.
    CheckpointError
        The checkpoint is unreadable, or of another run.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; Smooth(fun, x0) makes one of a function")
    if not isinstance(method, Method):
        raise TypeError(f"method must be a Method, got {method!r}; Train(optimizer) makes one of a torch optimizer")
    for name, number in (("every", every), ("trace", trace), ("observe_every", 1 if observe_every is None else observe_every)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    if tol is not None and (not isinstance(tol, int | float) or not tol >= 0):
        raise ValueError(f"tol must be a number of at least 0, got {tol!r}")
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget must be a Budget, got {budget!r}; Budget(steps=100) is one of 100 steps")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a Moment, got {callback!r}")
    if within is not None and not isinstance(within, Problem):
        raise TypeError(f"within must be the Problem whose counts this run shares, got {within!r}")
    method.check(problem)
    path = None if checkpoint is None else _rank_path(Path(checkpoint), group)
    run = Run(problem, method, budget or problem.budget or DEFAULT_BUDGET, tol, as_key(key), within, group)
    run.trace_limit, run.every, run.observe_every = trace, every, observe_every
    try:
        run.start(path)
        with deferred_interrupts() as interrupted, progress_bar(progress, type(method).__name__, run) as show:
            run.loop(callback, show, interrupted, path, checkpoint_seconds)
            run.finish(path)
    finally:
        method.close(run.state)
    if tol is not None and run.step and not run.has_gap:
        warn(f"tol={tol:g} has no effect: {method!r} reports no gap, and runs to the end of its budget")
    return run.result()


def _rank_path(path: Path, group: Any) -> Path:
    if group is None:
        return path
    return path.with_name(f"{path.name}.rank{torch.distributed.get_rank(group)}")
