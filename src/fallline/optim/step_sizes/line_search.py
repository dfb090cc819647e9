"""Stochastic line search: Armijo's condition on the batch of the step.

    τ η the largest of a falling sequence with f(x − τ η u) ≤ f(x) − c τ η ⟨g, u⟩, all of one batch

Vaswani, Mishkin, Laradji, Schmidt, Gidel, Lacoste-Julien: Painless Stochastic Gradient, NeurIPS 2019, arXiv 1905.09997.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fallline.core.line_search import backtracking
from fallline.optim.engine.hyperparameters import check_positive
from fallline.optim.engine.parts import Scalars, Search, Tensors


@dataclass(frozen=True)
class ArmijoSearch(Search):
    """Backtracking from ``grow`` times the last step, at first from ``lr``, by ``shrink`` until the loss falls by ``c1`` τ η ⟨g, u⟩.

    Trials cost a value each, of the same realisation. Without a step in ``trials`` none is taken.
    """

    c1: float = 0.1
    shrink: float = 0.7
    grow: float = 1.1
    trials: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("c1", self.c1), ("shrink", self.shrink)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}; c1=0.1 and shrink=0.7 are typical")
        check_positive("grow", self.grow, "1.1 is typical")
        if isinstance(self.trials, bool) or not isinstance(self.trials, int) or self.trials < 1:
            raise ValueError(f"trials must be a whole number of at least 1, got {self.trials!r}")

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {"sign": -1.0 if group["maximize"] else 1.0}

    def scalars(self) -> dict[str, float]:
        return {"last": 1.0}

    def search(self, trial: Callable[[float], float], loss: float, slope: float, s: Tensors, c: Any) -> tuple[float, Tensors]:
        if not slope > 0:
            return 0.0, {}
        found = backtracking(lambda step: c.sign * trial(step), c.sign * loss, -slope, step=self.grow * float(s["last"]), c1=self.c1,
                             shrink=self.shrink, max_evaluations=self.trials)
        return found.step, {"last": s["last"].new_tensor(found.step if found.step > 0 else float(s["last"]) * self.shrink**self.trials)}
