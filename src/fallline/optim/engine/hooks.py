"""What a rule may say beyond its parts; an optimizer overrides what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from . import hyperparameters
from .parts import Direction, Move, View
from .plan import Sentence
from .storage import Storage
from .units import Unit


class First(NamedTuple):
    """The first gradient that a parameter has, and its group."""

    gradient: Tensor
    group: Mapping[str, Any]


class Hooks:
    """Facts about a rule, and functions that the engine calls in a step.

    In this order: ``before_step``, ``watching`` around ``evaluate``, the parts and the numbers (``measure``) of parameters that are
    new, ``estimate``, ``share``; after the directions, ``exchange``.
    """

    direction: Direction
    sentence: Sentence
    defaults: dict[str, Any]

    space: ClassVar[Mapping[str, Any]] = {}
    """What is worth tuning, with ranges."""
    positive: ClassVar[Mapping[str, str]] = {}
    """Hyperparameters that may not be 0 in this rule, with the reason and what is typical."""
    closed: ClassVar[Mapping[str, int]] = {}
    """Of hyperparameters that are several fractions, the one that may be 1 as well."""
    derivatives: ClassVar[int] = 1
    """The highest derivatives it asks for: 1, gradients; 2, curvature."""
    reevaluations: ClassVar[Mapping[str, str]] = {}
    """Extra oracles that any closure can answer because they are gradients at another point, with their description."""
    rearranges: ClassVar[bool] = False
    """Whether :meth:`before_step` makes state that directions do not declare, so that nothing can be built around the rule."""

    @property
    def lengths(self) -> Mapping[str, int]:
        """How many numbers each hyperparameter has that is a tuple."""
        return hyperparameters.lengths_of(type(self), self.defaults)

    @property
    def optional(self) -> frozenset[str]:
        """Hyperparameters that may be None, in which case the rule takes what follows from others."""
        return hyperparameters.optional_of(type(self), self.defaults)

    def has(self, hook: str) -> bool:
        """Whether the rule has this one, so that what it is given must be prepared."""
        return getattr(type(self), hook) is not getattr(Hooks, hook)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse, or warn of, what the hyperparameters and parameters of a new group are together; each alone is legal."""

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """Fill the gradients and return the loss; rules that take their gradient from other points override this."""
        return None if closure is None else closure()

    def watching(self, closure: Callable[[], Any] | None) -> AbstractContextManager[Any]:
        """Around :meth:`evaluate`: rules that read what a network's forward and backward passes hold override this."""
        return nullcontext()

    def before_step(self) -> None:
        """Called when a step begins; rules that rearrange their parameters override this, and leave :meth:`step` as it is."""

    def direction_for(self, p: Tensor, group: Mapping[str, Any]) -> Direction:
        """The direction of one parameter; rules that treat roles apart override this."""
        return self.direction

    def move_for(self, p: Tensor, group: Mapping[str, Any]) -> Move:
        """The move of one parameter; optimizers of parameters on different manifolds override this."""
        return self.sentence.move

    def storage_for(self, p: Tensor, group: Mapping[str, Any]) -> Storage:
        """The storage of one parameter's state; optimizers that keep some parameters' state whole override this."""
        return self.sentence.storage

    def measure(self, firsts: Sequence[First], states: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, float]]:
        """The numbers (:attr:`.State.is_number`) of new parameters, in their order; ``states`` are those of all others."""
        raise NotImplementedError

    def share(self, views: Sequence[View], loss: Any) -> dict[str, Any]:
        """Coefficients that depend on all gradients and states at once; the same for all parameters."""
        return {}

    def exchange(self, found: Sequence[tuple[Unit, Tensor]]) -> None:
        """Complete the directions of all units, in place, by what other processes have computed."""
        raise NotImplementedError

    def estimate(self, oracle: str, realisation: Any, t: int) -> Mapping[Tensor, Tensor]:
        """Ask a realisation for an extra oracle at step ``t``, for every parameter; rules with a ``probe`` implement it."""
        raise NotImplementedError(f"{type(self).__name__} has no estimator of {oracle}")
