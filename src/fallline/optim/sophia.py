"""Sophia: clipped steps on a diagonal Hessian that is estimated now and then.

    m ← β₁ m + (1 − β₁) g;   every k steps  h ← β₂ h + (1 − β₂) ĥ
    θ ← (1 − η λ) θ − η clip(m / max(γ h, ε), −1, 1)

Liu, Li, Hall, Liang, Ma: Sophia, ICLR 2024, arXiv 2305.14342.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

from torch import Tensor

from fallline.core.curvature import gauss_newton_bartlett, hutchinson_diagonal
from fallline.core.keys import Key
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.sophia import ClippedNewton
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.oracles import of_minimised
from fallline.optim.engine.parts import DecoupledDecay

ESTIMATORS = {"gnb": gauss_newton_bartlett, "hutchinson": hutchinson_diagonal}


@register("sophia")
class Sophia(Optimizer):
    """θ ← (1 − η λ) θ − η clip(m / max(γ h, ε), −1, 1), element-wise.

    Needs curvature at steps 1, k + 1, 2k + 1, …: ``opt.step(objective(x, y))`` with ``objective = Objective(model, loss)``. An estimate
    costs one more backward pass (``"gnb"``) or a Hessian-vector product (``"hutchinson"``), about 5 % on average at k = 10. ``step``
    asks for it by itself when it is due; there is no ``update_hessian`` to call.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
        About 0.8 of AdamW's.
    betas : pair of float, default (0.96, 0.99)
    gamma : float, optional
        0.05 for ``"gnb"``, 0.01 for ``"hutchinson"`` by default; tune it so that 10 to 50 % of the entries are not clipped.
    eps : float, default 1e-12
        Positive: entries without gradient and curvature would be 0 / 0.
    weight_decay : float, default 0.1
    k : int, default 10
        Steps between estimates.
    estimator : {"gnb", "hutchinson"}, default "gnb"
        Gauss-Newton-Bartlett (classification: labels drawn from the model's softmax, targets below 0 left out as ignored), or
        u ∘ (H u). With ``maximize=True`` the first takes the objective for the mean log-likelihood.
    seed : int, default 0
        Of the estimates.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-2), "gamma": LogUniform(1e-3, 1.0)}
    derivatives: ClassVar[int] = 2
    positive: ClassVar[Mapping[str, str]] = {"eps": "entries without gradient and curvature would be 0 / 0; 1e-12 is typical"}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.96, 0.99), gamma: float | None = None,
                 eps: float = 1e-12, weight_decay: float = 0.1, k: int = 10,
                 estimator: Literal["gnb", "hutchinson"] = "gnb", seed: int = 0, **options: Unpack[EngineOptions]) -> None:
        check("k", k)
        check("seed", seed)
        usual = {"gnb": 0.05, "hutchinson": 0.01}
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be 'gnb' or 'hutchinson', got {estimator!r}")
        defaults = {"lr": lr, "betas": betas, "gamma": usual[estimator] if gamma is None else gamma, "eps": eps,
                    "weight_decay": weight_decay}
        self.seed = seed
        super().__init__(params, ClippedNewton(estimator, k), defaults, move=DecoupledDecay(), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "seed": self.seed}

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        generator = Key(self.seed).fold(t, oracle).generator()
        found = {realisation.variables[name]: h for name, h in ESTIMATORS[oracle](realisation, generator).items()}
        return of_minimised(found, self.param_groups) if oracle == "hutchinson" else found
