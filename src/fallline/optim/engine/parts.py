"""The parts of an update rule: ``move(p, -step_size * direction(gradient))``.

Each part is a small frozen dataclass. Its fields are fixed choices (they select a compiled kernel); everything that a
scheduler may change lives in the parameter group and reaches the part through ``coefficients``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from .across import ALONE, Alone
from .arithmetic import add_scaled, blend, over, scaled
from .state import State, like, working_dtype

Scalars = dict[str, float]
Tensors = dict[str, Tensor]
Multiplier = Tensor | Mapping[str, Tensor]


class View(NamedTuple):
    """The gradient and the state of the parameters of one kernel call, as the rule sees them, at step ``t``."""

    gradient: Tensor
    state: Tensors
    t: int


class Coefficients:
    """Attributes holding the numbers of one bucket and step: floats, or 0-d tensors inside a compiled kernel."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    lr: Any
    weight_decay: Any
    indices: list[int]
    region: int = 0
    across: Alone = ALONE

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no coefficient {name!r}; return it from `coefficients(group, t)`")


@dataclass(frozen=True)
class Direction:
    """What is made of the gradient.

    ``scope`` says which tensors the rule receives. ``"elementwise"``: flat pieces of any length, cut and packed as
    the engine likes. ``"matrix"``: all tensors of one shape stacked to ``(B, *view(shape))``; such rules run eagerly,
    so they may branch on coefficients, and ``c.indices`` lists the stacked parameters' positions in the optimizer. ``"joint"``: all
    parameters of a group as one vector ``(n,)``, for rules that must see them together; see :mod:`.joint`. They run eagerly as well.
    ``reduces=True`` marks an elementwise rule that calls :func:`reduce` and must therefore see whole tensors.
    ``in_parts=True`` marks a rule on matrices that takes this process's part of sharded ones and asks ``c.across`` for what it lacks;
    others of that scope get them whole.
    ``brings_decay=True`` marks one whose coefficients contain a ``weight_decay`` of its own, ``uses_rate=True`` one that multiplies by
    ``lr`` itself, so that no step size can do it afterwards.
    """

    scope: ClassVar[Literal["elementwise", "matrix", "joint"]] = "elementwise"
    supports_complex: ClassVar[bool] = False
    reduces: ClassVar[bool] = False
    is_gradient: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False
    brings_decay: ClassVar[bool] = False
    uses_rate: ClassVar[bool] = False

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        """Host numbers of step ``t`` (from 1), computed once for a whole bucket."""
        return {}

    def with_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> Direction:
        """Joint scope: this direction for a vector of parameters with these shapes."""
        return self

    def init(self, p: Tensor) -> dict[str, State]:
        """Declare the state of one parameter."""
        return {}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        """The update and the new state, out of place."""
        raise NotImplementedError

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Matrix scope: the shape under which a parameter is stacked; trailing dimensions are merged by default."""
        rows = shape[0] if shape else 1
        columns = 1
        for n in shape[1:]:
            columns *= n
        return (rows, columns)

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of extra oracles that are due at step ``t``."""
        return ()

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        """The state after an extra oracle's result; entries left out keep their value."""
        raise NotImplementedError

    def solution(self, p: Tensor, s: Tensors, c: Any) -> Tensor | None:
        """The answer belonging to the parameters ``p``; ``None`` means ``p`` itself."""
        return None


@dataclass(frozen=True)
class Gradient(Direction):
    """Steepest descent: ``u = g``."""

    supports_complex = True
    is_gradient = True

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return g, {}


