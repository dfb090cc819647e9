"""Accelerated stochastic descent by two coupled sequences.

    y = w + τ (v − w);   w ← y − η_w d(g);   v ← κ v + (1 − κ) y − η_v g,   with g a stochastic gradient at y

With coefficients from an estimate sequence, for problems that interpolate: Mishkin, Pilanci, Schmidt: Faster Convergence of Stochastic
Accelerated Gradient Descent under Interpolation, arXiv 2404.02378. With constant ones and a tail average, for linear regression:
Li, Deng, Wu, Zhou, Gu: Risk Bounds of Accelerated SGD for Overparameterized Linear Regression, arXiv 2311.14222.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack, get_args

from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.coupled import ConstantCoupling, EstimateSequence, Variant
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Direction, Displace, Gradient


@register("stochastic-agd")
class StochasticAGD(Optimizer):
    """w ← y − d / (ρ L);  v ← [(1 − α) γ v + α μ y − α g] / γ⁺;  γ⁺ = (1 − α) γ + α μ;  y = w + α γ / (γ + α μ) (v − w).

    α solves α² = η_d γ⁺ with η_d = 1 / (ρ² L). Made for strong growth, E‖∇f(w, z)‖² ≤ ρ ‖∇f(w)‖², which needs a model that fits every
    sample: where none does, v amplifies the noise that is left. ``estimate_growth`` measures ρ, L and μ, ``acceleration_advice`` says
    what to expect of them. The parameters hold y, where the next gradient is taken; ``with opt.solution():`` shows w.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1
        Multiplies the gradient in both steps: 1 is the method, a schedule may lower it.
    smoothness : float, default 100
        L, of the expected loss.
    mu : float, default 0.25
        μ, strong convexity; 0 where there is none.
    growth : float, default 1
        ρ ≥ 1; 1 is exact gradients, and then this is Nesterov's method.
    gamma0 : float, optional
        γ₀; μ by default, which makes all coefficients constant, or L where μ is 0.
    variant : {"conservative", "abstract"}, default "conservative"
        η_d = 1 / (ρ² L), or the paper's abstract's 1 / (ρ L), whose rate is better by √ρ and which may diverge: it does for the
        least squares of isotropic Gaussian features, where that rate would beat the information limit.
    primal : "sgd" or Direction, default "sgd"
        What the step of w is made of: d = g, or an elementwise direction such as ``Quotient()``, Adam's.
    betas, eps
        For such a direction; default (0.9, 0.999) and 1e-8.
    weight_decay : float, default 0
        Added to the gradient as ``weight_decay · y``.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.

    Raises
    ------
    ValueError
        If μ > L, ρ < 1, or the primal direction needs a hyperparameter that groups here do not have.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-2, 1e2), "mu": LogUniform(1e-2, 10.0)}

    def __init__(self, params: Any, lr: float = 1.0, smoothness: float = 100.0, mu: float = 0.25, growth: float = 1.0,
                 gamma0: float | None = None, variant: Variant = "conservative", primal: Literal["sgd"] | Direction = "sgd",
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        if variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {', '.join(map(repr, get_args(Variant)))}, got {variant!r}")
        defaults = {"lr": lr, "smoothness": smoothness, "mu": mu, "growth": growth, "gamma0": gamma0, "betas": betas, "eps": eps,
                    "weight_decay": weight_decay}
        direction = EstimateSequence(_direction(primal, defaults), variant)
        super().__init__(params, direction, defaults, move=Displace(), **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        if group["mu"] > group["smoothness"]:
            raise ValueError(f"mu must be at most smoothness, got {group['mu']} and {group['smoothness']}: no function is more "
                             "strongly convex than it is smooth")


def _direction(primal: Literal["sgd"] | Direction, defaults: Mapping[str, Any]) -> Direction:
    if isinstance(primal, str) and primal == "sgd":
        return Gradient()
    if not isinstance(primal, Direction) or primal.scope != "elementwise" or primal.reduces:
        raise TypeError(f"primal must be 'sgd' or an elementwise Direction such as Quotient(), got {primal!r}")
    if type(primal).probe is not Direction.probe:
        raise TypeError(f"primal must need gradients only, got {primal!r}, which asks for more")
    try:
        primal.coefficients(defaults, 1)
    except KeyError as missing:
        raise ValueError(f"primal={primal!r} needs the hyperparameter {missing}, and groups here have {', '.join(defaults)}") from None
    return primal


@register("accelerated-sgd")
class AcceleratedSGD(Optimizer):
    """u = α w + (1 − α) v;  w ← u − δ g(u);  v ← β u + (1 − β) v − γ g(u);  the answer is the mean of w over the last steps.

    Compared with gradient descent at δ the error falls faster in directions of small curvature and slower in those of large, and noise
    costs more: ``risk_report`` says for a spectrum which side wins, ``asgd_parameters`` gives the numbers to put in here. At γ = δ this
    is gradient descent. ``torch.optim.ASGD`` is another method, averaged gradient descent. The parameters hold u;
    ``with opt.solution():`` shows the tail average, or w.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1
        Multiplies both steps: 1 is the method, a schedule may lower it.
    primal_step : float, default 0.01
        δ; at most 1 / (2 ψ tr H) with H the features' covariance and ψ = 3 for Gaussian ones.
    dual_step : float, default 0.1
        γ ≥ δ.
    beta : float, default 0.05
        β in [0, 1).
    alpha : float, optional
        α in (0, 1]; 1 / (1 + β) by default.
    tail_start : int, optional
        s: the answer is the mean of w over all steps after the s-th, before that the newest w. By default there is no mean and the
        answer is w. 0 is the mean over the whole run, which keeps the start in the answer and forfeits the acceleration.
    weight_decay : float, default 0
        Added to the gradient as ``weight_decay · u``.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.

    Raises
    ------
    ValueError
        If γ < δ, or α is not in (0, 1].
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-2, 1e2), "beta": LogUniform(1e-3, 0.3)}

    def __init__(self, params: Any, lr: float = 1.0, primal_step: float = 0.01, dual_step: float = 0.1, beta: float = 0.05,
                 alpha: float | None = None, tail_start: int | None = None, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        defaults = {"lr": lr, "primal_step": primal_step, "dual_step": dual_step, "beta": beta, "alpha": alpha,
                    "tail_start": tail_start, "weight_decay": weight_decay}
        super().__init__(params, ConstantCoupling(averages=tail_start is not None), defaults, move=Displace(), **options)

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return ConstantCoupling(averages=group["tail_start"] is not None)

    def check_group(self, group: Mapping[str, Any]) -> None:
        if group["dual_step"] < group["primal_step"]:
            raise ValueError(f"dual_step must be at least primal_step, got {group['dual_step']} and {group['primal_step']}; "
                             "equal ones are gradient descent")
        if group["alpha"] is not None and not 0 < group["alpha"] <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {group['alpha']!r}; 1 / (1 + beta) is the paper's")
