"""The rules of the survey, with the survey's defaults; ``Add`` moves and coupled weight decay unless said otherwise.

Ruder: An overview of gradient descent optimization algorithms, arXiv 1609.04747. Batch, mini-batch and stochastic gradient descent are
one rule on different data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range, Uniform
from fallline.optim.directions.averages import Averaged, LookAhead, Numerator
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.scalings import DebiasedSquares, Largest, Squares, SummedSquares
from fallline.optim.directions.velocity import HeavyBall, LookAheadBall, UnitFree
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Direction, Displace, Gradient

Betas = tuple[float, float]


@register("sgd")
class SGD(Optimizer):
    """θ ← θ − η g.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.01
    weight_decay : float, default 0
        Added to the gradient as ``weight_decay · θ``, here and in the other rules of this module.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0)}

    def __init__(self, params: Any, lr: float = 0.01, weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, Gradient(), {"lr": lr, "weight_decay": weight_decay}, **options)


class _WithVelocity(Optimizer):
    """The constructor that the two velocities share; ``rule`` is what tells them apart."""

    rule: ClassVar[Direction]
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0), "momentum": Uniform(0.5, 0.99)}

    def __init__(self, params: Any, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, self.rule, defaults, move=Displace(), **options)


@register("momentum")
class Momentum(_WithVelocity):
    """v ← γ v + η g;  θ ← θ − v.

    The learning rate is inside the velocity; ``torch.optim.SGD`` has it outside, which differs only while a schedule changes it.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.01
    momentum : float, default 0.9
        γ.
    weight_decay : float, default 0
    """

    rule = HeavyBall()


@register("nesterov")
class Nesterov(_WithVelocity):
    """v ← γ v + η ∇f(θ − γ v);  θ ← θ − v.

    The parameters hold θ − γ v, where the next gradient is taken; ``with opt.solution():`` shows θ. Parameters as in ``Momentum``.
    """

    rule = LookAheadBall()


@register("adagrad")
class Adagrad(Optimizer):
    """θ ← θ − η g / √(Σ g² + ε).

    ``torch.optim.Adagrad`` adds ε = 1e-10 outside the root.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.01
    eps : float, default 1e-8
    weight_decay : float, default 0
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0)}

    def __init__(self, params: Any, lr: float = 0.01, eps: float = 1e-8, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, Quotient(Numerator(), SummedSquares()), defaults, **options)


@register("adadelta")
class Adadelta(Optimizer):
    """Δ = −√(E[Δ²]_{t−1} + ε) / √(E[g²]_t + ε) · g;  θ ← θ + η Δ.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1
        The method has none; 1 is the method.
    rho : float, default 0.9
    eps : float, default 1e-6
    weight_decay : float, default 0
    """

    space: ClassVar[Mapping[str, Range]] = {}

    def __init__(self, params: Any, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, UnitFree(), {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}, **options)


@register("rmsprop")
class RMSprop(Optimizer):
    """E ← γ E + (1 − γ) g²;  θ ← θ − η g / √(E + ε).

    ``torch.optim.RMSprop`` has γ = 0.99 and ε outside the root.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.001
    rho : float, default 0.9
        γ.
    eps : float, default 1e-8
    weight_decay : float, default 0
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, lr: float = 1e-3, rho: float = 0.9, eps: float = 1e-8, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, Quotient(Numerator(), Squares()), defaults, **options)


class _WithBetas(Optimizer):
    """The constructor that Adam and its relatives share; ``rule`` is what tells them apart."""

    rule: ClassVar[Quotient]
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-5, 1e-1)}

    def __init__(self, params: Any, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, self.rule, defaults, **options)


@register("adam")
class Adam(_WithBetas):
    """m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  θ ← θ − η m̂ / (√v̂ + ε).

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.001
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
        Coupled (added to the gradient); ``AdamW`` decouples it.
    """

    rule = Quotient(Averaged(), DebiasedSquares())


@register("adamax")
class AdaMax(_WithBetas):
    """m ← β₁ m + (1 − β₁) g;  u ← max(β₂ u, |g| + ε);  θ ← θ − η m̂ / u.

    ε keeps u positive where a gradient is always 0; the survey leaves it out.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.002
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
    """

    rule = Quotient(Averaged(), Largest())

    def __init__(self, params: Any, lr: float = 2e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)


@register("nadam")
class Nadam(_WithBetas):
    """θ ← θ − η (β₁ m̂ + (1 − β₁) g / (1 − β₁ᵗ)) / (√v̂ + ε), m and v as in Adam.

    ``torch.optim.NAdam`` schedules β₁ as in a later version of the method.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.002
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
    """

    rule = Quotient(LookAhead(), DebiasedSquares())

    def __init__(self, params: Any, lr: float = 2e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)
