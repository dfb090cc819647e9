"""FRUGAL and GaLore: state in a subspace of every matrix.

    g_full = P g;   u = Pᵀ Adam(g_full) + s · sign(g − Pᵀ P g);   W ← W − η u

Zmushko, Beznosikov, Takáč, Horváth: FRUGAL, ICML 2025, arXiv 2411.07837.
Zhao et al.: GaLore, ICML 2024, arXiv 2403.03507.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, Unpack

import torch
from torch import Tensor, nn

from fallline.core.keys import Key
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.subspace import PROJECTORS, InSubspace, Projector, Renewal, Rest, Restarted, Stateless
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay, Direction
from fallline.optim.engine.roles import roles

Selector = Literal["blockwise", "svd", "columns", "randk", "random"]


class _BySubspace(Optimizer):
    """Matrices by a subspace rule, everything else by Adam; groups tell them apart by their role, or their dimensions."""

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1e-1)}

    def __init__(self, params: Any, matrices: Direction, defaults: dict[str, Any], options: EngineOptions) -> None:
        self.others = Quotient()
        super().__init__(params, matrices, defaults, move=DecoupledDecay(), **options)

    @classmethod
    def for_model(cls, model: nn.Module, **hyperparameters: Any) -> Self:
        """Make the optimizer of a network: embeddings, head, norms and biases keep full state."""
        return cls(roles(model), **hyperparameters)

    def is_matrix(self, p: Tensor, group: Mapping[str, Any]) -> bool:
        """Whether the subspace rule applies: role "matrix", or at least two dimensions where no role is given."""
        return bool(group["role"] == "matrix" if "role" in group else p.ndim >= 2)

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        return self.direction if self.is_matrix(p, group) else self.others

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "others": self.others}


@register("frugal")
class Frugal(_BySubspace):
    """u = Pᵀ Adam(P g) + s · sign(g − Pᵀ P g) for matrices, Adam for the rest;  W ← (1 − η λ) W − η u.

    A new subspace every ``update_gap`` steps; the old state is discarded by default, and Adam's debiasing starts anew. Groups
    with ``role`` (from ``roles(model)``, or ``Frugal.for_model(model)``) tell matrices from embeddings and the head; without roles
    every tensor of two or more dimensions is a matrix.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    density : float, default 0.25
        Share ρ of the state that is kept; 0 is sign descent on matrices.
    update_gap : int, default 200
    selector : {"blockwise", "svd", "columns", "randk", "random"}, default "blockwise"
        Whole matrices in turn; the gradient's top singular vectors; random columns, entries, orthonormal directions. The paper's
        blocks are whole transformer blocks; here each matrix is one, and ``density`` counts matrices, not their entries.
    free : {"sign", "sgd"}, default "sign"
        What the rest gets.
    free_lr_scale : float, default 1
        s; 0.1 for fine-tuning.
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
    rank : int, optional
        Dimensions of the subspace, instead of ``density``.
    seed : int, default 0
        Of the subspaces and of the order of blocks.
    renewal : {"discard", "reproject"}, default "discard"
        What becomes of the state when the subspace changes; blocks always discard it.
    """

    def __init__(self, params: Any, lr: float = 1e-3, density: float = 0.25, update_gap: int = 200,
                 selector: Selector = "blockwise", free: Literal["sign", "sgd"] = "sign", free_lr_scale: float = 1.0,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
                 rank: int | None = None, seed: int = 0, renewal: Renewal = "discard", **options: Unpack[EngineOptions]) -> None:
        _check(density, update_gap, rank)
        if selector != "blockwise" and selector not in PROJECTORS:
            raise ValueError(f"selector must be 'blockwise', {', '.join(map(repr, PROJECTORS))}, got {selector!r}")
        if free not in ("sign", "sgd"):
            raise ValueError(f"free must be 'sign' or 'sgd', got {free!r}")
        if renewal not in ("discard", "reproject") or (renewal == "reproject" and selector == "blockwise"):
            raise ValueError(f"renewal must be 'discard', or 'reproject' with a selector other than 'blockwise', got {renewal!r}")
        self.density, self.gap, self.seed, self.blockwise = density, update_gap, seed, selector == "blockwise"
        matrices: Direction = Stateless(free)
        if not self.blockwise:
            matrices = InSubspace(PROJECTORS[selector](density, rank), Quotient(), update_gap, free, renewal, seed)
        self.stateful = Restarted(Quotient(), update_gap)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "free_lr_scale": free_lr_scale}
        super().__init__(params, matrices, defaults, options)

    def __getstate__(self) -> dict[str, Any]:
        own = ("density", "gap", "seed", "blockwise", "stateful")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def _forget(self) -> None:
        super()._forget()
        self._period, self._in_turn = -1, set[int]()  # whose turn it is follows from the step count

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        direction = super().direction_for(p, group)
        return self.stateful if self.blockwise and direction is self.direction and id(p) in self._in_turn else direction

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self.blockwise:
            self._take_turns()
        return super().step(closure)

    def _take_turns(self) -> None:
        """At the start of a period, give state to the next matrices in a random order and take it from the others."""
        matrices = [p for group in self.param_groups for p in group["params"] if self.is_matrix(p, group)]
        taken = max((int(self.state[p].get("step", 0)) for p in matrices if p in self.state), default=0)
        period = taken // self.gap
        if period == self._period:
            return
        chosen = round(self.density * len(matrices))
        turns = [matrices[self._order((period * chosen + i) // len(matrices), len(matrices))[(period * chosen + i) % len(matrices)]]
                 for i in range(chosen)]
        in_turn = {id(p) for p in turns}
        for p in matrices:
            if p in self.state and (taken % self.gap == 0 or id(p) not in in_turn):
                self.state[p] = {"step": self.state[p]["step"]}
        self._period, self._in_turn, self._plan = period, in_turn, None

    def _order(self, cycle: int, count: int) -> list[int]:
        return torch.randperm(count, generator=Key(self.seed).fold("blocks", cycle).generator()).tolist()


@register("galore")
class GaLore(_BySubspace):
    """u = s · Pᵀ Adam(P g) for matrices, P the gradient's top singular vectors; Adam for the rest.

    The state stays when the subspace changes, as its authors have it. Roles as in ``Frugal``.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
    rank : int, default 128
    update_gap : int, default 200
    scale : float, default 1
        s; the authors' code uses 0.25 for pre-training.
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
    """

    def __init__(self, params: Any, lr: float = 1e-3, rank: int = 128, update_gap: int = 200, scale: float = 1.0,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        _check(1.0, update_gap, rank)
        projector: Projector = PROJECTORS["svd"](rank=rank)
        rest: Rest = "nothing"
        matrices = InSubspace(projector, Quotient(), update_gap, rest, "keep", scale=scale)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, matrices, defaults, options)


def _check(density: float, update_gap: int, rank: int | None) -> None:
    check("density", density)
    check("update_gap", update_gap)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a whole number of at least 1, got {rank!r}; density=0 keeps no state on matrices")
