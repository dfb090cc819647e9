"""FRUGAL and GaLore: state in a subspace of every matrix.

    g_full = P g;   u = Pᵀ Adam(g_full) + s · sign(g − Pᵀ P g);   W ← W − η u

Zmushko, Beznosikov, Takáč, Horváth: FRUGAL, ICML 2025, arXiv 2411.07837.
Zhao et al.: GaLore, ICML 2024, arXiv 2403.03507.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self, Unpack

from torch import Tensor, nn

from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.by_role import ByRole
from fallline.optim.directions.quotient import Quotient
from fallline.optim.directions.subspace import (
    PROJECTORS,
    InSubspace,
    Order,
    Projector,
    Renewal,
    Rest,
    Restarted,
    Stateless,
    blocks_in_turn,
)
from fallline.optim.engine.hyperparameters import check
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import Direction
from fallline.optim.engine.roles import roles

Selector = Literal["blockwise", "svd", "columns", "randk", "random"]
COUNTS = frozenset({"step", "since", "period"})
"""What a matrix without averages keeps: its steps, how many it had when the period began, and which period it was."""


class _BySubspace(ByRole):
    """Matrices by a subspace rule, everything else by a rule with full state."""

    rearranges: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1e-1)}


@register("frugal")
class Frugal(_BySubspace):
    """u = Pᵀ Adam(P g) + s · sign(g − Pᵀ P g) for matrices, Adam for the rest;  W ← (1 − η λ) W − η u.

    A new subspace every ``update_gap`` steps; the old state is discarded by default, and Adam's debiasing starts anew. Groups
    with ``role`` (from ``roles(model)``, or ``Frugal.for_model(model)``) tell matrices from embeddings and the head; without roles
    every tensor of two or more dimensions is a matrix.

    Parameters
    ----------
    params : iterable of Tensor or dict
        Groups may have a ``block``, a number or name: their matrices have their turn together (``selector="blockwise"``).
    lr : float, default 1e-3
    density : float, default 0.25
        Share ρ of the state that is kept, at least one dimension (or block) if positive; 0 is sign descent on matrices.
    update_gap : int, default 200
    selector : {"blockwise", "svd", "columns", "randk", "random"}, default "blockwise"
        Whole blocks in turn; the gradient's top singular vectors; random columns, entries, orthonormal directions. The paper's
        blocks are whole transformer blocks: name them by ``block``, or by ``Frugal.for_model(model, blocks=model.layers)``. Every
        matrix without one is a block of its own. ``density`` counts blocks, not their entries.
    free : {"sign", "sgd"}, default "sign"
        What the rest gets.
    free_lr_scale : float, default 1
        s; 0.1 for fine-tuning.
    betas : pair of float, default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 0
    rank : int, optional
        Dimensions of the subspace, instead of ``density``; not for blocks.
    seed : int, default 0
        Of the subspaces and of the order of blocks.
    renewal : {"discard", "reproject"}, default "discard"
        What becomes of the state when the subspace changes; blocks always discard it.
    full : Direction, optional
        The elementwise rule with state, made of ``betas`` and ``eps``; Adam by default.
    order : {"random", "ascending"}, default "random"
        Of blocks.
    """

    def __init__(self, params: Any, lr: float = 1e-3, density: float | None = None, update_gap: int = 200,
                 selector: Selector = "blockwise", free: Literal["sign", "sgd"] = "sign", free_lr_scale: float = 1.0,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
                 rank: int | None = None, seed: int = 0, renewal: Renewal = "discard", full: Direction | None = None,
                 order: Order = "random", **options: Unpack[EngineOptions]) -> None:
        blockwise = selector == "blockwise"
        if not blockwise and selector not in PROJECTORS:
            raise ValueError(f"selector must be 'blockwise', {', '.join(map(repr, PROJECTORS))}, got {selector!r}")
        if rank is not None:
            _check_rank(rank)
            if density is not None or blockwise:
                raise ValueError(f"rank={rank} has no effect with {'blocks' if blockwise else f'density={density}'}: pass rank alone "
                                 "and selector='svd', 'columns', 'randk' or 'random', or density alone")
        if free not in ("sign", "sgd"):
            raise ValueError(f"free must be 'sign' or 'sgd', got {free!r}")
        if renewal not in ("discard", "reproject") or (renewal == "reproject" and blockwise):
            raise ValueError(f"renewal must be 'discard', or 'reproject' with a selector other than 'blockwise', got {renewal!r}")
        if order not in ("random", "ascending") or (order == "ascending" and not blockwise):
            raise ValueError(f"order must be 'random', or 'ascending' with selector='blockwise', got {order!r}")
        density = 0.25 if density is None else density
        check("density", density)
        check("seed", seed)
        check("update_gap", update_gap)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "free_lr_scale": free_lr_scale, "block": None}
        full = Quotient() if full is None else full
        _check_full(full, defaults)
        self.density, self.gap, self.seed, self.blockwise, self.order = density, update_gap, seed, blockwise, order
        matrices: Direction = Stateless(free)
        if not blockwise:
            matrices = InSubspace(PROJECTORS[selector](density, rank), full, update_gap, free, renewal, seed)
        super().__init__(params, matrices, full, defaults, options)

    @classmethod
    def for_model(cls, model: nn.Module, blocks: Iterable[nn.Module] = (), **hyperparameters: Any) -> Self:
        """Make the optimizer of a network: embeddings, head, norms and biases keep full state.

        Parameters
        ----------
        model : nn.Module
        blocks : iterable of nn.Module, optional
            Parts of the model, such as its transformer blocks, whose matrices have their turn together.
        **hyperparameters
            Of the constructor.
        """
        place = {id(p): i for i, block in enumerate(blocks) for p in block.parameters()}
        groups = []
        for group in roles(model):
            parts: dict[int | None, list[Tensor]] = {}
            for p in group["params"]:
                parts.setdefault(place.get(id(p)) if group["role"] == "matrix" else None, []).append(p)
            groups += [{**group, "params": part, "block": block} for block, part in parts.items()]
        return cls(groups, **hyperparameters)

    def __getstate__(self) -> dict[str, Any]:
        own = ("density", "gap", "seed", "blockwise", "order")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def _forget(self) -> None:
        super()._forget()
        self._turns: dict[int, int] | None = None  # with all that follows from the states: see _deal
        self._matrices: list[Tensor] = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._turns = None

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        direction = super().direction_for(p, group)
        if direction is self.direction and self._turns is not None and id(p) in self._turns:
            return Restarted(self.others, self.gap, self._turns[id(p)])
        return direction

    # whose turn it is

    def before_step(self) -> None:
        if not self.blockwise or (self._turns is not None and not any(self._ended(self.state.get(p, {})) for p in self._matrices)):
            return
        own = self._own()
        self._turns, new = self._deal({i: self.state[p] for i, p in enumerate(own) if p in self.state})
        self._matrices = [own[i] for block in self._blocks() for i in block]
        self._plan = None
        for i, state in new.items():
            self.state[own[i]] = state

    def _own(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _ended(self, state: Mapping[str, Any]) -> bool:
        return bool(state.get("step", 0) - state.get("since", 0) >= self.gap)

    def _blocks(self) -> list[list[int]]:
        """The positions of the matrices, block by block."""
        blocks: dict[Any, list[int]] = {}
        members = [(p, group) for group in self.param_groups for p in group["params"]]
        for i, (p, group) in enumerate(members):
            if self.is_matrix(p, group):
                blocks.setdefault((i,) if group["block"] is None else group["block"], []).append(i)
        return list(blocks.values())

    def _deal(self, states: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, int], dict[int, dict[str, Any]]]:
        """Whose turn it is, with the phase of their debiasing, by ``id``; and the states that begin or end a turn, by position.

        A period ends when a matrix has taken ``gap`` steps in it. One that missed gradients has a count of its own, hence ``since``.
        """
        blocks = self._blocks()
        matrices = [i for block in blocks for i in block]
        known = {i: states[i] for i in matrices if states.get(i)}
        ended = any(self._ended(state) for state in known.values())
        period = max((state.get("period", 0) for state in known.values()), default=0) + ended
        chosen = {i for b in blocks_in_turn(period, len(blocks), self.density, self.order, self.seed) for i in blocks[b]}
        new = {}
        for i, state in known.items():
            if ended or bool(state.keys() - COUNTS) != (i in chosen):
                since = state["step"] if ended or i in chosen else state.get("since", 0)
                new[i] = {"step": state["step"], "since": since, "period": period}
        own = self._own()
        return {id(own[i]): new.get(i, known.get(i, {})).get("since", 0) % self.gap for i in chosen}, new

    # the pure form: turns follow from the states given

    @contextmanager
    def _dealt(self, turns: dict[int, int]) -> Iterator[None]:
        kept, self._turns = self._turns, turns
        try:
            yield
        finally:
            self._turns = kept

    def init(self, params: Iterable[Tensor]) -> list[dict[str, Any]]:
        with self._dealt(self._deal({})[0] if self.blockwise else {}):
            return super().init(params)

    def update(self, params: Iterable[Tensor], gradients: Iterable[Tensor | None], state: Iterable[Mapping[str, Any]], *,
               loss: Any = None, **hyperparameters: Any) -> tuple[list[Tensor], list[dict[str, Any]]]:
        if not self.blockwise:
            return super().update(params, gradients, state, loss=loss, **hyperparameters)
        params, states = list(params), list(state)
        turns, new = self._deal(dict(enumerate(states)))
        with self._dealt(turns):
            if new:
                started = super().init(params)
                states = [{**started[i], **new[i]} if i in new else s for i, s in enumerate(states)]
            return super().update(params, gradients, states, loss=loss, **hyperparameters)


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
        _check_rank(rank)
        check("update_gap", update_gap)
        projector: Projector = PROJECTORS["svd"](rank=rank)
        rest: Rest = "nothing"
        matrices = InSubspace(projector, Quotient(), update_gap, rest, "keep", scale=scale)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, matrices, Quotient(), defaults, options)


def _check_rank(rank: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number of at least 1, got {rank!r}; Frugal(density=0) keeps no state on matrices")


def _check_full(full: Direction, defaults: Mapping[str, Any]) -> None:
    if not isinstance(full, Direction) or full.scope != "elementwise":
        raise TypeError(f"full must be an elementwise Direction, such as Quotient() or MappedMomentum(), got {full!r}")
    try:
        full.coefficients(defaults, 1)
    except KeyError as missing:
        raise ValueError(f"full={full!r} needs the hyperparameter {missing}, and groups here have {', '.join(defaults)}") from None
