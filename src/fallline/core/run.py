"""One run of a method: the loop, and everything that a checkpoint holds.

Budgets, tolerances, callbacks, traces, checkpoints, Ctrl-C, non-finite values, and agreement between processes are here and nowhere
else; ``solve`` checks what it is given and starts one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fallline.core import checkpoint as checkpoints
from fallline.core import identity, tree
from fallline.core.budget import Budget
from fallline.core.counts import Counts
from fallline.core.errors import CheckpointError, NonFiniteError
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.result import Result
from fallline.core.tree import Tree

STATUSES = ("running", "converged", "budget", "stopped", "interrupted", "failed", "nonfinite")
ENDED_WHOLE = ("converged", "budget", "stopped")
# After so many steps, a budget of which nothing was spent names counts that nobody counts here.
UNSPENT_STEPS = 1_000
# A solution up to this size is looked at for NaNs at every report, and the last finite one is kept; a larger one at the end.
SMALL = 10_000


@dataclass
class Moment:
    """What a callback sees: the step, the seconds and counts so far, and the method's report.

    ``state_bytes()`` counts what the method keeps between steps beside the variables; see ``Method.state_bytes``.
    """

    step: int
    seconds: float
    counts: Counts
    report: Report
    state_bytes: Callable[[], int] = field(default=lambda: 0, repr=False)


class Run:
    """One run's state: everything that a checkpoint holds."""

    def __init__(self, problem: Problem, method: Method, budget: Budget, tol: float | None, key: Key,
                 within: Problem | None, group: Any) -> None:
        self.step, self.seconds, self.stride = 0, 0.0, 1
        self.trace_limit, self.every = 1_000, 1
        self.observe_every: int | None = None
        self.counts = Counts(parent=within.counts if within is not None else None)
        self.counts.limit = lambda: budget.reached(self.step, self.seconds, self.counts)
        self.problem = problem.counted(self.counts)
        self.method, self.budget, self.tol, self.key, self.group = method, budget, tol, key, group
        self.small = tree.size(problem.x0) <= SMALL
        self.moves = bool(self.problem.persistent_buffers)
        self.rows: list[dict[str, float]] = []
        self.status, self.message = "running", ""
        self.state: State = {}
        self.identity: dict[str, Any] = {}
        self.billed: dict[str, int] = {}  # the counts when the state was last whole
        self.current: Report | None = None
        self.figures: dict[str, float] = {}
        self.torn = False  # a step that did not end may have spoiled the state, which it consumes
        # The last small solution looked at, and the last one known to be finite.
        self.seen: tuple[int, Tree, dict[str, float]] | None = None
        self.finite: tuple[int, Tree, dict[str, float]] | None = None
        self.has_gap = False
        self.reported = self.observed = -1

    # ------------------------------------------------------------ start, go on

    def start(self, path: Path | None) -> None:
        if path is not None:
            self.identity = identity.identity(self.problem, self.method, self.key)
        began = time.perf_counter()
        if path is not None and path.exists():
            self._resume(checkpoints.load(path), path)
        else:
            self.state = self.method.init(self.problem, self.key)
            self.seconds = time.perf_counter() - began
        self.billed = dict(self.counts)
        first, last = self._most(-self.step, self.step)
        if -first != last:
            raise CheckpointError(f"the checkpoints of the group's processes are of different steps, {-first} to {last}: they were "
                                  "killed between two writes; restore checkpoints of one step, or delete them to start again")

    def _resume(self, content: dict[str, Any], path: Path) -> None:
        identity.check(content, self.identity, path)
        self.step, self.seconds, self.stride = content["step"], content["seconds"], content["stride"]
        self.rows, self.observed = content["rows"], content["observed"]
        self.problem.load_buffers(content["buffers"])
        self.state = self.method.unpack(self.problem, self.key, content["state"])
        self.counts.restore(content["counts"])

    def save(self, path: Path) -> None:
        checkpoints.save(path, {**self.identity, "step": self.step, "seconds": self.seconds, "stride": self.stride,
                                "rows": self.rows, "observed": self.observed, "counts": self.billed,
                                "buffers": self.problem.buffers, "state": self.method.pack(self.state)})

    # ------------------------------------------------------------ the loop

    def loop(self, callback: Callable[[Moment], Any] | None, show: Callable[[], None], interrupted: Callable[[], bool],
             path: Path | None, checkpoint_seconds: float) -> None:
        saved = time.monotonic()
        try:
            self._report(callback)
            while not self._agree(interrupted(), path is not None and time.monotonic() - saved >= checkpoint_seconds):
                if path is not None and self.due:
                    self.save(path)
                    saved = time.monotonic()
                self._step()
                if self.step % self.every == 0:
                    self._report(callback)
                    show()
        except KeyboardInterrupt:
            self._end("interrupted", self._interrupted())
            self._tell()
        except NonFiniteError as error:
            self._end("nonfinite", str(error))
            self._tell()
        except CheckpointError:
            raise
        except Exception:
            if path is not None and self.group is None and not self.torn:  # a group goes on from one step only
                with contextlib.suppress(Exception):
                    self.save(path)
            raise

    def _step(self) -> None:
        began = time.perf_counter()
        self.torn = True
        self.state = self.method.step(self.problem, self.state)
        self.step += 1
        self.seconds += time.perf_counter() - began
        self.billed = dict(self.counts)
        self.torn = False

    def finish(self, path: Path | None) -> None:
        """Look at where the run ended, agree on it, and keep it."""
        if self.status in ENDED_WHOLE and self.reported != self.step:  # a run ends at its step, not at the last report
            self._look()
        if self.current is None:  # interrupted before the first report
            self.figures, self.current = {}, Report(self.problem.x0)
        kept = self._kept() if self.torn and self.status == "interrupted" else None
        if kept is not None:  # the method's own may be half way into the next step
            _, solution, self.figures = kept
            self.current = replace(self.current, solution=solution)
        self.solution = tree.clone(self.current.resolve())
        if self.status in ENDED_WHOLE and not tree.all_finite(self.solution):
            self._end("nonfinite", f"a variable became NaN or infinite by step {self.step}")
        self._tell()
        whole = self._is_whole()
        if path is not None and whole and self.status in (*ENDED_WHOLE, "interrupted"):
            self.save(path)
        self.rows = self._whole_trace()
        if self.status == "nonfinite" and self.finite is not None:
            step, self.solution, self.figures = self.finite
            self.message += f"; the answer is that of step {step}, the last finite one seen"

    def _look(self) -> None:
        """Ask the method where it stands, and judge it."""
        began = time.perf_counter()
        report = self.method.report(self.problem, self.state)
        named = {"value": report.value, "gap": report.gap, "batch_loss": report.batch_loss}
        self.figures = {name: float(number) for name, number in named.items() if number is not None}
        self.seconds += time.perf_counter() - began
        self.current, self.reported = self._with_buffers(report), self.step
        self.has_gap |= "gap" in self.figures
        if not (all(math.isfinite(number) for number in self.figures.values()) and self._keep_finite()):
            self._end("nonfinite", f"a value, gap or variable became NaN or infinite by step {self.step}")
        elif report.status == "exhausted":  # which is success, unless more digits were asked for
            within = self.tol is None or self.figures.get("gap", math.inf) <= self.tol
            self._end("converged" if within else "failed", report.message + ("" if within else f"; the tolerance is {self.tol:.3g}"))
        elif report.status != "running":
            self._end(report.status, report.message or report.status)
        elif self.tol is not None and self.figures.get("gap", math.inf) <= self.tol:
            self._end("converged", f"the gap {self.figures['gap']:.3g} is within the tolerance {self.tol:.3g}")

    def _with_buffers(self, report: Report) -> Report:
        """The report with what the run's evaluations moved beside the variables in its solution."""
        if not self.moves:
            return report

        def solution() -> Tree:
            x = report.resolve()
            return {**x, **{name: b.detach().clone() for name, b in self.problem.persistent_buffers.items() if name not in x}}

        return replace(report, solution=solution)

    def _keep_finite(self) -> bool:
        """Keep the solution if it is small and finite; return False if it is small and is not."""
        assert self.current is not None
        if not self.small:
            return True
        solution = tree.clone(self.current.resolve())
        if not tree.all_finite(solution):
            return False
        seen = (self.step, solution, self.figures)
        # A mini-batch's loss is taken before the step: it vouches for the solution before, and this one waits for the next.
        self.finite = self.seen if self.seen is not None and self.figures.keys() == {"batch_loss"} else seen
        self.seen = seen
        return True

    def _kept(self) -> tuple[int, Tree, dict[str, float]] | None:
        return self.seen if self.seen is not None and self.seen[0] == self.reported else None

    def _interrupted(self) -> str:
        if not self.torn:
            return f"interrupted at step {self.step}"
        inside = f"interrupted inside step {self.step + 1}"
        return f"{inside}: the answer is that of step {self.reported}" if self._kept() else \
            f"{inside}, which the answer may have half taken"

    def _report(self, callback: Callable[[Moment], Any] | None) -> None:
        """Look, and where a report is due put it into the trace and show it to the callback."""
        self._look()
        if self.step % self.every:  # gone on from a checkpoint between two reports
            return
        observing = self.observe_every is not None and \
            (self.observed < 0 or self.step // self.observe_every > self.observed // self.observe_every)
        if (observing or self.step % self.stride == 0) and not (self.rows and self.rows[-1]["step"] == self.step):
            self.rows.append({**self._row(), **(self._observed() if observing else {})})
            if len(self.rows) > self.trace_limit:
                self.rows = self.rows[::2]
                self.stride *= 2
        if callback is not None and self.status == "running":
            assert self.current is not None
            try:
                stop = callback(Moment(self.step, self.seconds, self.counts, self.current, self._state_bytes))
            except StopIteration:
                stop = True
            if stop is True or (str(getattr(stop, "dtype", "")).endswith("bool") and bool(stop)):  # NumPy's and torch's True as well
                self._end("stopped", f"the callback ended the run at step {self.step}")

    def _state_bytes(self) -> int:
        return self.method.state_bytes(self.problem, self.state)

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

    def _is_whole(self) -> bool:
        """Whether the group's processes stand at one step that ended in all of them."""
        torn, first, last = self._most(int(self.torn), -self.step, self.step)
        return not torn and -first == last

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

    # ------------------------------------------------------------ record

    def _row(self) -> dict[str, float]:
        figures = self.figures if self.reported == self.step else {}
        return {"step": self.step, "seconds": self.seconds, **figures, **self.counts}

    def _observed(self) -> dict[str, float]:
        assert self.current is not None
        self.observed = self.step
        return {f"observed_{name}": number for name, number in self.problem.observe(self.current.resolve()).items()}

    def _whole_trace(self) -> list[dict[str, float]]:
        """The trace up to where the run ended, which need not be at a report."""
        kept = bool(self.rows) and self.rows[-1]["step"] == self.step
        last = self.rows[-1] if kept else self._row()
        if self.observe_every is not None and self.observed != self.step and self.status != "nonfinite":
            last = {**last, **self._observed()}
        return [*(self.rows[:-1] if kept else self.rows), last]

    def result(self) -> Result:
        assert self.current is not None
        return Result(x=self.solution, status=self.status, message=self.message, nit=self.step, fun=self.figures.get("value"),
                      gap=self.figures.get("gap"), counts=dict(self.counts), seconds=self.seconds, trace=self.rows,
                      certificate=self.current.certificate, name=f"{self.method!r} on {self.problem.name}")
