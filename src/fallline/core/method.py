"""Methods: three functions and two facts.

``init(problem, key) → state``, ``step(problem, state) → state``, ``report(problem, state) → Report``; ``needs`` (oracles) and
``space`` (what to tune). No loops, no printing, no stopping rules: ``solve`` has them. A state is a nested dict of tensors,
numbers, strings and keys; ``step`` may overwrite the state it is given, so keep a ``clone`` to go back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fallline.core import tree
from fallline.core.errors import WrongProblem
from fallline.core.keys import Key
from fallline.core.modules import copied, load_buffers
from fallline.core.objective import Training
from fallline.core.problem import Problem
from fallline.core.space import Range
from fallline.core.tree import Tree

State = dict[str, Any]
# Kinds in which a step along the gradient of the whole does not solve the problem.
NOT_PLAIN = ("constrained", "saddle", "bilevel")


@dataclass
class Report:
    """What a method knows after a step.

    Parameters
    ----------
    solution : tree, or a function that returns one
        The answer so far; a function when making it costs something (an average to swap in).
    value : number, optional
        The objective at the solution, where the method knows it without another evaluation.
    batch_loss : number, optional
        The last loss of a mini-batch, taken before the step: a column of the trace, and never the value.
    gap : number, optional
        What ``tol`` is compared with: a gradient norm, a duality gap, a residual.
    status : {"running", "converged", "exhausted", "failed"}
        "exhausted": rounding allows no better answer, which ends a run as "failed" if its tolerance asks for one, else as "converged".
    message : str
        Why, if the status is not "running".
    certificate : object, optional
        What proves the answer: multipliers, a bound, an eigenvalue.
    """

    solution: Tree | Callable[[], Tree]
    value: float | Tensor | None = None
    gap: float | Tensor | None = None
    status: str = "running"
    message: str = ""
    certificate: Any = None
    batch_loss: float | Tensor | None = None

    def resolve(self) -> Tree:
        """Return the solution itself."""
        return self.solution() if callable(self.solution) else self.solution


class Method:
    """A descent method: hyperparameters, and how to start, step and report.

    Attributes
    ----------
    needs : tuple of str
        Oracles the problem must have.
    kinds : tuple of str
        Kinds of problem it solves; empty for any plain minimisation that has the oracles: not constrained, saddle or bilevel.
    space : mapping of str to range
        Hyperparameters worth tuning; empty if there is nothing to tune.
    processes : int
        How many processes run it together; above 1, ``torch.distributed`` is initialised where ``step`` is called.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    kinds: ClassVar[tuple[str, ...]] = ()
    space: ClassVar[Mapping[str, Range]] = {}
    processes: int = 1

    def init(self, problem: Problem, key: Key) -> State:
        """Return the state before the first step."""
        raise NotImplementedError(f"{type(self).__name__} must define init")

    def step(self, problem: Problem, state: State) -> State:
        """Take one step; ``state`` is consumed."""
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def report(self, problem: Problem, state: State) -> Report:
        """Say where the run stands, without asking the problem anything."""
        raise NotImplementedError(f"{type(self).__name__} must define report")

    def clone(self, state: State) -> State:
        """Return a state that later steps of ``state`` do not touch."""
        return copy.deepcopy(state)

    def pack(self, state: State) -> State:
        """Return the state as nested dicts and lists of tensors, numbers, strings and keys, for a checkpoint."""
        return state

    def unpack(self, problem: Problem, key: Key, packed: State) -> State:
        """Return the state that ``pack`` packed."""
        return packed

    def close(self, state: State) -> None:
        """Let go of what the state holds beyond memory, such as worker processes; a run calls it at its end, however it ends."""

    def state_bytes(self, problem: Problem, state: State) -> int:
        """Return the bytes of memory behind the tensors in the state, beyond one copy of the variables; 0-d tensors are left out."""
        held = [part for t in _tensors(self.pack(state)) if t.ndim for part in _strided(t)]
        memories = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        return max(0, sum(memories.values()) - sum(leaf.nbytes for leaf in tree.leaves(problem.x0)))

    def identity(self, problem: Problem) -> dict[str, str]:
        """Return by name what must be the same for a run to go on from a checkpoint of this method."""
        return {"method": repr(self)}

    def check(self, problem: Problem) -> None:
        """Raise unless this method can solve ``problem``."""
        name = type(self).__name__
        refused = problem.kind not in self.kinds if self.kinds else problem.kind in NOT_PLAIN
        if refused:
            solves = ", ".join(self.kinds) or "unconstrained minimisation"
            raise WrongProblem(f"{name} solves {solves} problems, and {problem.name!r} is a {problem.kind} problem; "
                               f"`fallline papers` lists the methods by room")
        problem.require(*self.needs, by=name)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class AskTell(Method):
    """A method that names points and is told their values, by whoever can evaluate them.

    Subclasses define ``init``, ``ask``, ``tell`` and ``report``; ``step`` follows. Where the values come from a laboratory, a person
    or another program, call ``ask`` and ``tell`` yourself.
    """

    needs: ClassVar[tuple[str, ...]] = ("values",)

    def ask(self, state: State) -> Tensor:
        """Return the points to evaluate, shape ``(n, d)``; asking twice gives the same points."""
        raise NotImplementedError(f"{type(self).__name__} must define ask")

    def tell(self, state: State, points: Tensor, values: Tensor) -> State:
        """Take in the values of the points, shape ``(n,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define tell")

    def step(self, problem: Problem, state: State) -> State:
        points = self.ask(state)
        return self.tell(state, points, problem.values(points))


class Train(Method):
    """Any torch optimizer as a Method, on a ``Training`` problem or on anything with gradients.

    Every step draws a realisation and calls ``optimizer.step(realisation)``; a torch optimizer takes it as its closure, one that
    needs more asks it for more.

    Parameters
    ----------
    optimizer : callable ``(params, **hyperparameters) -> torch.optim.Optimizer``
        A class with a ``for_model(model, **hyperparameters)`` makes its own parameter groups from the network.
    schedule : callable ``optimizer -> LRScheduler``, optional
        Stepped once after every step.
    **hyperparameters
        Passed to ``optimizer``.
    """

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer],
                 schedule: Callable[[torch.optim.Optimizer], Any] | None = None, **hyperparameters: Any) -> None:
        if isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError("optimizer must be a class or function that makes an optimizer from parameters, "
                            f"got an optimizer that is already made: {type(optimizer).__name__}")
        self.optimizer, self.schedule, self.hyperparameters = optimizer, schedule, hyperparameters
        self.space = dict(getattr(optimizer, "space", {}))  # type: ignore[misc]

    def init(self, problem: Problem, key: Key) -> State:
        if isinstance(problem, Training):
            model = copied(problem.model)
            make = getattr(self.optimizer, "for_model", None)
            optimizer = make(model, **self.hyperparameters) if make else \
                self.optimizer([p for p in model.parameters() if p.requires_grad], **self.hyperparameters)
            state: State = {"model": model}
        else:
            point = tree.map(lambda x: nn.Parameter(x.detach().clone()), problem.x0)
            optimizer = self.optimizer(tree.leaves(point), **self.hyperparameters)
            state = {"point": point}
        schedule = self.schedule(optimizer) if self.schedule else None
        return {**state, "optimizer": optimizer, "schedule": schedule, "t": 0, "loss": None, "key": key}

    def step(self, problem: Problem, state: State) -> State:
        key = state["key"].fold(state["t"])
        if "model" in state:
            assert isinstance(problem, Training)
            closure: Any = problem.on(state["model"]).draw(key)
        else:
            closure = problem.draw(key).bind(state["point"])
        loss = state["optimizer"].step(closure)
        if state["schedule"] is not None:
            state["schedule"].step()
        return {**state, "t": state["t"] + 1, "loss": loss.detach() if isinstance(loss, Tensor) else loss}

    def report(self, problem: Problem, state: State) -> Report:
        def solution() -> Tree:
            swap = getattr(state["optimizer"], "solution", None)
            if swap is None:
                return self._point(state)
            with swap():
                return self._point(state)

        return Report(solution, batch_loss=state["loss"])

    @staticmethod
    def _point(state: State) -> Tree:
        if "point" in state:
            return tree.clone(state["point"])
        return {name: value.detach().clone() for name, value in state["model"].state_dict().items()}

    def pack(self, state: State) -> State:
        packed = {name: state[name] for name in ("t", "loss", "key")}
        packed["optimizer"] = state["optimizer"].state_dict()
        packed["schedule"] = None if state["schedule"] is None else state["schedule"].state_dict()
        if "model" in state:
            packed["weights"] = dict(state["model"].state_dict())
            # A state_dict leaves out the buffers that are not persistent.
            packed["buffers"] = {name: b for name, b in state["model"].named_buffers() if name not in packed["weights"]}
        else:
            packed["weights"] = tree.leaves(state["point"])
        return packed

    def unpack(self, problem: Problem, key: Key, packed: State) -> State:
        state = self.init(problem, key)
        if "model" in state:
            state["model"].load_state_dict(packed["weights"])
            load_buffers(state["model"], packed["buffers"])
        else:
            with torch.no_grad():
                for leaf, value in zip(tree.leaves(state["point"]), packed["weights"], strict=True):
                    leaf.copy_(value)
        state["optimizer"].load_state_dict(packed["optimizer"])
        if state["schedule"] is not None:
            state["schedule"].load_state_dict(packed["schedule"])
        return {**state, **{name: packed[name] for name in ("t", "loss", "key")}}

    def state_bytes(self, problem: Problem, state: State) -> int:
        """The bytes of the optimizer's state; buffers of the network are the problem's."""
        return sum(t.nbytes for entry in state["optimizer"].state.values() for t in _tensors(entry) if t.ndim)

    def identity(self, problem: Problem) -> dict[str, str]:
        """The method, and what its functions make: a function may make another optimizer under the same name."""
        made = self.init(problem, Key())
        groups = (_plain({name: value for name, value in group.items() if name != "params"})
                  for group in made["optimizer"].param_groups)
        schedule = made["schedule"]
        return {**super().identity(problem), "optimizer": f"{type(made['optimizer']).__name__} of {'; '.join(dict.fromkeys(groups))}",
                "schedule": "none" if schedule is None else f"{type(schedule).__name__} of {_plain(schedule.state_dict())}"}

    def __repr__(self) -> str:
        name = getattr(self.optimizer, "__name__", str(self.optimizer))
        settings = "".join(f", {k}={v!r}" for k, v in self.hyperparameters.items())
        schedule = "" if self.schedule is None else f", schedule={_described(self.schedule)}"
        return f"Train({name}{settings}{schedule})"


def _tensors(packed: Any) -> list[Tensor]:
    """The tensors in nested dicts and lists."""
    if isinstance(packed, Tensor):
        return [packed]
    children = packed.values() if isinstance(packed, Mapping) else packed if isinstance(packed, list | tuple) else ()
    return [t for child in children for t in _tensors(child)]


def _strided(t: Tensor) -> list[Tensor]:
    """The tensors that hold a tensor's numbers: those of a sparse one are its indices and values."""
    return [t] if t.layout is torch.strided else [t.coalesce().indices(), t.coalesce().values()] if t.is_sparse else []


def _described(function: Callable[..., Any]) -> str:
    """A function's name and the plain values it holds, so that a checkpoint is not resumed with another one."""
    name = getattr(function, "__qualname__", repr(type(function).__name__))
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    held = [repr(value) for value in cells if isinstance(value, bool | int | float | str)]
    return f"{name}({', '.join(held)})"


def _plain(value: Any) -> str:
    """A setting in words that are the same in another process: of what is not made of plain values, its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_plain(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return type(value).__name__


class Fitted:
    """A front end with ``fit(data)``: a problem made from the data, a method, and a wrapper of what came out.

    Parameters
    ----------
    problem : callable ``data -> Problem``
    method : Method
    wrap : callable ``Result -> object``
        Makes the answer people want (a graph, a sampler, a map) from the result.
    """

    def __init__(self, problem: Callable[..., Problem], method: Method, wrap: Callable[[Any], Any]) -> None:
        self.problem, self.method, self.wrap = problem, method, wrap

    def fit(self, *data: Any, **options: Any) -> Any:
        """Solve the problem that ``data`` makes; ``options`` are those of ``solve``."""
        from fallline.core.driver import solve

        return self.wrap(solve(self.problem(*data), self.method, **options))
