"""What the library costs around the work: the driver's time a step, and the import.

    python benchmarks/overhead.py

The driver: gradient descent on a 10-dimensional quadratic, ``solve`` against the bare loop over the same method in turn. The import:
``import fallline`` in a fresh process, less ``import torch`` in another.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch
from harness import record

import fallline as fl

STEPS, REPEATS = 2_000, 15


class Descent(fl.Method):
    """x ← x − 0.1 ∇f(x)."""

    def init(self, problem: fl.Problem, key: fl.Key) -> dict[str, torch.Tensor]:
        return {"x": problem.x0.clone(), "norm": torch.tensor(1.0)}

    def step(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        gradient = problem.gradient(state["x"])
        return {"x": state["x"] - 0.1 * gradient, "norm": gradient.norm()}

    def report(self, problem: fl.Problem, state: dict[str, torch.Tensor]) -> fl.Report:
        return fl.Report(state["x"], gap=state["norm"])


def driver() -> float:
    """Microseconds a step over the bare loop."""
    curvature = torch.linspace(1, 10, 10)
    problem = fl.Smooth(lambda x: (curvature * x * x).sum() / 2, torch.ones(10), gradient=lambda x: curvature * x)
    differences = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        fl.solve(problem, Descent(), fl.Budget(steps=STEPS))
        middle = time.perf_counter()
        method = Descent()
        state = method.init(problem, fl.Key())
        for _ in range(STEPS):
            state = method.step(problem, state)
        differences.append((middle - start) - (time.perf_counter() - middle))
    return 1e6 * statistics.median(differences) / STEPS


def imports() -> float:
    """Seconds of ``import fallline`` on top of ``import torch``."""
    seconds: dict[str, list[float]] = {"torch": [], "torch, fallline": []}
    for _ in range(REPEATS):
        for modules, found in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
            found.append(time.perf_counter() - start)
    return statistics.median(seconds["torch, fallline"]) - statistics.median(seconds["torch"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures = {"driver, microseconds a step": driver(), "import, seconds": imports()}
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    record("overhead", figures, repeats=REPEATS)
