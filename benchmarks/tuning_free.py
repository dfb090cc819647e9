"""How many tuning trials is a method worth that needs none?

    python benchmarks/tuning_free.py [--workers 2]

runs methods without a learning rate at their defaults against AdamW and SGD tuned with 1, 3, 10 and 30 trials, on four problems, for
the same number of gradients and at the same seeds, and writes ``docs/tuning-free.md``. Trials are kept in ``tuning-free.sqlite``, so
that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tables import grid

import fallline as fl
from fallline import optim
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.study.leaderboard import Row
from fallline.study.numbers import short
from fallline.study.settings import Contender

PAGE = Path(__file__).parents[1] / "docs" / "tuning-free.md"
STORAGE = Path("tuning-free.sqlite")
GRADIENTS = {"digits-cnn": 400, "byte-lm": 50, "logistic": 500, "matrix-sensing": 1_000}
TRIALS, SEEDS = (1, 3, 10, 30), 3
TUNED = ("adamw", "sgd")


class Refined(Method):
    """AdamW at its default rate in two halves: with linear decay, recording gradient norms; then anew, along the refined schedule."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def init(self, problem: Problem, key: Key) -> State:
        half = self.steps // 2
        method = fl.Train(optim.AdamW, schedule=lambda optimizer: optim.LinearDecay(optimizer, half))
        state = method.init(problem, key)
        recorder = optim.GradNormRecorder(state["optimizer"], norm="l1")
        recorder.__enter__()  # for as long as its optimizer lives
        return {"method": method, "inner": state, "recorder": recorder, "t": 0, "key": key}

    def step(self, problem: Problem, state: State) -> State:
        half, method, inner = self.steps // 2, state["method"], state["inner"]
        if state["t"] == half:
            refined = optim.refine(state["recorder"].norms, p=1)
            method = fl.Train(optim.AdamW, schedule=lambda optimizer: optim.Tabulated(optimizer, refined))
            inner = method.init(problem, state["key"].fold("again"))
        return {**state, "method": method, "inner": method.step(problem, inner), "t": state["t"] + 1}

    def report(self, problem: Problem, state: State) -> Report:
        return state["method"].report(problem, state["inner"])


def free(gradients: int) -> list[Contender]:
    """The methods without a learning rate, and SMB at its default one."""
    return [Contender("dog"), Contender("u-dog"), Contender("sania"), Contender("psps", {"precond": "adam"}, {}),
            Contender("smb", {}, {}), Contender("refined schedule", {"steps": gradients}, {}, factory=Refined)]


def measured(problem: str, workers: int) -> tuple[list[Row], dict[tuple[str, int], Row]]:
    """The rows of the free methods, and those of the tuned ones by name and number of trials."""
    budget = fl.Budget(gradients=GRADIENTS[problem])
    options: dict[str, Any] = {"budget": budget, "seeds": SEEDS, "storage": STORAGE, "workers": workers, "progress": False}
    rows = fl.compare(problem, free(GRADIENTS[problem]), tune=1, **options).leaderboard
    tuned = {}
    for trials in TRIALS:
        for row in fl.compare(problem, list(TUNED), tune=trials, **options).leaderboard:
            tuned[row.method, trials] = row
    return rows, tuned


def worth(row: Row, tuned: dict[tuple[str, int], Row], rival: str) -> str:
    """The most trials after which the rival's median is still no better."""
    beaten = [trials for trials in TRIALS if row.spread.median <= tuned[rival, trials].spread.median]
    if not row.finished or not beaten:
        return "less than 1"
    return f"{max(beaten)} or more" if max(beaten) == TRIALS[-1] else str(max(beaten))


def section(problem: str, workers: int) -> str:
    """One problem's tables."""
    rows, tuned = measured(problem, workers)
    figure = lambda row: f"{row.median} ({short(row.spread.low)} to {short(row.spread.high)})" if row.finished else "diverged"
    against = [[f"`{rival}`", *(figure(tuned[rival, trials]) for trials in TRIALS)] for rival in TUNED]
    found = [[f"`{row.method}`", figure(row), *(worth(row, tuned, rival) for rival in TUNED)] for row in rows]
    budget = f"{GRADIENTS[problem]:,} gradients"
    return "\n".join([f"## {problem}\n", f"Median and range over {SEEDS} seeds after {budget}.\n",
                      grid(["tuned with", *(f"{n} trial{'s' * (n > 1)}" for n in TRIALS)], against), "",
                      grid(["untuned", "result", *(f"trials of {rival} it is worth" for rival in TUNED)], found), ""])


def main() -> None:
    """Run everything that is not stored yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    workers = parser.parse_args().workers
    parts = [section(problem, workers) for problem in GRADIENTS]
    PAGE.write_text(HEAD + "\n".join(parts), encoding="utf-8")
    print(PAGE)


HEAD = """# Free of tuning

How many tuning trials is a method worth that needs none? Methods without a learning rate at their defaults, against AdamW and SGD tuned
with 1, 3, 10 and 30 trials over their own spaces, for the same number of gradients at the same seeds. One trial is a guess. A method is
worth n trials if the rival, tuned with n, is still no better by the median; medians of three seeds, so differences within the ranges
say little.

PSPS has Adam's preconditioner, SMB its default learning rate, U-DoG takes two gradients for an iteration. The refined schedule spends
half of its gradients on a run with linear decay, and the other half on a second run along the schedule made of it, both with AdamW at
its default rate. Made by `python benchmarks/tuning_free.py`.

**What to conclude.** On these networks, after so few steps, nothing untuned is worth a trial of AdamW, whose first guess is close to
its best; PSPS with Adam's preconditioner comes near it on the small network, which fits its data, and is worth any number of trials
of SGD there. On the convex problem a few trials of either rival go past everything but SMB. On matrix sensing, where the loss can be
0, PSPS pays most and DoG is worth a few trials; SMB and SANIA diverge there. SANIA's squared preconditioner takes steps too long for
networks, U-DoG's first steps are too short for budgets like these, and a refined schedule cannot make up for half of the run. The
limits are wide: small problems, three seeds, one tuning seed, so that three trials may choose worse than one.

"""

if __name__ == "__main__":
    main()
