"""A script that a test kills again and again: a comparison whose trials say when they start, and which says what came out."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fallline.core.budget import Budget
from fallline.core.constructors import Smooth
from fallline.core.keys import Key
from fallline.core.method import State, Train
from fallline.core.problem import Problem
from fallline.core.space import LogUniform
from fallline.study import Contender, RunTable, runs

STEPS, TUNE = 10, 12


def problem(seed: int) -> Problem:
    goal = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    facts = {"best_value": 0.0, "seed": seed}
    return Smooth(lambda x: ((x - goal) ** 2).sum(), torch.zeros(6), name="bowl", facts=facts, budget=Budget(steps=STEPS))


class Logged(Train):
    """SGD that appends a line to a file when a trial starts, and takes its time over every step."""

    def __init__(self, lr: float, momentum: float) -> None:
        super().__init__(torch.optim.SGD, lr=lr, momentum=momentum)
        self.known = [momentum, lr]

    def init(self, problem: Problem, key: Key) -> State:
        if "TRIALS_LOG" in os.environ:
            with open(os.environ["TRIALS_LOG"], "a") as log:
                log.write(json.dumps([*self.known, problem.facts["seed"]]) + "\n")
        return super().init(problem, key)

    def step(self, problem: Problem, state: State) -> State:
        time.sleep(float(os.environ.get("TRIALS_PAUSE", 0)))
        return super().step(problem, state)


SIDES = [
    Contender(f"momentum {momentum}", factory=Logged, fixed={"momentum": momentum}, space={"lr": LogUniform(1e-3, 0.2)})
    for momentum in (0.0, 0.9)
]


def outcomes(table: RunTable) -> list[list[Any]]:
    """Everything about the trials that does not depend on when and where they ran."""
    return [
        [side.title, [[r.id, r.seed, dict(r.hyperparameters), r.status, r.value, r.steps, r.curve["value"]] for r in found]]
        for side in table.sides
        for found in (side.tuning, side.evaluations)
    ]


def main(storage: str, out: str, seeds: str, workers: str) -> None:
    table = runs(problem, SIDES, tune=TUNE, seeds=int(seeds), workers=int(workers), storage=storage)
    errors = [record.id for record in table.records if record.status == "error"]
    Path(out).write_text(json.dumps([errors, [] if errors else outcomes(table)]))


if __name__ == "__main__":
    import logged_run  # what it defines has then one name, in the script and in the test

    logged_run.main(*sys.argv[1:])
