"""What claims about training share: both sides of a comparison get the same grid size, budget, data and keys.

A learning rate that diverges counts as an infinite loss, or as never reaching the target; it is never left out of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import fallline as fl
from fallline.core.driver import Moment
from fallline.core.keys import Key
from fallline.core.tree import Tree

Factory = Callable[..., torch.optim.Optimizer]


def spaced(centre: float, ratio: float, count: int) -> list[float]:
    """``count`` numbers a factor ``ratio`` apart, symmetric about ``centre`` in logarithm."""
    return [centre * ratio ** (i - (count - 1) / 2) for i in range(count)]


def cosine(steps: int) -> Callable[[torch.optim.Optimizer], CosineAnnealingLR]:
    """A schedule that brings the learning rate to zero along half a cosine."""
    return lambda optimizer: CosineAnnealingLR(optimizer, steps)


def trained(problem: fl.Problem, method: fl.Method, steps: int, key: int) -> Tree | None:
    """The solution after ``steps``, or None if something became infinite."""
    result = fl.solve(problem, method, fl.Budget(steps=steps), key=key, every=steps)
    return result.x if result.status == "budget" else None


def observed(problem: fl.Problem, method: fl.Method, steps: int, key: int, metric: str = "loss") -> float:
    """What ``problem.observe`` says of the solution: the validation loss by default, infinite after divergence."""
    x = trained(problem, method, steps, key)
    found = math.inf if x is None else problem.observe(x)[metric]
    return found if math.isfinite(found) else math.inf


def best_loss(problem: fl.Problem, optimizer: Factory, rates: Iterable[float], steps: int, key: int, *,
              schedule: Callable[..., Any] | None = None, **hyper: Any) -> float:
    """The least validation loss over a grid of learning rates."""
    return min(observed(problem, fl.Train(optimizer, schedule=schedule, lr=lr, **hyper), steps, key) for lr in rates)


def steps_until(reached: Callable[[Tree], bool], problem: fl.Problem, method: fl.Method, limit: float, key: int = 0,
                every: int = 1) -> float:
    """The first step, up to ``limit``, whose solution satisfies ``reached``; infinite if none does."""
    if limit < 1:
        return math.inf

    def stop(moment: Moment) -> bool:
        return reached(moment.report.resolve())

    budget = fl.Budget(steps=10**9 if math.isinf(limit) else int(limit))
    result = fl.solve(problem, method, budget, key=key, every=every, callback=stop)
    return result.nit if result.status == "stopped" else math.inf


def fewest_steps(reached: Callable[[Tree], bool], problem: fl.Problem, optimizer: Factory, rates: Iterable[float], limit: float,
                 key: int = 0, **hyper: Any) -> float:
    """The least of `steps_until` over a grid of learning rates; none runs on after another has won."""
    best = math.inf
    for lr in rates:
        best = min(best, steps_until(reached, problem, fl.Train(optimizer, lr=lr, **hyper), min(limit, best), key))
    return best


def side_by_side(optimizer: Factory, rates: Sequence[float]) -> Factory:
    """An optimizer of as many tensors as there are learning rates, each with its own: one run of a sum is the whole grid."""
    return lambda tensors, **hyper: optimizer(
        [{"params": [tensor], "lr": lr} for tensor, lr in zip(tensors, rates, strict=True)], **hyper)


def state_bytes(problem: fl.Problem, method: fl.Method) -> int:
    """Bytes of the method's state after one step."""
    return method.state_bytes(problem, method.step(problem, method.init(problem, Key(0))))
