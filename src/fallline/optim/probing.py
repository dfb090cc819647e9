"""Optimizers that estimate a Hessian's diagonal from the batch of the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fallline.core.curvature import hutchinson_diagonal
from fallline.core.keys import Key
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import Optimizer
from fallline.optim.engine.oracles import of_minimised


class Probing(Optimizer):
    """z ∘ (H z) of one probe of random signs, at the first step the mean of ``warm_samples``, for directions that ask for it.

    Parameters
    ----------
    warm_samples : int
    seed : int
        Of the probes; further arguments are those of the optimizer.
    """

    derivatives: ClassVar[int] = 2

    def __init__(self, params: Any, *arguments: Any, warm_samples: int, seed: int, **options: Any) -> None:
        check("warm_samples", warm_samples)
        check("seed", seed)
        self.warm_samples, self.seed = int(warm_samples), int(seed)
        super().__init__(params, *arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "warm_samples": self.warm_samples, "seed": self.seed}

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        generator = Key(self.seed).fold(t, oracle).generator()
        count = self.warm_samples if t == 1 else 1
        total: dict[Tensor, Tensor] = {}
        for _ in range(count):
            for name, h in hutchinson_diagonal(realisation, generator, signs=True).items():
                p = realisation.variables[name]
                total[p] = total[p] + h / count if p in total else h / count
        return of_minimised(total, self.param_groups)
