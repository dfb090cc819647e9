"""OptEx: several steps of a first-order method at once, along a chain of predicted gradients.

With a history of the newest T₀ pairs (θ, ∇f) and its kernel regression μ (see ``core.gradient_prediction``), one sequential iteration:

    θ_0 = θ,   θ_s = rule(θ_{s−1}, μ(θ_{s−1})),   s = 1 … n − 1       the chain, each point with a state of the rule of its own
    g_s = ∇f(θ_s),   s = 0 … n − 1                                    at the same time; all pairs join the history
    θ ← rule(θ_s, g_s),   s = n − 1                                   a step by the true gradient from a point of the chain

Shu, Fang, He, Yu: OptEx: Expediting First-Order Optimization with Approximately Parallelized Iterations, NeurIPS 2024,
arXiv 2402.11427.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.core import registry, tree
from fallline.core.counts import Counts
from fallline.core.errors import NonFiniteError
from fallline.core.fixed_point import Executor, ParallelMap, check_executor
from fallline.core.gradient_prediction import GradientPredictor, check_kernel, chosen_scale
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.objective import Training
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Range
from fallline.core.tree import Tree
from fallline.optim.engine import Optimizer
from fallline.optim.engine.over import Base
from fallline.optim.survey import Adam

SCALES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""The kernel's length over the median distance: the third at first, then the best in predicting the newest fifth of the history."""
PERIOD = 10
"""Iterations between choices of the scale."""
COORDINATES = 5_000
"""Distances between points of more coordinates are measured in so many random ones."""


@dataclass(frozen=True)
class _Evaluation:
    """Loss and gradient of a realisation, with what was counted and where the buffers moved: a map that touches nothing it is given."""

    problem: Problem

    def __call__(self, job: tuple[Key, Tree, Mapping[str, Tensor]]) -> tuple[Tensor, Tree, dict[str, int], dict[str, Tensor]]:
        key, x, buffers = job
        view = self.problem.counted(Counts())
        view.load_buffers(buffers)
        loss, gradient = view.draw(key).value_and_gradient(x)
        return loss.detach(), gradient, dict(view.counts), view.buffers


def _check_whole(name: str, number: Any, least: int, what: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least} ({what}), got {number!r}")


