"""Scalable Shampoo: blocks, averaged statistics, late roots, and the length of a diagonal method's step.

    L ← β₂ L + (1 − β₂) G Gᵀ,  R likewise;   U = (L + ρ λ_max I)^{−1/4} G (R + ρ λ_max I)^{−1/4}, of every block
    u = U ‖D‖ / ‖U‖,  D the step of a diagonal method;   B ← β₁ B + u;   W ← (1 − η λ) W − η B

Anil, Gupta, Koren, Regan, Singer: Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

from fallline.core.checks import check_count
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.optim.directions.kronecker.blocks import Blocked
from fallline.optim.directions.kronecker.factors import Full, Ridged
from fallline.optim.directions.kronecker.grafting import Graft, Grafted, chosen_graft
from fallline.optim.directions.kronecker.late import LateRoots
from fallline.optim.directions.kronecker.preconditioner import Kronecker, second_beta
from fallline.optim.engine.hyperparameters import check, check_nonnegative
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import DecoupledDecay


@register("scalable-shampoo")
class ScalableShampoo(Optimizer):
    """u = U ‖D‖ / ‖U‖,  U = G ×_i (H_i + ρ λ_max I)^{−1/2k} of every block;  B ← β₁ B + u;  W ← (1 − η λ) W − η B.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 0.01
        That of the diagonal method, whose steps have their length here.
    betas : pair of float, default (0.9, 0.999)
        β₁ of the momentum over grafted steps, which is a sum; β₂ of the statistics, where 1 makes them sums, and of a graft with an
        average.
    block : int, default 128
        Every dimension is cut into pieces of this length; small neighbouring ones are merged first. k counts the dimensions of a block.
    root_every : int, default 20
        Steps between roots.
    graft : {"adagrad", "rmsprop", "adam", "sgd"}, default "adagrad"
        Whose step gives every tensor's step its length: g / √Σ g², g / √v, g / √v̂, or g; with None it keeps its own.
    start_step : int, default 5
        The first step that is preconditioned, when the first roots are computed. Before it, the graft's own step is taken.
    weight_decay : float, default 0
        Decoupled.
    nesterov : bool, default False
        u + β₁ B in place of B.
    late : bool, default False
        Roots are computed on a thread of the host while steps go on, and used ``root_every`` steps later than they would be: the step
        they are used at depends on nothing else. The state has one more matrix for every factor, the statistics being worked on.
    method : {"newton", "eigh"}, default "newton"
        Of the roots, see :func:`fallline.core.linalg.inverse_pth_root`.
    ridge : float, default 1e-6
        ρ.
    max_dim : int, default 8192
        A dimension longer than this stays whole and has no preconditioner; the exponent of the others is −1/2k for those k.
    graft_eps : float, default 1e-8
        Of the graft.

    Notes
    -----
    A root that fails, in statistics that are too ill-conditioned, keeps its last value and warns once; statistics that are not finite
    never enter one. State: 2 b² numbers a mode and block of side b (3 b² if late), the graft's and the momentum's.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 0.3)}
    closed: ClassVar[Mapping[str, int]] = {"betas": 1}

    def __init__(self, params: Any, lr: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), block: int = 128, root_every: int = 20,
                 graft: Graft | None = "adagrad", start_step: int = 5, weight_decay: float = 0.0, nesterov: bool = False,
                 late: bool = False, method: Literal["newton", "eigh"] = "newton", ridge: float = 1e-6, max_dim: int = 8192,
                 graft_eps: float = 1e-8, **options: Unpack[EngineOptions]) -> None:
        check("root_every", root_every)
        check_count("block", block, "128 is typical")
        check_count("start_step", start_step, "5 is typical")
        check_count("max_dim", max_dim, "8192 is typical")
        check_nonnegative("ridge", ridge, "1e-6 is typical")
        if method not in ("newton", "eigh"):
            raise ValueError(f"method must be 'newton' or 'eigh', got {method!r}")
        factor = Full(Ridged(ridge, method), late=LateRoots() if late else None)
        blocks = Blocked(Kronecker(factor, None, min(block, max_dim), root_every, start_step, second_beta), block, cap=max_dim)
        direction = Grafted(blocks, graft=chosen_graft(graft, betas), graft_eps=graft_eps, momentum=_first_beta, nesterov=nesterov)
        self.graft = graft
        super().__init__(params, direction, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, move=DecoupledDecay(), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "graft": self.graft}

    def check_group(self, group: Mapping[str, Any]) -> None:
        chosen_graft(self.graft, group["betas"])


def _first_beta(group: Mapping[str, Any]) -> float:
    return float(group["betas"][0])
