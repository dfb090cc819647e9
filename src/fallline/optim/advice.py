"""Which update rule for which problem: the survey's advice, with its reasons.

Ruder: An overview of gradient descent optimization algorithms, arXiv 1609.04747, section 4. What it says of other ways to help SGD
needs no code of its own here: a fresh shuffle is what ``problem.draw(key)`` does, a curriculum is an order of ``indices`` given to it,
early stopping is a callback of ``solve``, annealed noise is ``add_annealed_noise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Traits:
    """What is known of a problem; everything is False unless said.

    Parameters
    ----------
    sparse : bool
        Features (and so gradients) that are rarely nonzero.
    deep : bool
        A deep, recurrent or otherwise complex network, to be trained fast.
    ill_conditioned : bool
        Ravines: curvatures of very different size.
    low_noise : bool
        Full batches or large ones.
    generalization : bool
        The test error counts more than the time, and a learning-rate schedule will be tuned.
    no_tuning : bool
        There is no time to tune a learning rate.
    """

    sparse: bool = False
    deep: bool = False
    ill_conditioned: bool = False
    low_noise: bool = False
    generalization: bool = False
    no_tuning: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool):
                raise TypeError(f"{field.name} must be True or False, got {value!r}")


@dataclass(frozen=True)
class Advice:
    """A method's registered name and why."""

    method: str
    reason: str

    def __str__(self) -> str:
        return f"{self.method}: {self.reason}"


def advise(traits: Traits | Mapping[str, bool] | None = None) -> list[Advice]:
    """Rank the survey's rules for a problem, best first, each with its reason.

    Parameters
    ----------
    traits : Traits or mapping of its names to bool, optional
        Nothing known by default.

    Raises
    ------
    ValueError
        For a trait that does not exist.
    TypeError
        For one that is neither True nor False.

    Notes
    -----
    Traits are taken in the order sparse, ill-conditioned with low noise, generalization, no tuning, deep: the first that apply come
    first, and the survey's overall choice comes last. Source: arXiv 1609.04747, sections 4.4 and 4.10.
    """
    if not isinstance(traits, Traits):
        if traits is not None and not isinstance(traits, Mapping):
            raise TypeError(f"traits must be Traits or a mapping such as {{'sparse': True}}, got {traits!r}")
        known = [field.name for field in fields(Traits)]
        for name in traits or {}:
            if name not in known:
                raise ValueError(f"unknown trait {name!r}; known: {', '.join(known)}")
        traits = Traits(**dict(traits or {}))
    found: list[Advice] = []
    if traits.sparse:
        found += [Advice("adagrad", "rare features keep a large learning rate, because each has its own"),
                  Advice("adam", "adapts every coordinate too, and its rate does not die out as Adagrad's does")]
    if traits.ill_conditioned and traits.low_noise:
        found += [Advice("nesterov", "momentum cancels the swings across a ravine, and looking ahead brakes before the slope rises"),
                  Advice("momentum", "the same without the look-ahead: iterations grow as the root of the condition number")]
    if traits.generalization:
        found.append(Advice("sgd", "with an annealed rate it often ends at the better minimum, though it takes longer to get there"))
    if traits.no_tuning:
        found += [Advice("adadelta", "has no learning rate to set"), Advice("adam", "its default rate is often near enough")]
    if traits.deep:
        found += [Advice("adam", "fast on deep and recurrent networks; its debiasing helps when gradients become sparse late"),
                  Advice("rmsprop", "Adam without momentum and debiasing")]
    found.append(Advice("adam", "the survey's overall choice"))
    return [advice for i, advice in enumerate(found) if advice.method not in {earlier.method for earlier in found[:i]}]