@register("optex")
class OptEx(Method):
    """n true gradients at a time, at the points that a rule would visit if predicted gradients were true.

    A step is one sequential iteration: it waits for one round of n gradients and counts n (the first iteration, without a history,
    1). The paper's speed-up, of the order of √n, is in sequential iterations, with n workers that evaluate gradients at the same time;
    in total gradients OptEx costs more than the rule alone: compare with ``Budget(steps=...)`` for the one, ``Budget(gradients=...)``
    for the other.

    Parameters
    ----------
    optimizer : str or class, default Adam
        The rule of fallline.optim, by its pure form ``update(params, gradients, state)``; it must need no more than gradients.
    n : int, default 4
        Points of the chain.
    history : int, default 20
        T₀, at least n and 2: how many pairs are kept. The paper uses 20 to 150.
    kernel : {"matern52", "rbf"}, default "matern52"
    noise : float, default 1e-6
        σ²: the variance of a gradient's noise over that of the gradients.
    select : {"last", "best"}, default "last"
        The point whose true step is taken: the last of the chain, or that of the lowest loss.
    executor : {"serial", "threads", "processes"}, default "serial"
        See ``ParallelMap``. The results are the same. Threads are refused for networks, whose random masks come from one generator.
    **hyperparameters
        Of the rule.

    Notes
    -----
    The kernel's length is 3 times the median distance in the history, and every 10 iterations the multiple is chosen anew from 0.3, 1,
    3, 10, 30 by predicting the newest fifth of the history; with more than 5,000 variables distances are measured in 5,000 random ones.
    Every evaluation draws its own realisation, as so many steps in turn would (an example of the authors' shares a mini-batch among the
    n); the losses that "best" compares are then of different samples. Buffers (batch-norm statistics) move once an iteration, where
    the true step is taken. Memory 2 T₀ d, work T₀³ + n T₀ d beside the gradients. The authors' code also normalises points to length 1;
    that is left out, for it takes points on a ray for one. Worker processes end with the run.
    The answer is the point itself, without an average that the rule may keep.
    """

    space: ClassVar[Mapping[str, Range]] = Adam.space

    def __init__(self, optimizer: Base = Adam, n: int = 4, history: int = 20, kernel: str = "matern52",
                 noise: float = 1e-6, select: Literal["last", "best"] = "last", executor: Executor = "serial",
                 **hyperparameters: Any) -> None:
        _check_whole("n", n, 1, "points of the chain")
        _check_whole("history", history, max(2, n), "pairs kept, n or more")
        check_kernel(kernel, noise)
        check_executor(executor)
        if select not in ("last", "best"):
            raise ValueError(f"select must be 'last' or 'best', got {select!r}")
        make = registry.lookup(optimizer) if isinstance(optimizer, str) else optimizer
        if not callable(make):
            raise TypeError(f"optimizer must be an optimizer of fallline.optim, by name or class, got {optimizer!r}")
        self.optimizer, self.n, self.history, self.kernel, self.noise = make, n, history, kernel, noise
        self.select, self.executor, self.hyperparameters = select, executor, hyperparameters
        self.space = dict(getattr(make, "space", {}))  # type: ignore[misc]

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if any(leaf.is_complex() for leaf in tree.leaves(problem.x0)):
            raise TypeError(f"OptEx needs real variables, and {problem.name!r} has complex ones; view_as_real makes them real")
        if self.executor == "threads" and isinstance(problem, Training):
            raise ValueError("executor='threads' does not work for networks, whose random masks come from one generator; "
                             "use 'processes' or 'serial'")
        self._rule(problem)

    def _rule(self, problem: Problem) -> Optimizer:
        rule = self.optimizer([leaf.detach() for leaf in tree.leaves(problem.x0)], **self.hyperparameters)
        if not isinstance(rule, Optimizer):
            raise TypeError(f"optimizer must make an optimizer of fallline.optim, which has a pure form, got {type(rule).__name__}")
        more = rule.needs_more_than_gradients()
        if more:
            raise ValueError(f"optimizer must need gradients only, which are predicted, and {type(rule).__name__} needs {more}")
        return rule

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        d = tree.size(x)
        first = tree.flatten(x)
        p = min(d, COORDINATES)
        chosen = torch.randperm(d, generator=key.fold("coordinates").generator())[:p].sort().values.to(first.device)
        rule = self._rule(problem)
        return {"x": x, "rule_state": rule.init(tree.leaves(x)), "coordinates": chosen, "positions": first.new_zeros(0, p),
                "gradients": first.new_zeros(0, d), "scale": SCALES[2], "t": 0, "drawn": 0, "loss": None, "key": key,
                "rule": rule, "parallel": ParallelMap(self.executor, self.n)}

    def close(self, state: State) -> None:
        if "parallel" in state:  # not where a run ends before it starts
            state["parallel"].close()

    def step(self, problem: Problem, state: State) -> State:
        state = self._chosen_scale(state)
        points, rule_states = self._chain(state)
        jobs = [(state["key"].fold(state["drawn"] + s), x, problem.buffers) for s, x in enumerate(points)]
        answers = state["parallel"](_Evaluation(problem), jobs)
        for s, (_, gradient, counts, _) in enumerate(answers):
            for name, number in counts.items():
                problem.counts.add(name, number)
            if not tree.all_finite(gradient):
                raise NonFiniteError(f"the gradient at point {s + 1} of {len(points)} of the chain has NaN or infinite entries; "
                                     "a smaller lr or n keeps the chain nearer")
        losses = torch.stack([loss for loss, *_ in answers])
        s = len(points) - 1 if self.select == "last" else int(torch.where(losses.isnan(), torch.inf, losses).argmin())
        _, gradient, _, buffers = answers[s]
        problem.load_buffers(buffers)
        x, rule_state = self._moved(state["rule"], points[s], gradient, rule_states[s])
        history = self._remembered(problem, state, points, [gradient for _, gradient, *_ in answers])
        return {**state, **history, "x": x, "rule_state": rule_state, "t": state["t"] + 1, "drawn": state["drawn"] + len(points),
                "loss": losses[s]}

    def _chain(self, state: State) -> tuple[list[Tree], list[Any]]:
        """The points to evaluate, and the rule's state at each."""
        points, rule_states = [state["x"]], [state["rule_state"]]
        if not len(state["positions"]):
            return points, rule_states
        predictor = GradientPredictor(state["positions"], state["gradients"], self.kernel, self.noise, state["scale"])
        for s in range(1, self.n):
            predicted = predictor(tree.flatten(points[-1])[state["coordinates"]])
            if not torch.isfinite(predicted).all():
                raise NonFiniteError(f"the gradient predicted at point {s} of the chain has NaN or infinite entries; a noise larger "
                                     f"than {self.noise:g}, or a smaller lr, keeps predictions within the history's scale")
            x, rule_state = self._moved(state["rule"], points[-1], tree.unflatten(predicted, points[-1]), rule_states[-1])
            points.append(x)
            rule_states.append(rule_state)
        return points, rule_states

    @staticmethod
    def _moved(rule: Optimizer, x: Tree, gradient: Tree, rule_state: Any) -> tuple[Tree, Any]:
        """The rule's step, out of place."""
        with torch.no_grad():
            moved, rule_state = rule.update(tree.leaves(x), tree.leaves(gradient), rule_state)
        leaves = iter(moved)
        return tree.map(lambda _: next(leaves), x), rule_state

    def _remembered(self, problem: Problem, state: State, points: list[Tree], gradients: list[Tree]) -> dict[str, Tensor]:
        """The newest pairs of the history, the oldest first."""
        positions = torch.stack([tree.flatten(x)[state["coordinates"]] for x in points])
        known = torch.stack([tree.flatten(g) for g in gradients])
        return {"positions": torch.cat([state["positions"], positions])[-self.history:],
                "gradients": torch.cat([state["gradients"], known])[-self.history:]}

    def _chosen_scale(self, state: State) -> State:
        if self.n == 1 or state["t"] % PERIOD or len(state["positions"]) < 5:
            return state
        return {**state, "scale": chosen_scale(state["positions"], state["gradients"], SCALES, self.kernel, self.noise)}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["x"], batch_loss=state["loss"])

    def pack(self, state: State) -> State:
        return {name: value for name, value in state.items() if name not in ("rule", "parallel")}

    def unpack(self, problem: Problem, key: Key, packed: State) -> State:
        return {**packed, "rule": self._rule(problem), "parallel": ParallelMap(self.executor, self.n)}

    def __repr__(self) -> str:
        name = getattr(self.optimizer, "__name__", str(self.optimizer))
        own = {n: getattr(self, n) for n in ("n", "history", "kernel", "noise", "select", "executor")}
        return f"OptEx({name}, {', '.join(f'{n}={value!r}' for n, value in {**own, **self.hyperparameters}.items())})"
