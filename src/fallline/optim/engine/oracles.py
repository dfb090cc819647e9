"""Extra oracles: what a rule needs beyond gradients, asked of a realisation ``objective(batch)`` when it is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from fallline.core.errors import MissingOracle, NonFiniteError

from .kernels import write
from .layout import is_sharded, local, shard
from .parts import Coefficients, StepSize
from .plan import Bucket
from .units import Unit

if TYPE_CHECKING:
    from .optimizer import Optimizer


def refuse(name: str, need: str, closure: bool = False) -> NoReturn:
    """Say that a step needs more than it was given; whether a plain closure would do."""
    plain = "step(closure) or " if closure else ""
    raise MissingOracle(f"{name} needs {need} at this step: call {plain}step(objective(batch)), with objective = "
                        "fl.Objective(model, loss)")


def due(optimizer: Optimizer, buckets: list[Bucket], realisation: Any) -> dict[str, list[Bucket]]:
    """The oracles due at this step with the buckets that want them; refuses if the realisation cannot answer."""
    wanted: dict[str, list[Bucket]] = {}
    for bucket in buckets:
        for name in bucket.direction.probe(bucket.step + 1, bucket.group):
            if realisation is not None or acts([bucket.group]):
                wanted.setdefault(name, []).append(bucket)
    for name in wanted:
        if name not in optimizer.reevaluations and not hasattr(realisation, "variables"):
            refuse(type(optimizer).__name__, f"the curvature estimate {name!r}")
    if realisation is None:
        _refuse_without(optimizer, buckets)
    return wanted


def _refuse_without(optimizer: Optimizer, buckets: list[Bucket]) -> None:
    """Refuse a step without a closure where this one or the next needs gradients at another point: not only at the second."""
    for bucket in buckets if optimizer.reevaluations else ():
        for t in (bucket.step + 1, bucket.step + 2):
            for name in bucket.direction.probe(t, bucket.group):
                if name in optimizer.reevaluations and acts([bucket.group]):
                    refuse(type(optimizer).__name__, optimizer.reevaluations[name], closure=True)


def check_loss(optimizer: Optimizer, loss: Any) -> None:
    """Refuse a loss that is not there, no number, not finite, or none that the step size is made for."""
    rule = optimizer.sentence.step_size
    assert rule is not None
    if loss is None:
        refuse(type(optimizer).__name__, "the loss", closure=True)
    if torch.as_tensor(loss).numel() != 1:
        raise ValueError(f"closure must return one number, the loss, got a tensor of shape {tuple(loss.shape)}")
    if type(rule).check_loss is not StepSize.check_loss:
        value = float(torch.as_tensor(loss).detach())
        if optimizer.nonfinite == "raise" and not math.isfinite(value):
            raise NonFiniteError(f"{type(optimizer).__name__} was given a loss of {value}; lower lr, or pass nonfinite=\"skip\"")
        rule.check_loss(value, optimizer.param_groups[0])


def acts(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a step of these groups moves anything: checkpoint tools take one with lr = 0 to make state appear."""
    return any(float(group["lr"]) != 0 for group in groups)


def place(p: Tensor, point: Tensor) -> None:
    """Write a point to a parameter; of a sharded one whose state is whole, this process's part."""
    if is_sharded(p) and not is_sharded(point):
        local(p).copy_(shard(point.reshape(p.shape), p))
    else:
        p.copy_(point.reshape(p.shape))


def gradients_at(points: Mapping[Tensor, Tensor], closure: Callable[[], Any]) -> dict[Tensor, Tensor]:
    """Gradients with parameters moved to ``points`` and back; the closure evaluates one realisation.

    ``p.grad`` stays as it was, for ``points`` and for all variables of an objective; another closure's backward pass adds to the
    gradients of further parameters.
    """
    values = {p: p.detach().clone() for p in points}
    gradients = {p: p.grad for p in (*points, *getattr(closure, "variables", {}).values())}
    try:
        for p in gradients:
            p.grad = None
        for p, point in points.items():
            place(p, point)
        with torch.enable_grad():
            closure()
        return {p: torch.zeros_like(p) if p.grad is None else p.grad for p in points}
    finally:
        for p, value in values.items():
            p.copy_(value)
        for p, gradient in gradients.items():
            p.grad = gradient


def value_at(points: Mapping[Tensor, Tensor], closure: Any) -> float:
    """The loss of a step's realisation with parameters moved to ``points`` and back; gradients stay."""
    before = {p: p.detach().clone() for p in points}
    try:
        for p, point in points.items():
            place(p, point)
        return value_of(closure, list(points))
    finally:
        for p, x in before.items():
            p.copy_(x)


def value_of(closure: Any, params: Sequence[Tensor]) -> float:
    """The loss of a step's realisation at the parameters as they are; gradients stay."""
    if hasattr(closure, "value"):
        return float(closure.value())
    kept = [p.grad for p in params]
    try:
        for p in params:
            p.grad = None
        with torch.enable_grad():
            return float(torch.as_tensor(closure()).detach())
    finally:
        for p, gradient in zip(params, kept, strict=True):
            p.grad = gradient


Answers = list[tuple[Bucket, Unit, str, Tensor]]


def ask(optimizer: Optimizer, wanted: dict[str, list[Bucket]], realisation: Any) -> Answers:
    """Ask the realisation for what is due."""
    answers = []
    for name, asking in wanted.items():
        # An estimate may depend on the step, which parameters that came late count for themselves; a gradient elsewhere does not.
        found: dict[int, Mapping[Tensor, Tensor]] = {}
        for bucket in asking:
            t = 0 if name in optimizer.reevaluations else bucket.step + 1
            if t not in found:
                found[t] = optimizer.estimate(name, realisation, bucket.step + 1)
            estimates = found[t]
            for unit in bucket.units:
                if any(p not in estimates for p in unit.params):
                    refuse(type(optimizer).__name__, f"{name} of every parameter it optimizes")
                answers.append((bucket, unit, name, unit.join([estimates[p] for p in unit.params])))
    return answers


def observe(optimizer: Optimizer, answers: Answers) -> None:
    """Hand the answers to the rule."""
    for bucket, unit, name, value in answers:
        c = Coefficients(optimizer.coefficients(bucket.direction, bucket.group, bucket.step + 1))
        write(unit.pieces, bucket.kernel.observe(c, name, value, unit.pieces))


def of_minimised(found: Mapping[Tensor, Tensor], groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, Tensor]:
    """Gradients or curvature of what is minimised: where a group maximizes, that is the objective's negative."""
    ascending = {id(p) for group in groups if group["maximize"] for p in group["params"]}
    return {p: -h if id(p) in ascending else h for p, h in found.items()}
