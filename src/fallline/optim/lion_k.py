"""Lion-K: Lion with any convex κ in place of the ℓ₁ norm, and what it solves.

    c = β₁ m + (1 − β₁) g;   θ ← θ − η (∇κ(c) + λ θ);   m ← β₂ m + (1 − β₂) g      solves  min f(x) + κ*(λ x) / λ

Chen, Liu, Liang, Liu: Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts, ICLR 2024, arXiv 2310.05898.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.signed import Custom, Kappa, MappedMomentum, Normalised, RowsNormalised, Sign, SoftSign
from fallline.optim.engine.hyperparameters import check_positive
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.over import Over
from fallline.optim.engine.parts import DecoupledDecay

KAPPAS: dict[str, type[Kappa]] = {"l1": Sign, "l2": Normalised, "group": RowsNormalised, "huber": SoftSign}


def _kappa(kappa: str | Callable[[Tensor], Tensor], arguments: Mapping[str, Any]) -> Kappa:
    known = ", ".join(map(repr, KAPPAS))
    if isinstance(kappa, str):
        if kappa not in KAPPAS:
            raise ValueError(f"kappa must be one of {known}, or a function c -> subgradient of κ at c, got {kappa!r}")
        for name, value in arguments.items():
            if (kappa, name) != ("huber", "e"):
                raise ValueError(f"kappa {kappa!r} has no argument {name!r}; only 'huber' has one, e")
            check_positive("e", value, "the width of the soft sign; 1e-3 is typical")
        return KAPPAS[kappa](**arguments)
    if not callable(kappa):
        raise ValueError(f"kappa must have a subgradient: one of {known}, or a function c -> subgradient of κ at c, got {kappa!r}")
    if arguments:
        raise ValueError(f"kappa_args belong to kappa='huber'; bind {', '.join(arguments)} to the function itself")
    return Custom(kappa)


@register("lion-k")
class LionK(Optimizer):
    """c = β₁ m + (1 − β₁) g;  θ ← θ − η (∇κ(c) + λ θ);  m ← β₂ m + (1 − β₂) g.

    Solves min f(x) + κ*(λ x) / λ. For a norm κ that is f on the ball of radius 1 / λ of the dual norm: a start outside comes in at the
    rate (1 − η λ) a step and stays. ``constraint_violation`` measures how far outside it is; ``lion_lyapunov`` is the function that
    falls along the flow. λ = 0 means no constraint. The paper's m collects −g; the steps are the same.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-4
    betas : pair of float, default (0.9, 0.99)
    weight_decay : float, default 0
        λ, which sets the constraint.
    kappa : {"l1", "l2", "group", "huber"} or callable, default "l1"
        ``"l1"``: the sign, ‖x‖_∞ ≤ 1 / λ (Lion). ``"l2"``: c / ‖c‖ over each tensor, ‖x‖₂ ≤ 1 / λ. ``"group"``: each row (index of the
        first dimension; each entry of a vector) over its norm, every row of x at most 1 / λ long. ``"huber"``: c / √(c² + e²). Or a
        function from one tensor, c in the paper's sign, to ∇κ(c).
    kappa_args : mapping, optional
        ``{"e": 1e-3}`` for ``"huber"``.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine; ``"group"`` and functions run eagerly.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-2), "weight_decay": LogUniform(1e-4, 10.0)}

    def __init__(self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
                 kappa: str | Callable[[Tensor], Tensor] = "l1", kappa_args: Mapping[str, Any] | None = None,
                 **options: Unpack[EngineOptions]) -> None:
        if not isinstance(kappa_args or {}, Mapping):
            raise ValueError(f"kappa_args must be a mapping such as {{'e': 1e-3}}, got {kappa_args!r}")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        rule = MappedMomentum(kappa=_kappa(kappa, kappa_args or {}))
        super().__init__(params, rule, defaults, move=DecoupledDecay(), **options)


@torch.no_grad()
def constraint_violation(optimizer: Optimizer) -> float:
    """Return the largest max(0, ‖x‖ − 1 / λ) over all parameters, in the dual norm of the optimizer's κ; 0 where λ is 0.

    Parameters
    ----------
    optimizer : LionK or Lion, or XGrad over one of them, whose weights are meant

    Raises
    ------
    TypeError
        Another optimizer, which has no κ.
    ValueError
        κ is a function, whose dual norm is not known.
    """
    direction = optimizer.base.direction if isinstance(optimizer, Over) else getattr(optimizer, "direction", None)
    if not isinstance(direction, MappedMomentum):
        raise TypeError(f"optimizer must be a LionK or a Lion, whose decay is a constraint, got {type(optimizer).__name__}")
    with optimizer.solution():
        return max((max(0.0, float(direction.kappa.dual_norm(p.detach())) - 1 / float(group["weight_decay"]))
                    for group in optimizer.param_groups if group["weight_decay"] for p in group["params"] if p.numel()), default=0.0)


def lion_lyapunov(f: Callable[[Tensor], Tensor], x: Tensor, m: Tensor, kappa: Callable[[Tensor], Tensor],
                  conjugate: Callable[[Tensor], Tensor], *, weight_decay: float, alpha: float = 1.0, gamma: float = 1.0,
                  epsilon: float = 0.0) -> float:
    """Return H = α f(x) + (γ / λ) κ*(λ x) + (1 − ε γ) / (1 + ε λ) · [κ*(λ x) + κ(m) − λ ⟨m, x⟩], which falls along the flow.

    The flow is m' = −α ∇f(x) − γ m,  x' = ∇κ(m − ε (α ∇f(x) + γ m)) − λ x; an ``alpha`` of the loss, a momentum in the paper's sign.

    Parameters
    ----------
    f, kappa, conjugate : callables ``Tensor -> 0-d Tensor``
        The objective, κ, and its convex conjugate κ* (infinite outside its domain).
    x, m : Tensor
    weight_decay : float
        λ > 0; without a constraint there is no H.
    alpha, gamma, epsilon : float
        α, γ > 0, and 0 ≤ ε ≤ 1 / γ.
    """
    check_positive("weight_decay", weight_decay, "with λ = 0 there is no constraint and no such function")
    check_positive("alpha", alpha, "1 is typical")
    check_positive("gamma", gamma, "1 is typical")
    if not (math.isfinite(epsilon) and 0 <= epsilon * gamma <= 1):
        raise ValueError(f"epsilon must be between 0 and 1 / gamma = {1 / gamma:g}, got {epsilon}")
    barrier = conjugate(weight_decay * x)
    gap = barrier + kappa(m) - weight_decay * (m * x).sum()
    weight = (1 - epsilon * gamma) / (1 + epsilon * weight_decay)
    return float(alpha * f(x) + gamma / weight_decay * barrier + weight * gap)
