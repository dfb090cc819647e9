"""Steps, seconds and bytes that preconditioned methods need to AdamW's final loss

    python benchmarks/preconditioned_study.py

tunes every method alike on two networks (its defaults and five further settings of its own space, spread evenly, on one seed), then
lets it run at its best setting on three seeds until the validation loss is that which AdamW, tuned the same way, ends at; and writes
``docs/preconditioned.md``. A run is over at twice AdamW's steps or five times its seconds. One thread; looking at the validation loss
is not timed. What is found is kept in ``preconditioned-study.json``, so that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from harness import machine
from tables import grid

import fallline as fl
from fallline.core import registry
from fallline.core.keys import Key
from fallline.core.space import Choice, Integers, LogUniform, Range
from fallline.problems import byte_lm, digits_cnn

PAGE = Path(__file__).parents[1] / "docs" / "preconditioned.md"
KEPT = Path("preconditioned-study.json")
SETTINGS, SEEDS, EVERY = 6, 3, 5
STEPS_LIMIT, SECONDS_LIMIT = 2, 5
PROBLEMS = {"byte-lm": (byte_lm, 40), "digits-cnn": (digits_cnn, 200)}
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {}, "shampoo": {}, "shampoo, half": {"exponent": "half"}, "scalable-shampoo": {},
    "distributed-shampoo": {"start_step": 10, "root_every": 10}, "shampoo-4bit": {"T1": 5, "T2": 10}, "dion": {},
    "sophia": {}, "psgd": {}, "m-fac": {"m": 32}, "sparse-m-fac": {"m": 128},
    "sparse-ggt": {}, "adafisher": {"every": 10}, "tngd": {}, "egn": {}, "saddle-free-newton": {"krylov": 10},
}
"""What differs from the defaults, because these runs are short."""


@dataclass(frozen=True)
class Run:
    """How a run ended: its validation loss, and where the goal was reached."""

    loss: float
    steps: float = math.inf
    seconds: float = math.inf
    state_bytes: int = 0
    refused: str = ""


def settings(space: Mapping[str, Range]) -> list[dict[str, Any]]:
    """The defaults, then points of the space that fill it evenly."""
    if not space:
        return [{}]
    points = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=0).draw(SETTINGS - 1, dtype=torch.float64).tolist()
    return [{}, *({name: _at(kind, u) for (name, kind), u in zip(space.items(), point, strict=True)} for point in points)]


def _at(kind: Range, u: float) -> Any:
    if isinstance(kind, Choice):
        return kind.options[int(u * len(kind.options))]
    if isinstance(kind, LogUniform) or (isinstance(kind, Integers) and kind.log):
        value = math.exp(math.log(kind.low) + u * math.log(kind.high / kind.low))
    else:
        value = kind.low + u * (kind.high - kind.low)
    return round(value) if isinstance(kind, Integers) else value


def taken(problem: fl.Training, name: str, hyper: dict[str, Any], steps: int, seconds: float, seed: int,
          goal: float = -math.inf) -> Run:
    """Run a method until the goal, the number of steps or the time."""
    method = fl.Train(registry.lookup(name.partition(",")[0]), **{**METHODS[name], **hyper})
    try:
        state, spent, loss, held = method.init(problem, Key(seed)), 0.0, math.inf, 0
        for step in range(1, steps + 1):
            start = time.perf_counter()
            state = method.step(problem, state)
            spent += time.perf_counter() - start
            if step % EVERY == 0 or step == steps or spent > seconds:
                loss, held = problem.observe(method.report(problem, state).resolve())["loss"], method.state_bytes(problem, state)
                if loss <= goal:
                    return Run(loss, step, spent, held)
                if spent > seconds or not math.isfinite(loss):
                    break
    except (ArithmeticError, fl.NonFiniteError, torch.linalg.LinAlgError):
        return Run(math.inf)
    except (ValueError, RuntimeError, TypeError) as error:
        return Run(math.inf, refused=str(error).splitlines()[0])
    return Run(loss if math.isfinite(loss) else math.inf, state_bytes=held, seconds=spent if goal == -math.inf else math.inf)


class Study:
    """All runs, each taken once."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}

    def run(self, problem: str, name: str, index: int, seed: int, seconds: float, goal: float = -math.inf) -> Run:
        """A run of setting number ``index``."""
        key = f"{problem} | {name} | {index} | {seed} | {'tuning' if goal == -math.inf else 'goal'}"
        if key not in self.kept:
            make, steps = PROBLEMS[problem]
            space = registry.lookup(name.partition(",")[0]).space
            hyper = settings({n: kind for n, kind in space.items() if n not in METHODS[name]})[index]
            steps = steps if goal == -math.inf else STEPS_LIMIT * steps
            found = taken(make(seed), name, hyper, steps, seconds, seed, goal)
            self.kept[key] = asdict(found) | {"settings": hyper}
            KEPT.write_text(json.dumps(self.kept, indent=1))
            print(f"{key}: {found}", flush=True)
        return Run(**{n: x for n, x in self.kept[key].items() if n != "settings"})

    def tuned(self, problem: str, name: str, seconds: float) -> int:
        """The number of the setting with the least loss on the first seed."""
        count = len(settings({n: kind for n, kind in registry.lookup(name.partition(",")[0]).space.items() if n not in METHODS[name]}))
        losses = [self.run(problem, name, i, 0, seconds).loss for i in range(count)]
        return losses.index(min(losses))

    def chosen(self, problem: str, name: str, index: int) -> str:
        """The setting in words."""
        found = self.kept[f"{problem} | {name} | {index} | 0 | tuning"]["settings"]
        return ", ".join(f"{n} {x:.3g}" if isinstance(x, float) else f"{n} {x}" for n, x in found.items()) or "defaults"


