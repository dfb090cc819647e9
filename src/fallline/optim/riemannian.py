"""Riemannian Adam and Adagrad, on geoopt's manifolds.

    m ← β₁ τ + (1 − β₁) g;   v ← β₂ v + (1 − β₂) ‖g‖²_x;   v̂ ← max(v̂, v);   x⁺ = exp_x(−η m / (√v̂ + ε));   τ = m carried to x⁺

g is the Riemannian gradient, and there is one v for each component of the product. Bécigneul, Ganea: Riemannian Adaptive Optimization
Methods, ICLR 2019, arXiv 1810.00760.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.riemannian import (
    Geodesic,
    LargestRiemannianMoments,
    OnManifold,
    Retraction,
    RiemannianMoments,
    RiemannianSum,
    parallel_transport,
)
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Add, Direction, Move


class _Riemannian(Optimizer):
    """What both share: each parameter's manifold, checked at the first step, and the move along it."""

    positive: ClassVar[Mapping[str, str]] = {"eps": "components without gradient would be 0 / 0; 1e-10 is typical"}
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0)}

    retraction: bool

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "retraction": self.retraction}

    def rule(self, manifold: Any) -> OnManifold:
        """The direction on a manifold, or without one."""
        raise NotImplementedError

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return self.rule(getattr(p, "manifold", None))

    def move_for(self, p: Tensor, group: Mapping[str, Any]) -> Move:
        manifold = getattr(p, "manifold", None)
        return Add() if manifold is None else (Retraction if self.retraction else Geodesic)(manifold)

    def _check_complete(self, manifold: Any, x: Tensor) -> None:
        try:
            state = self.rule(manifold).init(x)
            if "exp_avg" in state and x.numel():
                parallel_transport(manifold, x, x, torch.zeros_like(x))
        except NotImplementedError:
            raise TypeError(f"{type(self).__name__} needs norms of components and a transport between two points, and geoopt's "
                            f"{manifold.name} manifold lacks one of them; EuclideanStiefel has both") from None

    def check_group(self, group: Mapping[str, Any]) -> None:
        for index, p in enumerate(group["params"]):
            manifold: Any = getattr(p, "manifold", None)
            inside, why = (True, "") if manifold is None else manifold.check_point_on_manifold(p.detach(), explain=True)
            if not inside:
                raise ValueError(f"{type(self).__name__}: parameter number {index} of its group with shape {tuple(p.shape)} is not on "
                                 f"its manifold {manifold.name}: {why}; make it of a point that is, with "
                                 "geoopt.ManifoldParameter(manifold.projx(x), manifold)")
            if manifold is not None:
                self._check_complete(manifold, p.detach())


@register("riemannian-adam")
class RiemannianAdam(_Riemannian):
    """x⁺ = exp_x(−η m / (√v̂ + ε)), m ← β₁ τ + (1 − β₁) g, v ← β₂ v + (1 − β₂) ‖g‖²_x, v̂ ← max(v̂, v), τ = m carried to x⁺.

    One v for each component: a point of a sphere or a ball (rows of a table of embeddings), an entry of a plain parameter, which is a
    product of lines, where the rule is AMSGrad without debiasing. ``amsgrad=False`` debiases m and v instead (RAdam).
    ``geoopt.optim.RiemannianAdam`` debiases in both cases.

    Parameters
    ----------
    params : iterable of Tensor or dict
        ``geoopt.ManifoldParameter(data, manifold)`` (``pip install 'fallline[manifolds]'``) and plain parameters, mixed as you like.
        On spheres the average is carried along great circles; on other manifolds by their own ``transp``, which is a projection for
        ``EuclideanStiefel``. Manifolds without one (``Stiefel()``, which is the canonical one) are refused, and complex ones.
    lr : float, default 1e-3
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-10
    amsgrad : bool, default True
    retraction : bool, default False
        The manifold's retraction in place of the exponential map.
    weight_decay : float, default 0
        Added to the Euclidean gradient.
    **options
        ``compile`` (for plain parameters), ``nonfinite``, ``maximize``, ``storage`` of the engine.
    """

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-10,
                 amsgrad: bool = True, retraction: bool = False, weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        self.retraction, self.amsgrad = retraction, amsgrad
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, self.rule(None), defaults, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "amsgrad": self.amsgrad}

    def rule(self, manifold: Any) -> OnManifold:
        return (LargestRiemannianMoments if self.amsgrad else RiemannianMoments)(manifold)


@register("riemannian-adagrad")
class RiemannianAdagrad(_Riemannian):
    """v ← v + ‖g‖²_x;  x⁺ = exp_x(−η g / (√v + ε)). Parameters as in ``RiemannianAdam``, without ``betas`` and ``amsgrad``."""

    def __init__(self, params: Any, lr: float = 1e-2, eps: float = 1e-10, retraction: bool = False, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        self.retraction = retraction
        super().__init__(params, self.rule(None), {"lr": lr, "eps": eps, "weight_decay": weight_decay}, **options)

    def rule(self, manifold: Any) -> OnManifold:
        return RiemannianSum(manifold)
