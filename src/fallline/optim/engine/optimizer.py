"""The training engine behind ``torch.optim``'s interface.

Every step: parameters with gradients are looked up in the plan, the host computes each bucket's coefficients once, and
one kernel runs per unit: ``p <- move(p, -step_size * direction(gradient))`` with the state in its storage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fallline.core.errors import NonFiniteError

from . import door, exchange, functional, oracles, two_pass
from .alarms import Alarms, alarms_of, all_finite
from .compiling import compiled, compiles, packed, run_compiled
from .door import EngineOptions
from .hooks import First, Hooks
from .joint import belongs, has_begun
from .kernels import run_eagerly
from .layout import local
from .loading import load_state
from .parts import Add, Average, Coefficients, Direction, Move, StepSize, View
from .plan import Bucket, Member, Plan, Sentence, build, gradient_of
from .reduction import reducing
from .signature import hyperparameters, signature
from .storage import Storage
from .units import Unit


class Optimizer(Hooks, torch.optim.Optimizer):
    """An update rule as a sentence of parts, under ``torch.optim``'s contract.

    Parameters
    ----------
    params : iterable of Tensor, of dict, or of (name, Tensor)
        As for every torch optimizer.
    direction : Direction
        What is made of the gradient.
    defaults : dict
        The rule's hyperparameters, which parameter groups may override.
    move, step_size, average : parts, optional
        How the point changes (``p - lr * u``), a multiplier of ``lr``, an average of the iterates for ``solution()``.
    compile : bool, default False
        Run the rule as one fused kernel made by Inductor, shared by all models in the process (elementwise rules).
    nonfinite : {"raise", "skip", "ignore"}, default "raise"
        Non-finite gradients, and estimates of curvature, raise :class:`NonFiniteError` at the start of the next step, which costs no
        synchronisation; ``"skip"`` leaves parameters and state untouched by such a step, at the price of one.
    maximize : bool, default False
        Ascend.
    storage : Storage, optional
        How state is kept: full precision by default (float32 for half-precision parameters).
    """

    def __init__(
        self,
        params: Any,
        direction: Direction,
        defaults: dict[str, Any],
        *,
        move: Move | None = None,
        step_size: StepSize | None = None,
        average: Average | None = None,
        compile: bool = False,
        nonfinite: str = "raise",
        maximize: bool = False,
        storage: Storage | None = None,
        **unknown: Any,
    ) -> None:
        options: EngineOptions = {"compile": compile, "nonfinite": nonfinite, "maximize": maximize, "storage": storage}
        door.check_options(type(self), options, unknown)
        self.direction = direction
        self.sentence = Sentence(move or Add(), step_size, average, storage or Storage())
        self.compile, self.nonfinite = compile, nonfinite
        self._forget()
        super().__init__(params, {**defaults, "maximize": maximize})

    def _forget(self) -> None:
        self._plan: Plan | None = None
        self._shows_solution = False
        self._scalars: list[dict[str, Tensor]] = []
        self._alarms: Alarms | None = None

    # torch.optim's contract

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; unknown keys and illegal hyperparameters are refused."""
        door.check_group(self, param_group)
        super().add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1])
        except Exception:
            del self.param_groups[-1]
            raise
        self._plan = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("direction", "sentence", "compile", "nonfinite")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch's own, which no group here has: the next loading would miss it

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a ``state_dict()``; every entry keeps the dtype it was saved with."""
        load_state(self, state_dict, super().load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Parameters
        ----------
        closure : callable, optional
            Re-evaluates the model and returns the loss, or a realisation ``objective(batch)`` for rules that need more
            than the gradient.

        Returns
        -------
        The closure's loss, or None.
        """
        self._raise_found()
        self.before_step()
        with torch.enable_grad(), self.watching(closure):
            loss = self.evaluate(closure)
        plan = self._current_plan()
        try:
            self._take(plan, closure, loss)
        except RuntimeError:
            self._plan = None
            # The plan does not look at layouts: one that has changed fails somewhere below, without saying so.
            for index, p in enumerate(p for group in self.param_groups for p in group["params"]):
                door.check_layout(self, index, p)
            raise
        return loss

    def _take(self, plan: Plan, closure: Any, loss: Any) -> None:
        if not plan.buckets:
            return
        if closure is None and not oracles.acts(self.param_groups) and self.needs_more_than_gradients():
            return  # checkpoint tools want state to appear; nothing of it may start from a loss or curvature that is not there
        wanted = oracles.due(self, plan.buckets, closure)
        meshes = list({id(b.mesh): b.mesh for b in plan.buckets if b.mesh is not None}.values())
        if self.nonfinite == "skip" and not (self._finite(plan.buckets, meshes) and _is_finite(loss)):
            return
        if "loss" in self._needs():
            oracles.check_loss(self, loss)
        answers = oracles.ask(self, wanted, closure)
        if self.nonfinite == "skip" and not all_finite([value for *_, value in answers], meshes):
            return
        oracles.observe(self, answers)
        with _own_precision(plan.active[0].device.type):
            found = self._move(plan.buckets, loss, closure)
        for bucket in plan.buckets:
            bucket.advance()
        if self.nonfinite == "raise":
            full = [(name, value) for _, _, name, value in answers if value.numel()]
            alarms = alarms_of([value for _, value in full])
            self._alarms = Alarms(found, meshes, list(zip([name for name, _ in full], alarms, strict=True)))

    def needs_more_than_gradients(self) -> str:
        """What steps need besides, in words; nothing for most rules."""
        if self.has("evaluate") or "loss" in self._needs():
            return "the loss"
        probes = {name for group in self.param_groups for p in group["params"] for t in (1, 2)
                  for name in self.direction_for(p, group).probe(t, group)}
        return ", ".join(sorted(probes))

    def _needs(self) -> tuple[str, ...]:
        return self.sentence.step_size.needs if self.sentence.step_size is not None else ()

    # one step

    def _finite(self, buckets: list[Bucket], meshes: list[Any]) -> bool:
        units = [unit for bucket in buckets for unit in bucket.units]
        return all_finite([g for u in units for g in u.real(_gradients(u)) if g.numel()], meshes)

    def _move(self, buckets: list[Bucket], loss: Any, closure: Any) -> list[tuple[Tensor, Unit]]:
        values = [b.units[0].where_present(self.coefficients(b.direction, b.group, b.step + 1)) for b in buckets]
        if self.has("share"):
            shared = self.share([self._view(b, u) for b in buckets for u in b.units], loss)
            values = [{**numbers, **shared} for numbers in values]
        if self.sentence.step_size is not None:
            gradients = {id(u): u.pack(_gradients(u)) for b in buckets for u in b.units}
            return two_pass.step(self.sentence.step_size, buckets, values, gradients, self._scalars, loss, closure, self.compile)
        if self.has("exchange"):
            return exchange.step(self.exchange, buckets, values)
        found: list[tuple[Tensor, Unit]] = []
        for bucket, numbers in zip(buckets, values, strict=True):
            for unit in bucket.units:
                alarm = self._run(bucket, unit, numbers)
                if alarm is not None:
                    found.append((alarm, unit))
        return found

    def _view(self, bucket: Bucket, unit: Unit) -> View:
        p = unit.load()
        x = p.to(unit.working)
        c = Coefficients(unit.where_present({"lr": 0.0, "weight_decay": float(bucket.group.get("weight_decay", 0.0))}))
        gradient = bucket.kernel.gradient(unit.pack(_gradients(unit)), x, c)
        return View(gradient, bucket.kernel.decode(unit.pieces, x.dtype), bucket.step + 1)

    def _run(self, bucket: Bucket, unit: Unit, values: dict[str, float]) -> Tensor | None:
        p, g, direction = unit.load(), unit.pack(_gradients(unit)), bucket.direction
        elementwise = direction.scope == "elementwise"
        if self.compile and compiles(bucket, unit, p, direction.reduces):
            function = compiled(bucket, "step", tuple(values), p, g, unit.pieces)
            alarm = run_compiled(function, packed(bucket, values, p), p, g, unit.pieces)
        else:
            c = Coefficients(values)
            unit.describe(c)
            chunked = elementwise and not direction.reduces
            with reducing(bucket.reduction(unit)) if direction.reduces else nullcontext():
                alarm = run_eagerly(bucket.kernel, c, p, g, unit.pieces, chunked)
        unit.store(p)
        return alarm

    def coefficients(self, direction: Direction, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        """All numbers of step ``t`` for one rule and group."""
        values: dict[str, Any] = {name: _number(name, group.get(name, 0.0)) for name in ("lr", "weight_decay")}
        values.update(direction.coefficients(group, t))
        if self.sentence.step_size is not None:
            values.update(self.sentence.step_size.coefficients(group, t))
        if self.sentence.average is not None:
            values["average_weight"] = self.sentence.average.weight(group, t)
        return values

    # the plan

    def _current_plan(self) -> Plan:
        if self._plan is not None and self._plan.still_holds(self.state, self._everything(), self._signature):
            return self._plan
        return self._make_plan()

    def _everything(self) -> list[int]:
        return [id(p) for group in self.param_groups for p in group["params"]]

    def _signature(self) -> Any:
        return signature(self.param_groups, self.defaults)

    def _members(self) -> tuple[list[Member], list[Tensor], list[Tensor]]:
        """The members of a step; the parameters that have a gradient; those that have none."""
        members: list[Member] = []
        active: list[Tensor] = []
        idle: list[Tensor] = []
        index = 0
        for group in self.param_groups:
            begun = has_begun(self.state.get(p, {}) for p in group["params"])
            for p in group["params"]:
                direction, rests = self.direction_for(p, group), p.grad is None
                (idle if rests else active).append(p)
                if not rests or (direction.scope == "joint" and belongs(p, False, self.state.get(p, {}), begun)):
                    door.check_parameter(self, index, p, direction)
                    members.append(Member(index, p, group, direction, self.move_for(p, group), self.storage_for(p, group), rests))
                index += 1
        return members, active, idle

    def _make_plan(self) -> Plan:
        members, active, idle = self._members()
        new = [m for m in members if not (m.rests or self.state.get(m.param))] if self.has("measure") else []
        if new:
            firsts = [First(gradient_of(m.param), m.group) for m in new]
            if self.nonfinite == "skip" and not all_finite([local(g) for g, _ in firsts if g.numel()], []):
                # This step will be left out, and what is not finite must not be measured.
                return Plan([], active, idle, self._signature(), self.state, 0, self._everything())
            for m, numbers in zip(new, self.measure(firsts, self.state.values()), strict=True):
                self.state[m.param].update({name: torch.as_tensor(x, dtype=torch.float64) for name, x in numbers.items()})
        keys = {id(group): hyperparameters(group, self.defaults) for group in self.param_groups}
        earlier = self._plan.buckets if self._plan is not None else ()
        buckets = build(members, self.sentence, self.state, keys, self.nonfinite == "raise", earlier)
        if self.sentence.step_size is not None and buckets:
            self._scalars = two_pass.adopt_scalars(self.sentence.step_size, buckets, self.state)
        resting = sum(p in self.state for p in idle)
        self._plan = Plan(buckets, active, idle, self._signature(), self.state, resting, self._everything())
        return self._plan

    # non-finite numbers

    def _raise_found(self) -> None:
        alarms, self._alarms = self._alarms, None
        if alarms is None or not alarms.raised():
            return
        culprit = alarms.culprit()
        estimate = alarms.estimate() if culprit is None else None
        if not alarms.confirmed(culprit or estimate):
            return
        place = "parameter on another rank" if culprit is None else f"parameter {door.describe(self, culprit[0].params[culprit[1]])}"
        if estimate is not None:
            place = f"the estimate {estimate!r}"
        raise NonFiniteError(
            f"{type(self).__name__}: the last step met a value that is not finite in {place}; lower lr, clip "
            'gradients, or pass nonfinite="skip" to leave such steps out'
        )

    # answers

    @contextmanager
    def solution(self) -> Iterator[None]:
        """Swap the answer in for the parameters: averages, or the point without look-ahead; by default no change."""
        if self._shows_solution:
            yield
            return
        with torch.no_grad():
            saved = functional.swap_in(self)
        self._shows_solution = True
        try:
            yield
        finally:
            self._shows_solution = False
            with torch.no_grad():
                for p, value in saved:
                    p.copy_(value)

    # the pure form

    def init(self, params: Iterable[Tensor]) -> list[dict[str, Any]]:
        """The initial state of :meth:`update` for tensors in the order of the optimizer's own parameters."""
        return functional.init(self, list(params))

    def update(
        self,
        params: Iterable[Tensor],
        gradients: Iterable[Tensor | None],
        state: Iterable[Mapping[str, Any]],
        *,
        loss: Any = None,
        **hyperparameters: Any,
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """The same step out of place, for autograd to unroll: new parameters and new state; nothing is written.

        Parameters
        ----------
        params, gradients, state : sequences in the order of the optimizer's own parameters
            ``state`` comes from :meth:`init` or from the previous call; state is kept in full precision.
        loss : Tensor, optional
            For step sizes that need it.
        **hyperparameters
            Override those of the parameter groups; they may be tensors that require gradients.
        """
        return functional.update(self, list(params), list(gradients), list(state), loss, hyperparameters)


def _own_precision(device: str) -> Any:
    """A rule's arithmetic is not for autocast to round."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _gradients(unit: Unit) -> list[Tensor]:
    return list(map(gradient_of, unit.params))


def _number(name: str, x: Any) -> Any:
    if isinstance(x, Tensor) and x.requires_grad:
        return x
    if not math.isfinite(x):
        raise ValueError(f"{name} of a parameter group is {float(x)}; a scheduler or an assignment has made it so")
    return float(x)


def _is_finite(loss: Any) -> bool:
    return loss is None or bool(torch.isfinite(torch.as_tensor(loss)).all())
