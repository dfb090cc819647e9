"""Distributed Shampoo: every block of every parameter belongs to one process, which keeps its state and computes its step.

    L ← β₂ L + (1 − β₂) G Gᵀ,  R likewise;   m ← β₁ m + (1 − β₁) G;   U = (L̂ + ε I)^{−1/4} m̂ (R̂ + ε I)^{−1/4}
    u = U ‖D‖ / ‖U‖,  D = m̂ / (√v̂ + ε_D);   all gather u + λ W;   W ← W − η (u + λ W)

Shi, Lee, Iwasaki, Gallego-Posada, Li, Rangadurai, Mudigere, Rabbat: A Distributed Data-Parallel PyTorch Implementation of the
Distributed Shampoo Optimizer for Training Neural Networks At-Scale, arXiv 2309.06497.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn, Unpack, cast

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.averages import Averaged
from fallline.optim.directions.kronecker.blocks import Blocked, all_blocks, block_sizes, of_blocks
from fallline.optim.directions.kronecker.factors import Full, Shifted
from fallline.optim.directions.kronecker.grafting import Graft, Grafted, chosen_graft
from fallline.optim.directions.kronecker.late import LateRoots
from fallline.optim.directions.kronecker.preconditioner import Kronecker, second_beta
from fallline.optim.engine.hyperparameters import check, check_positive
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import Add, Direction, Move
from fallline.optim.engine.placement import Placement, Processes
from fallline.optim.engine.units import Unit
from fallline.optim.momentum_by_group import MomentumByGroup


@dataclass(frozen=True)
class AddDecayed(Move):
    """W − η u, with the decay in u already."""

    coupled: ClassVar[bool] = False


@register("distributed-shampoo")
class DistributedShampoo(MomentumByGroup):
    """u = U ‖D‖ / ‖U‖,  U = m̂ ×_i (Ĥ_i + ε I)^{−1/2k} of every block, each by the process that owns it;  W ← W − η (u + λ W).

    Runs unchanged with one process or several: under ``DistributedDataParallel``, ``fully_shard`` and tensor parallelism the result is
    that of one process. All processes must have the same parameters and averaged gradients, as these give them.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-3
        That of the grafted method.
    betas : pair of float, default (0.9, 0.999)
        β₁ of the average of gradients that is preconditioned (0: the gradient itself), β₂ of the statistics and of the graft, both
        debiased; β₂ = 1 makes the statistics sums.
    eps : float, default 1e-12
        ε.
    max_dim : int, default 1024
        The longest side of a block. Small neighbouring dimensions are merged first, as long as their product is no larger.
    root_every : int, default 50
        Steps between roots.
    start_step : int, default 50
        The first step that is preconditioned. Before it, the graft's own step is taken.
    graft : {"adam", "adagrad", "rmsprop", "sgd"}, default "adam"
        Whose step gives every block's step its length, from the same average of gradients; with None it keeps its own.
    weight_decay : float, default 0
    decoupled : bool, default True
        Whether λ W joins u, before the momentum, or the gradient.
    momentum : float, default 0
        μ of B ← μ B + u.
    nesterov : bool, default False
        u + μ B in place of B.
    process_group : ProcessGroup, optional
        The processes among which blocks are dealt; all there are by default. Each must see all parameters given here.
    gather_dtype : torch.dtype, optional
        In which directions travel, such as torch.bfloat16; as they are computed by default, in float32 or float64.
    late : bool, default False
        Roots are computed on a thread of the host while steps go on, and used ``root_every`` steps later: see ``ScalableShampoo``.
    graft_eps : float, default 1e-8
        ε_D.

    Notes
    -----
    The blocks of a group are dealt from the largest to the smallest, each to the process that has fewest numbers so far. A step gathers
    each parameter's direction once (``gathered_bytes``); parameters sharded by ``fully_shard`` or tensor parallelism are gathered
    before, with their gradients. State in ``state[p]`` has a name for every block, ``statistics0.0.3``, and only where the block is
    owned: save and load it by ``torch.distributed.checkpoint``, on any number of processes.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1e-1)}
    closed: ClassVar[Mapping[str, int]] = {"betas": 1}

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-12,
                 max_dim: int = 1024, root_every: int = 50, start_step: int = 50, graft: Graft | None = "adam",
                 weight_decay: float = 0.0, decoupled: bool = True, momentum: float = 0.0, nesterov: bool = False,
                 process_group: Any = None, gather_dtype: torch.dtype | None = None, late: bool = False, graft_eps: float = 1e-8,
                 **options: Unpack[EngineOptions]) -> None:
        check("root_every", root_every)
        check_count("max_dim", max_dim, "1024 is typical")
        check_count("start_step", start_step, "50 is typical")
        check_positive("eps", eps, "1e-12 is typical")
        check("momentum", momentum)
        if gather_dtype is not None and not (isinstance(gather_dtype, torch.dtype) and gather_dtype.is_floating_point):
            raise ValueError(f"gather_dtype must be a floating-point torch.dtype such as torch.bfloat16, got {gather_dtype!r}")
        factor = Full(Shifted(eps), late=LateRoots() if late else None)
        kronecker = Kronecker(factor, None, max_dim, root_every, start_step, second_beta, debias=True)
        rule = Grafted(kronecker, Averaged(), chosen_graft(graft, betas), graft_eps, None, nesterov, decoupled)
        self.placement = Placement(Processes.of(process_group))
        self.gather_dtype, self.graft = gather_dtype, graft
        super().__init__(params, Blocked(rule, max_dim, owned=()), {"lr": lr, "betas": betas, "weight_decay": weight_decay,
                         "momentum": momentum}, move=AddDecayed() if decoupled else Add(), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "placement": self.placement, "gather_dtype": self.gather_dtype, "graft": self.graft}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.placement.deal([block_sizes(self._merged(p), self._blocked.size) for p in self.param_groups[-1]["params"]])

    @property
    def _blocked(self) -> Blocked:
        return cast(Blocked, self.direction)

    def _merged(self, p: Tensor) -> tuple[int, ...]:
        return self._blocked.view(tuple(p.shape))

    def _forget(self) -> None:
        super()._forget()
        self._positions: dict[int, int] = {}

    def check_group(self, group: Mapping[str, Any]) -> None:
        chosen_graft(self.graft, group["betas"])

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        if id(p) not in self._positions:
            self._positions = {id(q): i for i, q in enumerate(q for own in self.param_groups for q in own["params"])}
        rule = self.with_momentum(cast(Grafted, self._blocked.inner), group)
        return replace(self._blocked, inner=rule, owned=self.placement.owned(self._positions[id(p)]))

    def exchange(self, found: Sequence[tuple[Unit, Tensor]]) -> None:
        if self.placement.processes.world == 1:
            return
        directions = {i: u for unit, stacked in found for i, u in zip(unit.indices, stacked, strict=True)}
        size = self._blocked.size
        blocks = {i: all_blocks(directions[i], size) for i in sorted(directions) if directions[i].numel()}
        self.placement.gather(blocks, self.gather_dtype)
        for i, own in blocks.items():
            directions[i].copy_(of_blocks(own, tuple(directions[i].shape), size))

    @property
    def gathered_bytes(self) -> int:
        """What every process received in the last step: one direction of every parameter, and padding. 0 with one process."""
        return self.placement.gathered_bytes

    def update(self, *arguments: Any, **options: Any) -> Any:
        """The pure form, in one process only: of several, each has a part of the state."""
        return self._refuse() if self.placement.processes.world > 1 else super().update(*arguments, **options)

    def _refuse(self) -> NoReturn:
        raise RuntimeError("DistributedShampoo.update() needs the state of all blocks, and several processes share it; use step(), or "
                           "ScalableShampoo")
