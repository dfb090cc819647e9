"""Gradient methods with a constant step, in the form that convergence theorems speak of.

    x ← x − γ ∇f(x)                                                    Descent
    x ← x − γ ∇f_i(x), i uniform                                       StochasticDescent
    x ← x − γ ∇f_S(x), S of b different samples                        MinibatchDescent
    z ← z − γ ∇f_i(x);  x ← (λ x + z) / (λ + 1), λ = (t + 1) / 2       AveragedMomentum
    x ← prox_{γ r}(x − γ ∇f(x)), or ∇f_i                               ProximalDescent, StochasticProximalDescent

Averaged momentum is the heavy ball m ← β_t m + g, x ← x − γ_t m with γ_t = 2 γ / (t + 3) and β_t = t / (t + 2), t from 0.

Garrigos, Gower: Handbook of Convergence Theorems for (Stochastic) Gradient Methods, arXiv 2301.11235.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fallline.core import tree
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.tree import Tree

Iterate = Literal["last", "average", "best"]
"""x_t; the mean of x_0 … x_{t−1}; the one of these of least value."""


class Descent(Method):
    """x ← x − γ ∇f(x).

    Parameters
    ----------
    step_size : float
        γ.
    iterate : {"last", "average", "best"}, default "last"
        What the answer is.
    """

    def __init__(self, step_size: float, iterate: Iterate = "last") -> None:
        self.step_size, self.iterate = step_size, iterate

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        return {"x": x, "answer": x, "least": None, "t": 0, "key": key}

    def step(self, problem: Problem, state: State) -> State:
        x, t = state["x"], state["t"]
        moved = self.moved(problem, state, self.gradient(problem, x, state["key"].fold(t)))
        chosen = {"answer": moved["x"]} if self.iterate == "last" else self._chosen(problem, state)
        return {**state, **moved, **chosen, "t": t + 1}

    def gradient(self, problem: Problem, x: Tree, key: Key) -> Tree:
        """The gradient that this step takes."""
        return problem.gradient(x)

    def moved(self, problem: Problem, state: State, g: Tree) -> State:
        """The entries of the state that the step changes, x among them."""
        return {"x": tree.axpy(-self.step_size, g, state["x"])}

    def _chosen(self, problem: Problem, state: State) -> State:
        """The answer out of x_0 … x_t, the point before this step included."""
        x, weight = state["x"], 1 / (state["t"] + 1)
        if self.iterate == "average":
            return {"answer": tree.map(lambda mean, new: torch.lerp(mean, new, weight), state["answer"], x)}
        value = float(problem.value(x))
        return {} if state["least"] is not None and value >= state["least"] else {"answer": x, "least": value}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["answer"])


class StochasticDescent(Descent):
    """x ← x − γ ∇f_i(x) with i uniform, drawn anew in every step. Parameters as in ``Descent``."""

    def gradient(self, problem: Problem, x: Tree, key: Key) -> Tree:
        return problem.draw(key, 1).gradient(x)


class MinibatchDescent(Descent):
    """x ← x − γ ∇f_S(x), S of ``batch_size`` different samples. The other parameters as in ``Descent``."""

    def __init__(self, step_size: float, batch_size: int, iterate: Iterate = "last") -> None:
        super().__init__(step_size, iterate)
        self.batch_size = batch_size

    def gradient(self, problem: Problem, x: Tree, key: Key) -> Tree:
        chosen = torch.randperm(len(problem.parts), generator=key.generator())[: self.batch_size]
        return problem.draw(key, indices=chosen).gradient(x)


class AveragedMomentum(StochasticDescent):
    """z ← z − γ ∇f_i(x);  x ← (λ x + z) / (λ + 1), λ = (t + 1) / 2, t from 0. Parameters as in ``Descent``."""

    def init(self, problem: Problem, key: Key) -> State:
        state = super().init(problem, key)
        return {**state, "z": state["x"]}

    def moved(self, problem: Problem, state: State, g: Tree) -> State:
        z = tree.axpy(-self.step_size, g, state["z"])
        weight = 2 / (state["t"] + 3)
        return {"z": z, "x": tree.map(lambda x, new: torch.lerp(x, new, weight), state["x"], z)}


class ProximalDescent(Descent):
    """x ← prox_{γ r}(x − γ ∇f(x)) for a ``Composite`` problem f + r. Parameters as in ``Descent``."""

    needs: ClassVar[tuple[str, ...]] = ("prox",)
    kinds: ClassVar[tuple[str, ...]] = ("composite",)

    def gradient(self, problem: Problem, x: Tree, key: Key) -> Tree:
        return problem.smooth.gradient(x)

    def moved(self, problem: Problem, state: State, g: Tree) -> State:
        return {"x": problem.prox(super().moved(problem, state, g)["x"], self.step_size)}


class StochasticProximalDescent(ProximalDescent):
    """x ← prox_{γ r}(x − γ ∇f_i(x)) with i uniform, drawn anew in every step. Parameters as in ``Descent``."""

    def gradient(self, problem: Problem, x: Tree, key: Key) -> Tree:
        return problem.smooth.draw(key, 1).gradient(x)
