"""One step's batch as second-order rules see it: all parameters at once, in flat vectors, of what is minimised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fallline.core import tree
from fallline.core.curvature import GaussNewton
from fallline.core.errors import MissingOracle, NonFiniteError
from fallline.core.operators import LinearOperator
from fallline.optim.engine.alarms import all_finite
from fallline.optim.engine.door import check_layout
from fallline.optim.engine.optimizer import Optimizer
from fallline.optim.engine.oracles import acts, gradients_at, refuse, value_at


def together(optimizer: Optimizer, group: Mapping[str, Any], *names: str) -> None:
    """Refuse a group that differs from the first in what the one model of all parameters has once; for ``check_group``."""
    for name in ("maximize", *names):
        if group[name] != optimizer.param_groups[0][name]:
            raise ValueError(f"{name} must be the same in all groups, for there is one quadratic model of all parameters, got "
                             f"{group[name]!r} and {optimizer.param_groups[0][name]!r}")


def differentiated(optimizer: Optimizer, closure: Callable[[], Any] | None, oracle: str, need: str) -> WholeBatch | None:
    """Evaluate a step's realisation; None where a checkpoint tool takes a step without one, and nothing moves.

    ``oracle`` is what the realisation must have, ``need`` what that is in words.
    """
    if closure is None and not acts(optimizer.param_groups):
        return None
    if not (hasattr(closure, oracle) and hasattr(closure, "variables")):
        refuse(type(optimizer).__name__, need)
    if isinstance(getattr(closure, "model", None), DistributedDataParallel):
        raise MissingOracle(f"{type(optimizer).__name__} takes curvature from this process's samples alone, by which the processes' "
                            "weights would part: give one process the whole batch and the bare model")
    return WholeBatch(optimizer, closure, need)


class WholeBatchOptimizer(Optimizer):
    """An optimizer whose every step differentiates the model itself; ``need`` says in words what it asks of the realisation."""

    need: ClassVar[str]

    def update(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: there is no pure form of a rule that differentiates the model itself."""
        name = type(self).__name__
        raise MissingOracle(f"{name}.update() takes gradients only, but every step needs {self.need}: use step(objective(x, y))")

    def needs_more_than_gradients(self) -> str:
        return self.need


