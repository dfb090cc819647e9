"""FRUGAL: what a step without state on the rest of the gradient gives back of GaLore's gap to Adam, and of the rank."""

from __future__ import annotations

from typing import Any

import torch

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, exactly, recorded
from fallline.claims._tuning import best_loss, state_bytes
from fallline.optim import Adam, Frugal, GaLore, roles
from fallline.problems import tiny_lm

PAPER = Paper(
    slug="frugal",
    title="FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
    arxiv="2411.07837",
    year=2025,
    room="optim",
    methods=("optim.Frugal", "optim.GaLore"),
    headline="pre-training LLaMA with 60M to 1B parameters on C4: better than GaLore and BAdam at each memory budget, near full Adam; "
    "even without state on matrices it is competitive",
)
RATES = (1e-3, 3e-3, 1e-2)
RANK = 8


class Grouped:
    """An optimizer whose learning rate is that of the blocks' matrices; everything else is trained at 0.01."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.__name__ = optimizer.__name__

    def __call__(self, params: Any, **hyper: Any) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = self.optimizer(params, **hyper)
        return made

    def for_model(self, model: torch.nn.Module, **hyper: Any) -> torch.optim.Optimizer:
        others = {role: {"lr": 1e-2} for role in ("embedding", "head", "norm", "bias")}
        return self(roles(model, **others), **hyper)


def methods(gap: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The four sides."""
    return {
        "Adam": (Adam, {}),
        "GaLore": (GaLore, {"rank": RANK, "update_gap": gap}),
        "FRUGAL": (Frugal, {"rank": RANK, "update_gap": gap, "selector": "svd"}),
        "FRUGAL without state": (Frugal, {"density": 0.0, "update_gap": gap, "selector": "svd"}),
    }


@claim("at GaLore's state FRUGAL closes at least half of GaLore's gap to Adam, and without any state on matrices at least 40 % of it")
def closes_the_gap(scale: Scale, seed: int) -> Evidence:
    steps, gap = (150, 50) if scale is Scale.QUICK else (3_000, 200)
    losses: dict[str, list[float]] = {name: [] for name in methods(gap)}
    for s in range(seed, seed + (2 if scale is Scale.QUICK else 3)):
        problem = tiny_lm(s)
        for name, (optimizer, hyper) in methods(gap).items():
            losses[name].append(best_loss(problem, Grouped(optimizer), RATES, steps, s, **hyper))
    sizes = {name: state_bytes(problem, fl.Train(Grouped(optimizer), **hyper))
             for name, (optimizer, hyper) in methods(gap).items()}
    found = {name: torch.tensor(by, dtype=torch.float64) for name, by in losses.items()}
    lost = found["GaLore"] - found["Adam"]
    shares = {name: ((found["GaLore"] - loss) / lost).tolist() for name, loss in found.items()}
    return Evidence([
        at_least("the gap: loss of GaLore less loss of Adam", lost.tolist(), 0.0),
        at_least("share of the gap that FRUGAL closes", shares["FRUGAL"], 0.5),
        at_least("share closed without state", shares["FRUGAL without state"], 0.4),
        at_most("state bytes, FRUGAL / GaLore", sizes["FRUGAL"] / sizes["GaLore"], 1.0),
        *(recorded(f"validation loss, {name}", loss) for name, loss in losses.items()),
        *(recorded(f"state bytes, {name}", size) for name, size in sizes.items()),
    ], notes=[f"Rank {RANK} of 48, subspaces of {gap} steps, the best of three learning rates on each side; two seeds at the quick "
              "scale, for its time. The full scale is this model for 3,000 steps, not the paper's LLaMA of 60M."])


@claim("after two subspaces FRUGAL has moved a matrix at full rank, and GaLore at most at twice the rank of a subspace")
def full_rank(scale: Scale, seed: int) -> Evidence:
    gap = 10 if scale is Scale.QUICK else 200
    problem = tiny_lm(seed)
    ranks = {}
    for name in ("FRUGAL", "GaLore"):
        optimizer, hyper = methods(gap)[name]
        end = fl.solve(problem, fl.Train(Grouped(optimizer), lr=1e-3, **hyper), fl.Budget(steps=2 * gap), every=gap).x
        moved = [end[key] - problem.x0[key] for key in problem.x0 if key.startswith("blocks") and problem.x0[key].ndim == 2]
        ranks[name] = [int(torch.linalg.matrix_rank(w.double(), rtol=1e-5)) for w in moved]
    return Evidence([
        exactly("least rank of a matrix's movement, FRUGAL", min(ranks["FRUGAL"]), 48),
        at_most("largest rank of a matrix's movement, GaLore", max(ranks["GaLore"]), 2 * RANK),
    ], notes=["All matrices of the blocks; the smaller side is 48."])
