"""A problem as a plain function of its variables, a model in evaluation mode: what diagnostics look at, changing nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fallline.core import tree
from fallline.core.constructors import Smooth
from fallline.core.errors import MissingOracle
from fallline.core.modules import evaluating
from fallline.core.objective import ModelProblem, Training
from fallline.core.problem import Problem
from fallline.core.tree import Tree


def _realisation(problem: Training | ModelProblem, point: Tree) -> Problem:
    """The loss as a plain function of the parameters, on the bill of ``problem``.

    A realisation of the caller's is not asked itself: its first evaluation moves buffers, and belongs to the caller.
    """
    model, loss_fn = problem.model, problem.loss_fn
    if any(hasattr(p, "device_mesh") for p in model.parameters()):
        raise MissingOracle("spectra need whole weights, and this model is sharded; gather them into a bare copy of the model")
    inputs, targets = problem.data if isinstance(problem, Training) else (problem.inputs, problem.targets)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)

    def outputs(x: Tree) -> Any:
        return functional_call(model, dict(x), arguments)

    def loss(found: Any) -> Tensor:
        return loss_fn(found, targets)

    whole = Smooth(lambda x: loss(outputs(x)), point, name=problem.name, given={"outputs": outputs, "loss": loss})
    return whole.counted(problem.counts)


@contextmanager
def evaluation(problem: Problem, x: Tree | None) -> Iterator[tuple[Problem, Tree]]:
    """Yield a problem to ask and the point; a model in evaluation mode until the end."""
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; Objective(model, loss)(inputs, targets) and "
                        "Smooth(fun, x0) make one")
    point = checked_point(problem, problem.x0 if x is None else x, "x")
    if not isinstance(problem, Training | ModelProblem):
        yield problem, point
        return
    realisation = _realisation(problem, point)
    with evaluating(problem.model):
        yield realisation, point


def checked_point(problem: Problem, x: Tree, argument: str) -> Tree:
    """The variables of ``x``, detached, or what is wrong with them."""
    if isinstance(problem, Training | ModelProblem):
        missing = sorted(set(problem.x0) - set(x)) if isinstance(x, dict) else sorted(problem.x0)
        if missing:
            raise ValueError(f"{argument} must be a dict of the model's parameters by name, {missing[:3]} are missing")
        x = {name: x[name] for name in problem.x0}
    expected, found = ([tuple(leaf.shape) for leaf in tree.leaves(t)] for t in (problem.x0, x))
    if expected != found:
        raise ValueError(f"{argument} must have the shapes of problem.x0, {expected[:4]}, got {found[:4]}")
    dtypes = {leaf.dtype for leaf in tree.leaves(x)}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(f"{argument} must be float32 or float64 throughout, got {sorted(map(str, dtypes))}; "
                         "convert the model by .double()")
    return tree.map(lambda leaf: leaf.detach(), x)
