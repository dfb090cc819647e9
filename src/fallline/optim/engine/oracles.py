"""Extra oracles: what a rule needs beyond gradients, asked of a realisation ``objective(batch)`` when it is due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from fallline.core.errors import MissingOracle

from .kernels import write
from .parts import Coefficients
from .plan import Bucket
from .units import Unit

if TYPE_CHECKING:
    from .optimizer import Optimizer


def refuse(name: str, need: str) -> NoReturn:
    """Say that a step needs more than it was given."""
    raise MissingOracle(f"{name} needs {need} at this step: call step(objective(batch)), with objective = fl.Objective(model, loss)")


def due(optimizer: Optimizer, buckets: list[Bucket], realisation: Any) -> dict[str, list[Bucket]]:
    """The oracles due at this step with the buckets that want them; refuses if the realisation cannot answer."""
    wanted: dict[str, list[Bucket]] = {}
    for bucket in buckets:
        name = bucket.direction.probe(bucket.step + 1, bucket.group)
        # With lr = 0 the estimate could not act; checkpoint tools take such a step to make state appear.
        if name is not None and (realisation is not None or float(bucket.group["lr"]) != 0):
            wanted.setdefault(name, []).append(bucket)
    if wanted and not hasattr(realisation, "variables"):
        refuse(type(optimizer).__name__, f"the curvature estimate {next(iter(wanted))!r}")
    return wanted


Answers = list[tuple[Bucket, Unit, str, Tensor]]


def ask(optimizer: Optimizer, wanted: dict[str, list[Bucket]], realisation: Any) -> Answers:
    """Ask the realisation for what is due."""
    answers = []
    for name, asking in wanted.items():
        estimates = optimizer.estimate(name, realisation, asking[0].step + 1)
        by_parameter = {id(p): estimates[key] for key, p in realisation.variables.items() if key in estimates}
        for bucket in asking:
            for unit in bucket.units:
                if any(id(p) not in by_parameter for p in unit.params):
                    refuse(type(optimizer).__name__, f"{name} of every parameter it optimizes")
                answers.append((bucket, unit, name, unit.join([by_parameter[id(p)] for p in unit.params])))
    return answers


def observe(optimizer: Optimizer, answers: Answers) -> None:
    """Hand the answers to the rule."""
    for bucket, unit, name, value in answers:
        c = Coefficients(optimizer.coefficients(bucket.direction, bucket.group, bucket.step + 1))
        write(unit.pieces, bucket.kernel.observe(c, name, value, unit.pieces))
