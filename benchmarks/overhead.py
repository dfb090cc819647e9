"""What the library costs around the work

    python benchmarks/overhead.py

The driver: gradient descent on a 10-dimensional quadratic, ``solve`` in turn with the bare loop over the same method, 2,000 steps
each. The import: ``import fallline`` after ``import torch``, in turn with ``import torch`` alone, each in a fresh process. What is
told beside the ratios is the median of the pairs' differences.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

import torch
from figures import Table
from harness import Contestant, Operation, Options, Pairs, race, run

import fallline as fl

STEPS = 2_000


class Descent(fl.Method):
    """x ← x − 0.1 ∇f(x)."""

    def init(self, problem: fl.Problem, key: fl.Key) -> dict[str, torch.Tensor]:
        return {"x": problem.x0.clone(), "norm": torch.tensor(1.0)}

    def step(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        gradient = problem.gradient(state["x"])
        return {"x": state["x"] - 0.1 * gradient, "norm": gradient.norm()}

    def report(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> fl.Report:
        return fl.Report(state["x"], gap=state["norm"])


def quadratic() -> fl.Problem:
    """A problem whose oracles cost next to nothing."""
    curvature = torch.linspace(1, 10, 10)
    return fl.Smooth(lambda x: (curvature * x * x).sum() / 2, torch.ones(10), gradient=lambda x: curvature * x)


def solved(problem: fl.Problem, steps: int) -> None:
    """The steps, by the driver."""
    fl.solve(problem, Descent(), fl.Budget(steps=steps))


def looped(problem: fl.Problem, steps: int) -> None:
    """The steps, by hand."""
    method = Descent()
    state = method.init(problem, fl.Key())
    for _ in range(steps):
        state = method.step(problem, state)


def difference(pairs: Pairs) -> float:
    """Seconds of the contestant on top of the reference's."""
    return statistics.median(ours - theirs for theirs, ours in pairs)


def driver(options: Options) -> list[Table]:
    """`solve` against a loop."""
    steps = 20 if options.quick else STEPS
    loop = Contestant("bare loop", lambda: Operation(partial(looped, quadratic(), steps)))
    solve = Contestant("solve", lambda: Operation(partial(solved, quadratic(), steps)))
    further = lambda name, pairs: {"µs a step on top": 1e6 * difference(pairs) / steps}
    return race("The driver, 2,000 steps", loop, [solve], options, further=further)


def importing(modules: str) -> Contestant:
    """Imports in a fresh process."""
    command = [sys.executable, "-c", f"import {modules}"]
    return Contestant(f"import {modules}", lambda: Operation(partial(subprocess.run, command, check=True)))


def imports(options: Options) -> list[Table]:
    """What `import fallline` adds."""
    further = lambda name, pairs: {"seconds on top": difference(pairs)}
    return race("The import", importing("torch"), [importing("torch, fallline")], options, further=further)


def tables(options: Options) -> list[Table]:
    """Both tables."""
    return driver(options) + imports(options)


if __name__ == "__main__":
    run(__file__, __doc__, tables)