def section(study: Study, problem: str) -> str:
    """One problem's table."""
    best = study.tuned(problem, "adamw", math.inf)
    reference = [study.run(problem, "adamw", best, seed, math.inf) for seed in range(SEEDS)]
    goals, seconds = [run.loss for run in reference], statistics.median(run.seconds for run in reference)
    rows = []
    for name in METHODS:
        index = study.tuned(problem, name, SECONDS_LIMIT * seconds)
        runs = [study.run(problem, name, index, seed, SECONDS_LIMIT * seconds, goal) for seed, goal in enumerate(goals)]
        rows.append(_row(study, problem, name, index, runs, seconds))
    head = ["", "steps", "seconds / AdamW's", "state, bytes a parameter", "reached", "tuned to"]
    steps, parameters = PROBLEMS[problem][1], sum(p.numel() for p in PROBLEMS[problem][0](0).model.parameters())
    return "\n".join([f"## {problem}\n", f"{parameters:,} parameters; AdamW's loss after {steps} steps: {_median(goals)}, in "
                      f"{seconds:.3g} s.\n", grid(head, rows), ""])


def _row(study: Study, problem: str, name: str, index: int, runs: list[Run], seconds: float) -> list[str]:
    refused = next((run.refused for run in runs if run.refused), "")
    if refused:
        why = "its Jacobian of a batch does not fit into memory" if "allocate memory" in refused else shorten(refused, 100)
        return [f"`{name}`", "—", "—", "—", f"not run: {why}", "—"]
    parameters = sum(p.numel() for p in PROBLEMS[problem][0](0).model.parameters())
    reached = sum(math.isfinite(run.steps) for run in runs)
    held = max(run.state_bytes for run in runs) / parameters
    return [f"`{name}`", _median([run.steps for run in runs]), _median([run.seconds / seconds for run in runs]), f"{held:.3g}",
            f"{reached} of {len(runs)}", study.chosen(problem, name, index)]


def _median(values: list[float]) -> str:
    """Median and range; what was not reached is infinite."""
    word = lambda x: f"{x:.3g}" if math.isfinite(x) else "not reached"
    middle = statistics.median(values)
    return f"{word(middle)} ({word(min(values))} to {word(max(values))})" if math.isfinite(middle) else word(middle)


def main() -> None:
    """Run everything that is not kept yet, and write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    study, where = Study(), machine()
    parts = [section(study, problem) for problem in PROBLEMS]
    PAGE.write_text(HEAD.format(**where) + "\n".join(parts), encoding="utf-8")
    print(PAGE)


HEAD = """# Preconditioned methods

Steps, seconds and bytes to AdamW's final loss, for every preconditioned and second-order method, tuned alike: its defaults and five
further settings that fill its own space evenly, on one seed; the best of them runs on three seeds until the validation loss is that of
AdamW at the same seed. A run is over at twice AdamW's steps or five times its seconds. Medians, with the range in brackets; seconds are
of steps alone, on one thread of {processor}. Intervals that exceed such short runs are shorter than the defaults: Distributed Shampoo's
roots every 10 steps from the tenth, 4-bit Shampoo's every 10 with statistics every 5, AdaFisher's moments every 10; M-FAC has windows
of 32 gradients, its sparse form 128; saddle-free Newton's space has 10 dimensions. Made by `python benchmarks/preconditioned_study.py`.

**What to conclude.** On the language model, after so few steps, Dion alone saves steps, seconds and bytes at once. Shampoo saves the
most steps, and the rules with blocks save some, at two to three times AdamW's seconds on a processor whose matrix products are slow;
4-bit factors cost a third of the state of whole ones. On the small network everything with Kronecker factors needs a third to a half
of the steps and fewer seconds, and so do M-FAC and AdaFisher, whose state is half of Adam's. PSGD, sparse GGT, natural gradients and
saddle-free Newton do not get there within these limits on either network: their steps are better only where dozens of gradients a step
are allowed to cost what they cost, or where a long run pays for a slow fit. Exact Gauss-Newton is for few outputs. The limits are wide:
six settings, one tuning seed, short runs. Other processes used the machine meanwhile: AdamW against itself gave 0.99 on the language
model and 1.7 on the small network, so seconds there say little below a factor of two.

"""

if __name__ == "__main__":
    main()
