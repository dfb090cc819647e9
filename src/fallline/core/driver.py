"""The driver: one loop for every method.

Budgets, tolerances, callbacks, progress, traces, checkpoints, Ctrl-C, non-finite values, and agreement between processes are
here and nowhere else.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fallline.core import checkpoint as checkpoints
from fallline.core import tree
from fallline.core.budget import Budget
from fallline.core.console import deferred_interrupts, progress_bar
from fallline.core.counts import Counts
from fallline.core.errors import CheckpointError, NonFiniteError
from fallline.core.keys import Key, as_key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.result import Result

STATUSES = ("running", "converged", "budget", "stopped", "interrupted", "failed", "nonfinite")
ENDED_WHOLE = ("converged", "budget", "stopped")
DEFAULT_BUDGET = Budget(steps=1_000)
# After so many steps, a budget of which nothing was spent names counts that nobody counts here.
UNSPENT_STEPS = 1_000
# A solution up to this size is looked at for NaNs at every report; a larger one at observations and at the end.
SMALL = 10_000


@dataclass
class Moment:
    """What a callback sees: the step, the seconds and counts so far, and the method's report."""

    step: int
    seconds: float
    counts: Counts
    report: Report


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
        Converged when the reported gap is at most this.
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
        Steps between calls of ``problem.observe``, whose figures join the trace. Observing is free: not counted, not timed.
    checkpoint : path, optional
        Where to keep the run's state. If the file exists, the run goes on from there, exactly.
    checkpoint_seconds : float, default 60
        At most this much work is lost to a kill.
    within : Problem, optional
        Inside another method's step: the problem whose counts and budget this run shares.
    group : torch.distributed process group, optional
        Processes that run this together, with the same ``every`` and all with a checkpoint or none; they save and stop at the
        same step, with the gravest status among theirs.

    Returns
    -------
    Result

    Raises
    ------
    WrongProblem, MissingOracle
        The method cannot solve this problem.
    CheckpointError
        The checkpoint is unreadable, or of another run.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; Smooth(fun, x0) makes one of a function")
    if not isinstance(method, Method):
        raise TypeError(f"method must be a Method, got {method!r}; Train(optimizer) makes one of a torch optimizer")
    for name, number in (("every", every), ("trace", trace), ("observe_every", observe_every or 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol must be at least 0, got {tol}")
    method.check(problem)
    path = None if checkpoint is None else _rank_path(Path(checkpoint), group)
    run = _Run(problem, method, budget or problem.budget or DEFAULT_BUDGET, tol, as_key(key), within, group)
    run.start(path, trace)
    with deferred_interrupts() as interrupted, progress_bar(progress, type(method).__name__, run) as show:
        run.loop(callback, show, interrupted, every, observe_every, path, checkpoint_seconds)
        run.finish(path)
    return run.result()


class _Run:
    """One run's state: everything that a checkpoint holds."""

    def __init__(self, problem: Problem, method: Method, budget: Budget, tol: float | None, key: Key,
                 within: Problem | None, group: Any) -> None:
        self.step, self.seconds, self.stride = 0, 0.0, 1
        self.counts = Counts(parent=within.counts if within is not None else None)
        self.counts.limit = lambda: budget.reached(self.step, self.seconds, self.counts)
        self.problem = problem.counted(self.counts)
        self.method, self.budget, self.tol, self.key, self.group = method, budget, tol, key, group
        self.rows: list[dict[str, float]] = []
        self.status, self.message = "running", ""
        self.state: State = {}
        self.current: Report | None = None
        self.value: float | None = None
        self.gap: float | None = None
        self.reported = -1

    # ------------------------------------------------------------ start, go on

    def start(self, path: Path | None, trace: int) -> None:
        self.trace_limit = trace
        began = time.perf_counter()
        if path is not None and path.exists():
            self._resume(checkpoints.load(path), path)
        else:
            self.state = self.method.init(self.problem, self.key)
            self.seconds = time.perf_counter() - began
        first, last = self._most(-self.step, self.step)
        if -first != last:
            raise CheckpointError(f"the checkpoints of the group's processes are of different steps, {-first} to {last}: they were "
                                  "killed between two writes; restore checkpoints of one step, or delete them to start again")

    def _identity(self) -> dict[str, Any]:
        return {"method": repr(self.method), "problem": self.problem.name, "variables": tree.size(self.problem.x0),
                "key": self.key}

    def _resume(self, content: dict[str, Any], path: Path) -> None:
        for name, here in self._identity().items():
            if content.get(name) != here:
                raise CheckpointError(f"the checkpoint {str(path)!r} is of another run: its {name} is {content.get(name)!r}, "
                                      f"this run's is {here!r}; choose another path, or delete it to start again")
        self.step, self.seconds, self.stride = content["step"], content["seconds"], content["stride"]
        self.rows = content["rows"]
        self.state = self.method.unpack(self.problem, self.key, content["state"])
        self.counts.restore(content["counts"])

    def save(self, path: Path) -> None:
        checkpoints.save(path, {**self._identity(), "step": self.step, "seconds": self.seconds, "stride": self.stride,
                                "rows": self.rows, "counts": dict(self.counts), "state": self.method.pack(self.state)})

    # ------------------------------------------------------------ the loop

    def loop(self, callback: Callable[[Moment], Any] | None, show: Callable[[], None], interrupted: Callable[[], bool],
             every: int, observe_every: int | None, path: Path | None, checkpoint_seconds: float) -> None:
        saved = time.monotonic()
        try:
            self._report(callback, observe_every)
            while not self._agree(interrupted(), path is not None and time.monotonic() - saved >= checkpoint_seconds):
                if path is not None and self.due:
                    self.save(path)
                    saved = time.monotonic()
                began = time.perf_counter()
                self.state = self.method.step(self.problem, self.state)
                self.step += 1
                self.seconds += time.perf_counter() - began
                if self.step % every == 0:
                    self._report(callback, observe_every)
                    show()
        except KeyboardInterrupt:
            self._end("interrupted", "interrupted inside a step: the answer is of the last whole report")
        except NonFiniteError as error:
            self._end("nonfinite", str(error))
            self._tell()

    def finish(self, path: Path | None) -> None:
        """Look at where the run ended, agree on it, and keep it."""
        if self.status in ENDED_WHOLE and self.reported != self.step:  # a run ends at its step, not at the last report
            self._report(None, None)
        if self.current is None:  # interrupted before the first report
            self.value = self.gap = None
            self.current = Report(self.problem.x0)
        self.solution = tree.clone(self.current.resolve())
        if self.status in ENDED_WHOLE and not tree.all_finite(self.solution):
            self._end("nonfinite", f"a variable became NaN or infinite by step {self.step}")
        self._tell()
        if path is not None and self.status in (*ENDED_WHOLE, "interrupted"):
            self.save(path)

    def _report(self, callback: Callable[[Moment], Any] | None, observe_every: int | None) -> None:
        began = time.perf_counter()
        report = self.method.report(self.problem, self.state)
        self.value = None if report.value is None else float(report.value)
        self.gap = None if report.gap is None else float(report.gap)
        self.seconds += time.perf_counter() - began
        self.current, self.reported = report, self.step
        observing = observe_every is not None and self.step % observe_every == 0
        if not (_finite(self.value) and _finite(self.gap) and self._finite_solution(report)):
            self._end("nonfinite", f"a value, gap or variable became NaN or infinite by step {self.step}")
        elif report.status != "running":
            self._end(report.status, report.message or report.status)
        elif self.tol is not None and self.gap is not None and self.gap <= self.tol:
            self._end("converged", f"the gap {self.gap:.3g} is within the tolerance {self.tol:.3g}")
        if observing or self.step % self.stride == 0:
            self._record(observing)
        if callback is not None and self.status == "running":
            try:
                stop = callback(Moment(self.step, self.seconds, self.counts, report))
            except StopIteration:
                stop = True
            if stop is True:
                self._end("stopped", f"the callback ended the run at step {self.step}")

    def _agree(self, interrupted: bool, due: bool) -> bool:
        if self.status == "running":
            if interrupted:
                self._end("interrupted", f"interrupted after step {self.step}")
            elif limit := self.counts.reached():
                self._end("budget", f"the budget's {limit} are used up after step {self.step}")
            elif self.step == UNSPENT_STEPS and self.budget.fraction(self.step, self.seconds, self.counts) == 0:
                self._end("failed", f"in {self.step:,} steps nothing counted the budget's {', '.join(self.budget.limits)}; counted "
                                    f"here: {', '.join(self.counts) or 'nothing'}; give steps, seconds or one of these")
        self._tell(due)
        return self.status != "running"

    def _tell(self, due: bool = False) -> None:
        """Let the group take the gravest status in it, and save together: called once a step, once on failure, once at the end."""
        status, self.due = self._most(STATUSES.index(self.status), int(due))
        if STATUSES[status] != self.status:
            self._end(STATUSES[status], f"another process ended the run at step {self.step}")

    def _most(self, *numbers: int) -> list[int]:
        """Return the largest of each number over the processes of the group."""
        if self.group is None:
            return list(numbers)
        device = "cuda" if torch.distributed.get_backend(self.group) == "nccl" else "cpu"
        most = torch.tensor(numbers, device=device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=self.group)
        return most.tolist()

    def _end(self, status: str, message: str) -> None:
        self.status, self.message = status, message

    def _finite_solution(self, report: Report) -> bool:
        return callable(report.solution) or tree.size(report.solution) > SMALL or tree.all_finite(report.solution)

    # ------------------------------------------------------------ record

    def _record(self, observing: bool) -> None:
        if self.rows and self.rows[-1]["step"] == self.step:
            return
        row: dict[str, float] = {"step": self.step, "seconds": self.seconds}
        row |= {name: number for name, number in (("value", self.value), ("gap", self.gap)) if number is not None}
        row |= self.counts
        if observing and self.current is not None:
            row |= self.problem.observe(self.current.resolve())
        self.rows.append(row)
        if len(self.rows) > self.trace_limit:
            self.rows = self.rows[::2]
            self.stride *= 2

    def result(self) -> Result:
        assert self.current is not None
        self._record(observing=False)
        return Result(x=self.solution, status=self.status, message=self.message, nit=self.step, fun=self.value, gap=self.gap,
                      counts=dict(self.counts), seconds=self.seconds, trace=self.rows, certificate=self.current.certificate,
                      name=f"{self.method!r} on {self.problem.name}")


def _finite(number: float | None) -> bool:
    return number is None or math.isfinite(number)


def _rank_path(path: Path, group: Any) -> Path:
    if group is None:
        return path
    return path.with_name(f"{path.name}.rank{torch.distributed.get_rank(group)}")
