"""Composite stochastic mirror descent: a gradient step, and a proximal map or another geometry instead of the Euclidean one.

    x⁺ = argmin_z h(z) + ⟨g, z − x⟩ + D_ψ(z, x) / η

Euclidean: prox_{η h}(x − η g). The answer is the last point, no average. Liu, Zhou: Revisiting the Last-Iterate Convergence of
Stochastic Gradient Methods, ICLR 2024, arXiv 2312.08531.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fallline.core.registry import register
from fallline.core.sets import NonNegative, Simplex
from fallline.core.space import LogUniform, Range
from fallline.core.terms import L1, Scaled, Term
from fallline.optim.engine.layout import is_sharded
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Add, Direction, Gradient, Move, Tensors
from fallline.optim.engine.state import working_dtype
from fallline.optim.moves import EntropicMirror, Mirror, PNormMirror, Proximal

Geometry = Literal["euclidean", "entropy", "p-norm"]


@dataclass(frozen=True)
class WholeGradient(Direction):
    """u = g, with parameters in their own shape for a move that must see all of one."""

    scope = "matrix"
    is_gradient = True

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape or (1,)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return g, {}


@register("composite-smd")
class CompositeSMD(Optimizer):
    """x⁺ = prox_{η h}(x − η g); on the simplex x⁺ ∝ x exp(−η g); in the p-norm's geometry ∇ψ(x⁺) = ∇ψ(x) − η g.

    No state. Steps come from a schedule: ``LastIterate`` makes the last point as good as an average. Sparse solutions are exact: after
    an ℓ1 proximal step entries are 0 and not small. Without term and geometry it is gradient descent.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.1
        η.
    prox : Term, optional
        h, a term of ``fallline.core.terms`` or a set of ``fallline.core.sets``, or your own subclass of ``Term``; applied to each
        parameter by itself. None: h = 0. With ``mirror="p-norm"`` it may be ``L1`` or ``NonNegative``, whose step has a closed form
        there; with ``mirror="entropy"`` the simplex is the set, and there is no term.
    mirror : {"euclidean", "entropy", "p-norm"}, default "euclidean"
        ψ = ‖x‖² / 2, Σ x log x, or ‖x‖_p² / (2 (p − 1)). For "entropy" parameters must start on the simplex, and inside of it: entries
        at 0 are taken for the smallest positive number.
    dim : int, optional
        For the mirrors: the dimension of each parameter that forms a vector; None, the default, takes all of a parameter for one. Terms
        and sets have a ``dim`` of their own.
    p : float, default 1.5
        Of the p-norm, in (1, 2]; 2 is the Euclidean geometry, 1 + 1 / log d suits sparse solutions in d dimensions.
    weight_decay : float, default 0
        Added to the gradient.
    **options
        ``compile`` (without term and geometry), ``nonfinite``, ``maximize``, ``storage`` of the engine.

    Raises
    ------
    TypeError, ValueError
        For a term without a proximal map, a pair of term and geometry without a closed form, parameters off the simplex, or an ``lr``
        at which the proximal map of a term that is not convex is not unique.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 10.0)}

    def __init__(self, params: Any, lr: float = 0.1, prox: Term | None = None, mirror: Geometry = "euclidean", dim: int | None = None,
                 p: float = 1.5, weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        move = _move(prox, mirror, dim, p)
        direction = Gradient() if type(move) is Add else WholeGradient()
        super().__init__(params, direction, {"lr": lr, "weight_decay": weight_decay}, move=move, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        move = self.sentence.move
        if isinstance(move, Mirror) and move.dim is not None:
            for index, p in enumerate(group["params"]):
                if not -p.ndim <= move.dim < p.ndim:
                    raise ValueError(f"dim={move.dim} is no dimension of parameter number {index} of its group with shape "
                                     f"{tuple(p.shape)}")
        if isinstance(move, EntropicMirror):
            _check_simplex(group["params"], move.dim)
        if isinstance(move, Proximal) and float(group["lr"]) * move.term.weak_convexity >= 1:
            raise ValueError(f"lr must be below {1 / move.term.weak_convexity:g}, where the proximal map of {move.term!r} stops being "
                             f"unique, got {float(group['lr']):g}")


def _move(prox: Term | None, mirror: str, dim: int | None, p: float) -> Move:
    if prox is not None and not isinstance(prox, Term):
        raise TypeError(f"prox must be a Term such as L1(0.1), or a set, with value(x) and prox(x, step), got {prox!r}")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
        raise ValueError(f"dim must be a dimension of the parameters, or None for all of each, got {dim!r}")
    if mirror == "euclidean":
        return Add() if prox is None else Proximal(prox)
    if mirror == "entropy":
        if prox is not None:
            raise ValueError(f"prox must be None with mirror='entropy', got {prox!r}: its step has no closed form there. The simplex "
                             "is kept anyway; give mirror='euclidean' for a term")
        return EntropicMirror(dim)
    if mirror != "p-norm":
        raise ValueError(f"mirror must be 'euclidean', 'entropy' or 'p-norm', got {mirror!r}")
    if not 1 < p <= 2:
        raise ValueError(f"p must be in (1, 2], got {p!r}; 1 + 1 / log(d) suits sparse solutions in d dimensions")
    if prox is not None and not isinstance(prox.term if isinstance(prox, Scaled) else prox, L1 | NonNegative):
        raise ValueError(f"prox must be L1 or NonNegative with mirror='p-norm', got {prox!r}: the step of others has no closed form "
                         "there; give mirror='euclidean'")
    return PNormMirror(dim, p, prox)


def _check_simplex(params: list[Tensor], dim: int | None) -> None:
    for index, p in enumerate(params):
        if is_sharded(p) or not p.numel():
            continue
        x = p.detach().to(working_dtype(p.dtype))
        if not Simplex(dim=dim).contains(x.reshape(x.shape or (1,)), tol=torch.finfo(p.dtype).eps ** (2 / 3)):
            raise ValueError(f"mirror='entropy' needs parameters that start on the simplex, and parameter number {index} of its group "
                             f"with shape {tuple(p.shape)} is not; start at torch.full_like(p, 1 / d), or at a softmax")
