"""Any composed method in a training loop of your own: x ← x + s(t) on the batch at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.bound import Bound
from fallline.core.errors import MissingOracle
from fallline.core.keys import Key
from fallline.core.objective import ModelProblem
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.solvers.descent.minimizer import Composed


class AsOptimizer(torch.optim.Optimizer):
    """One step of a descent, its search included, on one batch: ``step(objective(x, y))``.

    Parameters
    ----------
    params : iterable of Tensor
        All parameters of the objective that require gradients, in one group.
    method : Composed
        ``TrustRegionCG()``, ``GradRegNewton("products")``, ``Minimizer(…)``.

    Notes
    -----
    Values, gradients and products of a step are of the same batch, with the same random masks; what the search and the curvature
    source keep (a radius, a diagonal) goes on from step to step, and is in ``state_dict``. There is no learning rate: schedulers have
    nothing to do. Batches should be large: a search judges by differences of the batch's loss. Where no step is accepted the parameters
    stay, and ``failure`` says why. ``step`` returns the loss before the step.

    Examples
    --------
    >>> optimizer = fl.solvers.AsOptimizer(model.parameters(), fl.solvers.TrustRegionCG())
    >>> loss = optimizer.step(objective(x, y))
    """

    def __init__(self, params: Iterable[Tensor], method: Composed) -> None:
        if not isinstance(method, Composed):
            raise TypeError("method must be composed of a descent, a search and a curvature source, such as TrustRegionCG(), "
                            f"got {method!r}")
        super().__init__(params, {})
        if len(self.param_groups) != 1:
            raise ValueError("params must be one group, for a step has one model of all parameters, "
                             f"got {len(self.param_groups)} groups")
        self.method = method
        self.failure = ""

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """Take a step on a realisation of an objective."""
        problem, point = _realised(closure, self.method)
        parameters = tree.leaves(point)
        own = {id(p) for p in self.param_groups[0]["params"] if p.requires_grad}
        if {id(p) for p in parameters} != own:
            raise ValueError(f"params must be all {len(parameters)} parameters of the objective that require gradients, got {len(own)} "
                             "that are not the same")
        x = tree.map(lambda p: p.detach().clone(), point)
        kept = self.state[self.param_groups[0]["params"][0]]
        if not kept:
            _, search, curvature = self.method.parts()
            kept.update(search=search.start(), curvature=curvature.start(Key()))
        value, gradient = problem.value_and_gradient(x)
        state = {"x": x, "value": value, "gradient": tree.flatten(gradient).to(tree.precision(x)), "failure": "", **kept}
        state = self.method.step(problem, state)
        kept.update(search=state["search"], curvature=state["curvature"])
        self.failure = state["failure"]
        with torch.no_grad():
            for parameter, new in zip(parameters, tree.leaves(state["x"]), strict=True):
                parameter.copy_(new)
        return value

    def __repr__(self) -> str:
        return f"AsOptimizer({self.method!r}, {len(self.param_groups[0]['params'])} parameters)"


def _realised(closure: Any, method: Composed) -> tuple[Problem, Tree]:
    if isinstance(closure, ModelProblem):
        closure.require(*method.parts()[2].needs, by=type(method).__name__)
        return closure, closure.variables
    if isinstance(closure, Bound):
        closure.problem.require(*method.parts()[2].needs, by=type(method).__name__)
        return closure.problem, closure._point
    raise MissingOracle(f"{type(method).__name__} evaluates at trial points and asks for curvature: call step(objective(x, y)) with "
                        "objective = fl.Objective(model, loss_fn); a plain closure has neither")
