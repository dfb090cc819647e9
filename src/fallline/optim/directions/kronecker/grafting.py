"""A preconditioned step with the length of another rule's step.

    x = average(g);   U = P x;   D = x / denominator;   u = U ‖D‖ / ‖U‖  (D before the preconditioner starts)
    u ← u + λ W where weights decay here;   B ← μ B + u;   the step is B, or u + μ B (Nesterov)

Anil, Gupta, Koren, Regan, Singer: Scalable Second Order Optimization for Deep Learning, arXiv 2002.09018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.optim.directions.averages import Numerator
from fallline.optim.directions.kronecker.preconditioner import OfGroup
from fallline.optim.directions.scalings import DebiasedSquares, Denominator, RootOfSum
from fallline.optim.engine.parts import Around, Direction, Scalars, Tensors
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class Unscaled(Denominator):
    """1: the gradient's own length."""

    def __call__(self, g: Tensor, m: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return g.new_ones(()), {}


@dataclass(frozen=True)
class UndebiasedSquares(DebiasedSquares):
    """√v + ε with v ← β₂ v + (1 − β₂) x²."""

    def scale(self, group: Mapping[str, Any], t: int) -> float:
        return 1.0


Graft = Literal["adam", "adagrad", "rmsprop", "sgd"]
GRAFTS: dict[str, Denominator] = {"sgd": Unscaled(), "adagrad": RootOfSum(), "rmsprop": UndebiasedSquares(), "adam": DebiasedSquares()}


def chosen_graft(graft: str | None, betas: Sequence[float]) -> Denominator | None:
    """The graft of that name, if it makes sense with these averages."""
    if graft is None:
        return None
    if graft not in GRAFTS:
        raise ValueError(f"graft must be one of {', '.join(map(repr, GRAFTS))}, or None, got {graft!r}")
    if graft in ("rmsprop", "adam") and betas[1] == 1:
        raise ValueError(f"graft must be 'adagrad' or 'sgd' where betas[1] is 1 and squares are summed, got {graft!r}")
    return GRAFTS[graft]


@dataclass(frozen=True)
class Grafted(Around):
    """Momentum over the inner preconditioner's step, with the length of another.

    Parameters
    ----------
    inner : Direction
        A preconditioner, called with (g, x).
    numerator : Numerator
        Makes x of g.
    graft : Denominator, optional
        Makes D of x; without it u = U. Lengths are those of whatever the rule is given: of tensors, or of blocks inside ``Blocked``.
    graft_eps : float
        Its ε.
    momentum : function of a group, optional
        μ.
    nesterov : bool
    decays : bool
        Whether the rule is called with the point for p, and λ p joins u before the momentum (a move must not decay as well).
    """

    supports_complex: ClassVar[bool] = False

    numerator: Numerator = field(default_factory=Numerator)
    graft: Denominator | None = None
    graft_eps: float = 1e-8
    momentum: OfGroup | None = None
    nesterov: bool = False
    decays: bool = False

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        values = {**self.inner.coefficients(group, t), **self.numerator.coefficients(group, t),
                  "average_scale": self.numerator.scale(group, t)}
        if self.graft is not None:
            own = {**group, "eps": self.graft_eps}
            values |= {**self.graft.coefficients(own, t), "graft_scale": 1 / self.graft.scale(own, t)}
        return values if self.momentum is None else {**values, "momentum": self.momentum(group)}

    def init(self, p: Tensor) -> dict[str, State]:
        states = self.inner.init(p) | self.numerator.init(p) | (self.graft.init(p) if self.graft is not None else {})
        return states if self.momentum is None else {**states, "momentum": like(p)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        x, new = self.numerator(g, s, c)
        x = x * c.average_scale if c.average_scale != 1 else x
        u, more = self.inner(g, x, s, c)
        new |= more
        if self.graft is not None:
            below, more = self.graft(g, x, s, c)
            diagonal = x / below * c.graft_scale
            new |= more
            # A preconditioner that leaves x as it is has nothing to say.
            u = with_length_of(u, diagonal) if c.active and u is not x else diagonal
        if self.decays and c.weight_decay:
            u = torch.add(u, p, alpha=c.weight_decay)
        if self.momentum is not None:
            buffer = torch.add(u, s["momentum"], alpha=c.momentum)
            u = torch.add(u, buffer, alpha=c.momentum) if self.nesterov else buffer
            new["momentum"] = buffer
        return u, new


def with_length_of(u: Tensor, other: Tensor) -> Tensor:
    """u ‖other‖ / ‖u‖ for every tensor of a batch; 0 stays 0."""
    wanted, length = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (other, u))
    ratio = torch.where(length > 0, wanted / length, 0.0)
    return u * torch.where(length.isfinite(), ratio, torch.nan).view(-1, *[1] * (u.ndim - 1))


@dataclass(frozen=True)
class Fed(Around):
    """The inner rule, elementwise, on the preconditioned gradient with the gradient's own length; of matrices."""

    supports_complex: ClassVar[bool] = False
    scope: ClassVar[Literal["matrix"]] = "matrix"

    preconditioner: Direction

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return Direction.view(self, shape)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return {**self.inner.coefficients(group, t), **self.preconditioner.coefficients(group, t)}

    def init(self, p: Tensor) -> dict[str, State]:
        return self.inner.init(p) | self.preconditioner.init(p)

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        u, new = self.preconditioner(g, g, s, c)
        u, more = self.inner(with_length_of(u, g) if c.active else g, p, s, c)
        return u, {**more, **new}