@dataclass(frozen=True)
class Around(Direction):
    """A direction made from another one: what a subclass does not say is the inner one's."""

    inner: Direction

    @property
    def scope(self) -> Any:  # type: ignore[override]
        """That of the inner direction."""
        return self.inner.scope

    @property
    def supports_complex(self) -> bool:  # type: ignore[override]
        """Whether the inner direction does."""
        return self.inner.supports_complex

    @property
    def reduces(self) -> bool:  # type: ignore[override]
        """Whether the inner direction does."""
        return self.inner.reduces

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        return self.inner.coefficients(group, t)

    def with_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> Direction:
        return replace(self, inner=self.inner.with_shapes(shapes))

    def init(self, p: Tensor) -> dict[str, State]:
        return self.inner.init(p)

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.inner.view(shape)

    def probe(self, t: int, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.inner.probe(t, group)

    def observe(self, name: str, value: Tensor, s: Tensors, c: Any) -> Tensors:
        return self.inner.observe(name, value, s, c)

    def solution(self, p: Tensor, s: Tensors, c: Any) -> Tensor | None:
        return self.inner.solution(p, s, c)


def has_solution(direction: Direction) -> bool:
    """Whether the rule's answer is another point than the parameters."""
    while type(direction).solution is Around.solution:
        assert isinstance(direction, Around)
        direction = direction.inner
    return type(direction).solution is not Direction.solution


@dataclass(frozen=True)
class Move:
    """``p - lr * u``; ``coupled`` adds ``weight_decay * p`` to the gradient first (L2 regularisation)."""

    coupled: ClassVar[bool] = True

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        return add_scaled(p, -c.lr, u, out=over(p))

    def carry(self, p: Tensor, moved: Tensor, new: Tensors) -> Tensors:
        """State that belongs to the point, such as a tangent vector, brought from ``p`` to ``moved``; entries left out stay."""
        return {}


Add = Move


@dataclass(frozen=True)
class Displace(Move):
    """``p - u`` for directions that carry the learning rate inside their state."""

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        return torch.sub(p, u, out=over(p))


@dataclass(frozen=True)
class Replace(Move):
    """``u`` itself, for directions that answer with the next point."""

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        return u


@dataclass(frozen=True)
class DecoupledDecay(Move):
    """``(1 - lr * weight_decay) * p - lr * u``: the decay acts on the point before the step (AdamW, Lion)."""

    coupled = False

    def __call__(self, p: Tensor, u: Tensor, c: Any, decays: bool) -> Tensor:
        p = scaled(p, 1 - c.lr * c.weight_decay, out=over(p)) if decays else p
        return add_scaled(p, -c.lr, u, out=over(p))


@dataclass(frozen=True)
class StepSize:
    """A multiplier of ``lr`` made from statistics of the whole step, on the device, without a synchronisation.

    ``needs`` names the statistics (see :mod:`.statistics`), each a sum over all parameters of all groups and shards
    (``over="all"``, where coefficients are those of the first group) or over one tensor (``over="tensor"``).
    ``init`` declares tensors the statistics use, ``scalars`` the rule's own numbers with their initial values.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, float]] = {}
    """The hyperparameters that it reads from parameter groups."""
    over: Literal["all", "tensor"] = "all"

    def __post_init__(self) -> None:
        if self.over not in ("all", "tensor"):
            raise ValueError(f"over must be 'all' or 'tensor', got {self.over!r}")

    def check_loss(self, loss: float, group: Mapping[str, Any]) -> None:
        """Refuse a loss for which the rule makes no sense; a rule that overrides this costs a synchronisation a step."""

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        """Host numbers of step ``t``."""
        return {}

    def init(self, p: Tensor) -> dict[str, State]:
        """Tensors to keep, shaped like the parameter."""
        return {}

    def scalars(self) -> dict[str, float]:
        """The rule's own numbers with their initial values."""
        return {}

    def __call__(self, statistics: Tensors, s: Tensors, c: Any) -> tuple[Multiplier, Tensors]:
        """The multiplier and the new scalars; all are 0-d (``over="all"``) or one number a tensor.

        Where the statistics do not need the direction, and ``over="all"``, it may return coefficients by name in place of a multiplier:
        the direction is computed after them.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Search(StepSize):
    """A multiplier found by trying: the loss of this step's realisation at points along the direction."""

    needs: ClassVar[tuple[str, ...]] = ("loss", "step_dot_gradient")

    def __post_init__(self) -> None:
        if self.over != "all":
            raise ValueError(f"over must be 'all' for a search, whose losses are those of all parameters together, got {self.over!r}")

    def search(self, trial: Callable[[float], float], loss: float, slope: float, s: Tensors, c: Any) -> tuple[float, Tensors]:
        """The multiplier and the new scalars; ``trial`` maps a multiplier to the loss, ``slope`` is ⟨g, η u⟩ over all parameters."""
        raise NotImplementedError


@dataclass(frozen=True)
class Average:
    """A running average of the iterates, ``a + w * (p - a)``, which ``solution()`` swaps in."""

    def weight(self, group: Mapping[str, Any], t: int) -> float:
        """The weight of the newest iterate at step ``t``."""
        raise NotImplementedError

    def init(self, p: Tensor) -> dict[str, State]:
        """One entry, ``average``, in full precision: the small moves of its mean would be lost in a coarse one."""
        return {"average": like(p, precision=working_dtype(p.dtype), initial="parameter")}

    def __call__(self, p: Tensor, average: Tensor, c: Any) -> Tensor:
        """The average after the step to ``p``."""
        return blend(average, p, c.average_weight, out=over(average))