class WholeBatch:
    """A realisation whose gradient has been taken, over the parameters that this step moves: those of groups with ``lr`` > 0.

    The others are left without a gradient, so that no step of theirs is counted and no average takes in what is no step's direction.
    Vectors are flat, in the precision of the parameters but at least float32. A *step* u is what the engine subtracts ``lr`` times.

    Attributes
    ----------
    loss
        What the realisation returned.
    variables : dict of Tensor
        The parameters by the realisation's names.
    groups : list of dict
        The group of each of them.
    sign : 1 or -1
        Of the objective in what is minimised.
    gradient, rates : Tensor
        The gradient, and the learning rate of every entry.
    finite : bool
        Whether the gradient is finite, and there is something to move.
    """

    def __init__(self, optimizer: Optimizer, closure: Any, need: str) -> None:
        self.optimizer, self.closure = optimizer, closure
        self.loss = closure()
        for index, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            check_layout(optimizer, index, p)
        names = {id(p): name for name, p in closure.variables.items()}
        moving = [(p, group) for group in optimizer.param_groups for p in group["params"] if p.grad is not None and acts([group])]
        if any(id(p) not in names for p, _ in moving):
            refuse(type(optimizer).__name__, f"{need}, of every parameter it optimizes")
        if any(p.is_complex() for p, _ in moving):
            raise RuntimeError(f"{type(optimizer).__name__} does not support complex parameters; store real and imaginary parts with "
                               "torch.view_as_real")
        self.variables: dict[str, Tensor] = {names[id(p)]: p for p, _ in moving}
        self.groups = [group for _, group in moving]
        for p in (p for group in optimizer.param_groups if not acts([group]) for p in group["params"]):
            p.grad = None
        self.sign = -1.0 if optimizer.param_groups[0]["maximize"] else 1.0
        self.finite = bool(moving) and all_finite([p.grad for p, _ in moving if p.grad is not None and p.numel()], [])
        if moving:
            self.dtype = tree.precision(self.variables)
            self.gradient = self._flat([p.grad for p, _ in moving if p.grad is not None])
            self.rates = self.spread([float(group["lr"]) for group in self.groups])

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        return self.sign * torch.cat([part.reshape(-1).to(self.dtype) for part in parts])

    def spread(self, numbers: Sequence[float]) -> Tensor:
        """One number for every entry from one for every parameter."""
        parameters = list(self.variables.values())
        sizes = torch.tensor([p.numel() for p in parameters])
        return torch.tensor(numbers, dtype=self.dtype).repeat_interleave(sizes).to(parameters[0].device)

    def split(self, vector: Tensor) -> dict[Tensor, Tensor]:
        """The parts of a vector by parameter, in their shapes."""
        parameters = self.variables.values()
        return {p: part.reshape(p.shape) for p, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True)}

    # ---------------------------------------------------------------- what is known of the loss

    def hessian(self) -> LinearOperator:
        """That of what is minimised."""
        with torch.enable_grad():
            found: LinearOperator = self.closure.hessian_operator(self.variables)
        return found if self.sign > 0 else -found

    def linearized(self) -> GaussNewton:
        """The objective's model and loss linearised here, its ``sign`` not taken."""
        return GaussNewton(self.closure, self.variables)

    def gauss_newton(self) -> LinearOperator:
        """The Gauss-Newton matrix of what is minimised."""
        found = self.linearized().operator
        return found if self.sign > 0 else -found

    def points(self, step: Tensor) -> dict[Tensor, Tensor]:
        """Where the parameters come to be after a step."""
        return {p: p - moved.to(p.dtype) for p, moved in self.split(self.rates * step).items()}

    def value(self) -> float:
        """What is minimised, here."""
        return self.sign * float(self.loss)

    def slope(self, step: Tensor) -> float:
        """How what is minimised begins to change along the step: below 0 where that goes downhill."""
        return -float(self.gradient @ (self.rates * step))

    def value_after(self, step: Tensor) -> float:
        """What is minimised after a step, on the same samples and masks."""
        return self.sign * value_at(self.points(step), self.closure)

    def gradient_after(self, step: Tensor) -> Tensor:
        """Its gradient there."""
        return self._flat(list(gradients_at(self.points(step), self.closure).values()))

    # ---------------------------------------------------------------- the optimizer's state, and its step

    def steps_taken(self) -> list[int]:
        """By every parameter."""
        return [int(self.optimizer.state[p].get("step", 0)) if p in self.optimizer.state else 0 for p in self.variables.values()]

    def kept(self, name: str) -> Tensor | None:
        """A vector that an earlier step kept, 0 where a parameter is new; None where all are."""
        held = [self.optimizer.state[p].get(name) if p in self.optimizer.state else None for p in self.variables.values()]
        if all(part is None for part in held):
            return None
        return torch.cat([p.new_zeros(p.numel(), dtype=self.dtype) if part is None else part.reshape(-1).to(self.dtype)
                          for p, part in zip(self.variables.values(), held, strict=True)])

    def not_finite(self) -> NonFiniteError:
        """What to raise, within ``left_out``, where curvature is NaN or infinite."""
        return NonFiniteError(f"{type(self.optimizer).__name__} met curvature that is not finite, or a step that is not; lower lr, "
                              'raise the damping, or pass nonfinite="skip"')

    def indefinite(self, damp: float) -> ValueError:
        """What to raise where the damped Gauss-Newton matrix is seen not to be positive definite."""
        return ValueError("the loss must be convex in the model's outputs (concave to maximize it): the Gauss-Newton matrix has an "
                          f"eigenvalue below -damp, {-damp}; raise damp, or take another loss")

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Leave the step out where curvature turns out not to be finite, unless the optimizer raises."""
        try:
            yield
        except NonFiniteError:
            if self.optimizer.nonfinite == "raise":
                raise
            self.take(torch.full_like(self.gradient, math.nan))

    def take(self, step: Tensor, **keep: Tensor) -> bool:
        """Hand the step to the engine and keep vectors for the next one; whether they are finite, else nothing is kept."""
        finite = all_finite([step, *keep.values()], [])
        if not finite and self.optimizer.nonfinite == "raise":
            raise self.not_finite()
        ours = step if finite else torch.full_like(step, math.nan)
        for p, part in self.split(self.sign * ours).items():
            p.grad = part.to(p.dtype, copy=True)
        for name, vector in keep.items() if finite else ():
            for p, part in self.split(vector).items():
                self.optimizer.state[p][name] = part.clone()
        return finite
