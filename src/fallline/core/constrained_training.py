"""A network whose training data put constraints on it, and its Lagrangian as a ``Training`` problem.

    min_θ ℓ₀(θ)  subject to  ℓ_i(θ) ≤ c_i,        L(θ, λ) = ℓ₀(θ) + Σ λ_i (ℓ_i(θ) − c_i)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from fallline.core.autodiff import checked_scalar
from fallline.core.keys import Key
from fallline.core.modules import call, evaluating, spare_buffers
from fallline.core.objective import ModelProblem, Training
from fallline.core.tree import Tree

DataConstraint = Callable[[Callable[..., Any], Tensor, Tensor], Tensor]


class ConstrainedTraining(Training):
    """min over a network's weights of its mean loss on data, subject to ``ℓ_i ≤ c_i``.

    ``value`` and ``gradient`` are those of the loss; ``inequality(x)`` is ℓ_i(x) − c_i on all training data, ``held_out(x)`` that on
    the validation data, both in evaluation mode, as the network will be used. ``lagrangian(λ)`` is a ``Training`` problem, whose
    mini-batches have the constraints on the same samples as the loss and, in every call of the network, under the same random masks;
    batch-norm buffers move with the loss alone.

    Parameters
    ----------
    training : Training
        The network, its loss, its data.
    constraints : mapping of str to (callable, float)
        By name: a function ``(model, inputs, targets) -> 0-d tensor`` ℓ_i, a mean over the batch, and its level c_i. ``model`` is
        called as the network is; it may be called more than once, on changed inputs.

    Examples
    --------
    Predictions that do not depend on the first, binary input:

    >>> def unfairness(model, x, y):
    ...     other = torch.cat([1 - x[:, :1], x[:, 1:]], 1)
    ...     p, q = model(x).log_softmax(-1), model(other).log_softmax(-1)
    ...     return (p.exp() * (p - q)).sum(-1).mean()
    >>> problem = fl.ConstrainedTraining(fl.Training(model, loss, (x, y)), {"unfairness": (unfairness, 1e-3)})
    """

    def __init__(self, training: Training, constraints: Mapping[str, tuple[DataConstraint, float]], **options: Any) -> None:
        if not isinstance(training, Training):
            raise TypeError(f"training must be a Training problem, got {type(training).__name__}")
        if not isinstance(constraints, Mapping) or not constraints:
            raise ValueError(f"constraints must be one or more pairs (function, level) by name, got {constraints!r}")
        for name, pair in constraints.items():
            if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0])):
                raise TypeError(f"constraints[{name!r}] must be a function of (model, inputs, targets) and its level, got {pair!r}")
            if not math.isfinite(pair[1]):
                raise ValueError(f"the level of constraints[{name!r}] must be finite, got {pair[1]}; leave it out if it has none")
        self.constraints = {name: function for name, (function, _) in constraints.items()}
        self.levels = tuple(float(level) for _, level in constraints.values())
        self.multipliers: Tensor | None = None  # of a Lagrangian
        super().__init__(training.model, training.loss_fn, training.data, validation=training.validation,
                         batch_size=training.batch_size, metrics=training.metrics,
                         **{"kind": "constrained", "name": training.name, "facts": training.facts, "budget": training.budget,
                            **options})
        self._separate = training.validation is not training.data

    def lagrangian(self, multipliers: Tensor) -> Self:
        """Return ``min_x L(x, λ)`` over the same data: an unconstrained problem, on the same bill."""
        view = copy.copy(self)
        view.kind, view.multipliers = "training", multipliers
        view._oracles = view._whole()
        return view

    def _whole(self) -> dict[str, Callable[..., Any]]:
        if self.multipliers is not None:
            return {"value": super()._whole()["value"]}
        return super()._whole() | {"inequality": lambda x: self._excess(x, self.data)}

    def _realisation(self, inputs: Tensor, targets: Tensor, key: Key) -> ModelProblem:
        plain = super()._realisation(inputs, targets, key)
        if self.multipliers is None:
            return plain
        return _LagrangianBatch(plain, key, list(self.constraints.values()), self.multipliers, self.levels)

    def _excess(self, x: Tree, data: Sequence[Tensor]) -> Tensor:
        with evaluating(self.model), spare_buffers(self.model):
            return _excess(self.constraints.values(), self.levels, lambda *inputs: call(self.model, x, inputs), *data)

    @torch.no_grad()
    def held_out(self, x: Tree) -> Tensor | None:
        """Return ℓ_i(x) − c_i on the validation data, shape (m,), or None where the training data stand in for them; not counted."""
        return self._excess(x, self.validation) if self._separate else None

    @torch.no_grad()
    def observe(self, x: Tree) -> dict[str, float]:
        """Return the validation loss and metrics at ``x``, and ``excess_…`` of every constraint there: ℓ_i − c_i."""
        excess = self._excess(x, self.validation).tolist()
        return super().observe(x) | {f"excess_{name}": value for name, value in zip(self.constraints, excess, strict=True)}


class _LagrangianBatch(ModelProblem):
    """L on a mini-batch."""

    def __init__(self, plain: ModelProblem, key: Key, constraints: list[DataConstraint], multipliers: Tensor,
                 levels: tuple[float, ...]) -> None:
        self.constraints, self.multipliers, self.levels = constraints, multipliers, levels
        super().__init__(plain.model, plain.loss_fn, plain.inputs, plain.targets, name=plain.name, key=key)

    def _own(self) -> dict[str, Callable[..., Any]]:
        return {"value": self._evaluate}

    def _evaluate(self, x: Mapping[str, Tensor] | None) -> Tensor:
        loss = super()._evaluate(x)
        with self._frozen():  # after the loss's evaluation: its masks again at every call, and buffers stay
            excess = _excess(self.constraints, self.levels, partial(self._call, x), self.inputs, self.targets)
        return loss + (self.multipliers.to(excess) * excess).sum()


def _excess(constraints: Any, levels: tuple[float, ...], model: Callable[..., Any], inputs: Tensor, targets: Tensor) -> Tensor:
    """ℓ_i − c_i, shape (m,)."""
    return torch.stack([checked_scalar(constraint(model, inputs, targets), "a constraint") - level
                        for constraint, level in zip(constraints, levels, strict=True)])
