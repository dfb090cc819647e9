"""Minimising an expensive objective through a cheap proxy: one expensive gradient a step, and a subproblem on the proxy.

    g = ∇f(x) (or a stochastic gradient),   c = g − ∇f̂(x),   h = f − f̂ is δ-smooth
    x⁺ ≈ argmin_y f̂(y) + ⟨c, y − x⟩ + ‖y − x‖² / (2η)  =  prox_{η f̂}(x − η c)
    η = 1 / (2δ), and with noise of variance σ² over T steps the lesser of that and 1 / (σ √(δT))

Without noise ‖∇f‖² ≲ δΔ/T, Δ = f(x₀) − f*, as for gradient descent on a δ-smooth function, however rough f is itself.

Woodworth, Mishchenko, Bach: Two Losses Are Better Than One: Faster Optimization Using a Cheaper Proxy, ICML 2023, arXiv 2302.03542.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.constructors import Smooth
from fallline.core.counts import Counts
from fallline.core.errors import NonFiniteError
from fallline.core.keys import Key, as_key
from fallline.core.method import Method, Report, State
from fallline.core.operators import LinearOperator, top_eigenvalues
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.tree import Tree

LARGEST_DELTA = 1e30
PRODUCTS = 30
ROUNDING = 64


class ProxyCounts(Counts):
    """Counts on another's bill under names that begin with ``proxy_``."""

    def add(self, name: str, amount: int = 1) -> None:
        self._numbers[name] = self._numbers.get(name, 0) + amount
        if self.parent is not None:
            self.parent.add(f"proxy_{name}", amount)


class _Proxy(Problem):
    """The cheap objective, all of its data at once, counted apart from the expensive one."""

    def _billed(self, counts: Counts) -> _Proxy:
        return super()._billed(counts if isinstance(counts, ProxyCounts) else ProxyCounts(parent=counts))


def WithProxy(problem: Problem, proxy: Problem | Callable[[Tree], Tensor], **options: Any) -> Problem:
    """min f(x), with a cheap proxy f̂ of f: ``problem.proxy``.

    Values, gradients and samples of the proxy are counted as ``proxy_gradients`` and so on. ``draw`` draws from f; the proxy is
    always the whole one.

    Parameters
    ----------
    problem : Problem
        The expensive objective: ``Smooth``, ``FiniteSum``, ``Training`` …
    proxy : Problem, or function ``x -> 0-d tensor``
        Of the same variables. One that offers ``prox(x, step)`` solves its subproblems itself, in closed form.

    Raises
    ------
    ValueError
        If the proxy's variables are of another shape.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; Smooth(fun, x0) makes one of a function")
    problem.require("gradient", by="WithProxy")
    for name, given in (("problem", problem), ("proxy", proxy)):
        if isinstance(given, Problem) and (given.kind == "constrained" or given.has("project")):
            raise ValueError(f"{name} must be without constraints, which ProxyProx would leave, got {given!r}")
    cheap = proxy if isinstance(proxy, Problem) else Smooth(proxy, problem.x0)
    cheap.require("gradient", by="the proxy")
    tree.aligned(cheap.x0, problem.x0, "the proxy's x0")
    child = _Proxy(problem.x0, cheap._oracles, kind=cheap.kind, name=f"proxy of {problem.name}", differentiable=cheap._derives,
                   samples=cheap.samples)

    def sample(whole: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
        drawn = problem.draw(key, size, indices, at)
        return whole if drawn is problem else drawn

    settings: dict[str, Any] = {"kind": "proxied", "name": problem.name, "facts": problem.facts, "samples": problem.samples,
                                "differentiable": problem._derives, "metric": problem.metric, "budget": problem.budget,
                                "observer": lambda _, x: problem.observe(x)}
    return Problem(problem.x0, problem._oracles, **{**settings, **options, "sampler": sample, "children": {"proxy": child}})


def estimate_delta(f: Problem, proxy: Problem, points: Sequence[Tree], *, tol: float = 0.01, products: int = PRODUCTS,
                   key: Key | int = 0) -> float:
    """Return the largest |eigenvalue| of ∇²f − ∇²f̂ over some points, an estimate of δ from below.

    Parameters
    ----------
    f, proxy : Problem
        With Hessian-vector products.
    points : sequence of points
        Where to look; δ is a bound over all points.
    tol : float, default 0.01
    products : int, default 30
        Hessian-vector products of each function at a point, at most.
    key : Key or int, default 0
        Of the starting vectors.

    Notes
    -----
    By Lanczos, which needs fewer products than power iteration does, and finds ±δ where both are eigenvalues.
    """
    if isinstance(points, Tensor) or not points:
        raise ValueError("points must be a sequence of at least one point, such as [problem.x0], got "
                         f"{'a tensor' if isinstance(points, Tensor) else 'none'}")
    for function in (f, proxy):
        function.require("hvp", by="estimate_delta")
    key = as_key(key)

    def largest(x: Tree, own: Key) -> float:
        def product(v: Tree) -> Tree:
            difference = tree.sub(f.hvp(x, v), proxy.hvp(x, v))
            if not tree.all_finite(difference):
                raise NonFiniteError("a Hessian-vector product of f or its proxy has NaN or infinite entries")
            return difference

        operator = LinearOperator.from_function(product, x, adjoint=product)
        found = top_eigenvalues(operator, which="magnitude", tol=tol, max_iterations=products, generator=own.generator())
        return float(found.values[0].abs())

    return max(largest(x, key.fold(i)) for i, x in enumerate(points))


@register("proxy-prox")
@dataclass(frozen=True)
class ProxyProx(Method):
    """x⁺ ≈ argmin_y f̂(y) + ⟨∇f(x) − ∇f̂(x), y − x⟩ + ‖y − x‖² / (2η), of a problem `WithProxy`.

    Parameters
    ----------
    delta : float, optional
        δ, the smoothness of f − f̂. By default it is estimated at the starting point, by at most 30 Hessian-vector products of f.
    sigma : float, default 0
        σ, the noise of the gradients.
    horizon : int, optional
        T, how many steps there will be; needed with ``sigma``.
    tolerance : float, default 0.5
        The subproblem is solved until ‖its gradient‖ ≤ tolerance · ‖y − x‖ / η. The paper leaves the number open.
    inner_steps : int, default 100
        L-BFGS iterations of a subproblem, at most. A proxy with ``prox`` needs none.

    Notes
    -----
    A step costs one gradient of f, counted as ``gradients``; those of the proxy, which it takes the place of, are
    ``proxy_gradients``. Where the proxy is not convex, 1/η must be more than its weak convexity.

    The authors' guarantee with noise is E‖∇f‖² ≲ δΔ/T + σ √(δΔ/T). Do not read it as the gradient at an iterate: with a perfect proxy
    and a long step, x⁺ minimises f plus the noise of the step, and ∇f(x⁺) is that noise.

    δ that is too small makes steps too long. Without random data such a step is seen, as ‖∇f‖ is then more than twice what it was or
    not finite: it is taken back, at the cost of its gradient, and δ is doubled. With random data a norm says nothing; there δ has
    to be right.

    The solution is the last iterate (the guarantee is of a random one), the gap ‖∇f‖ of problems without random data, the certificate
    ``{"delta": δ, "eta": η, "taken_back": steps}``. The number 1 in 1/(σ √(δT)) is a choice: the paper has a constant there.
    """

    delta: float | None = None
    sigma: float = 0.0
    horizon: int | None = None
    tolerance: float = 0.5
    inner_steps: int = 100

    needs: ClassVar[tuple[str, ...]] = ("gradient", "proxy")
    kinds: ClassVar[tuple[str, ...]] = ("proxied",)
    space: ClassVar[Mapping[str, Range]] = {"delta": LogUniform(1e-3, 1e2)}

    def __post_init__(self) -> None:
        for name in ("delta", "sigma", "tolerance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (isinstance(value, int | float) or (value is None and name == "delta")):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if self.delta is not None and not (math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta must be a positive number, or None for an estimate, got {self.delta!r}")
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma must be a number of at least 0 (the noise of gradients), got {self.sigma!r}")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise ValueError(f"tolerance must be a positive number, got {self.tolerance!r}; 0.5 is typical")
        for name, value in (("horizon", self.horizon), ("inner_steps", self.inner_steps)):
            if not (name == "horizon" and value is None) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.sigma and self.horizon is None:
            raise ValueError("horizon must be given with sigma: the number of steps that will be taken")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        low = {leaf.dtype for leaf in tree.leaves(problem.x0)} - {torch.float32, torch.float64}
        if low:
            raise TypeError(f"ProxyProx needs float32 or float64 variables, to whose digits it solves its subproblems, got {low.pop()}")

    def eta(self, delta: float) -> float:
        """min{1 / (2δ), 1 / (σ √(δT))}."""
        quiet = 1 / (2 * delta)
        if not self.sigma or self.horizon is None:
            return quiet
        return min(quiet, 1 / (self.sigma * math.sqrt(delta * self.horizon)))

    def init(self, problem: Problem, key: Key) -> State:
        return {"x": tree.clone(problem.x0), "value": None, "gradient": None, "delta": self.delta, "taken_back": 0, "t": 0,
                "scale": 0.0, "random": False, "key": key, "failure": ""}

    def _started(self, problem: Problem, state: State) -> State:
        """The state with a δ."""
        if state["delta"] is not None:
            return state
        delta = estimate_delta(problem, problem.proxy, [problem.x0], key=state["key"].fold("delta"))
        if not delta > 0:
            raise ValueError("delta must be given where f and its proxy have the same curvature at the starting point, or none")
        return {**state, "delta": delta}

    def step(self, problem: Problem, state: State) -> State:
        state = self._started(problem, state)
        drawn = problem.draw(state["key"].fold(state["t"]))
        state = {**state, "t": state["t"] + 1, "random": drawn is not problem}
        if state["random"] or state["gradient"] is None:
            state = self._evaluated(drawn, state)
        x, gradient = state["x"], state["gradient"]
        if not tree.all_finite(gradient):
            raise NonFiniteError("the gradient has NaN or infinite entries")
        y = self._moved(problem, x, gradient, self.eta(state["delta"]))
        if not state["random"]:
            return self._judged(drawn, state, y)
        return {**state, "x": y} if tree.all_finite(y) else self._taken_back(state)

    @staticmethod
    def _evaluated(drawn: Problem, state: State) -> State:
        value, gradient = drawn.value_and_gradient(state["x"])
        return {**state, "value": value, "gradient": gradient}

    def _judged(self, problem: Problem, state: State, y: Tree) -> State:
        """The step, or the point before it where the gradient has more than doubled."""
        if not tree.all_finite(y):
            return self._taken_back(state)
        moved = self._evaluated(problem, {**state, "x": y})
        before, after = (float(tree.norm(s["gradient"])) for s in (state, moved))
        scale = max(before, state["scale"])
        # At the solution gradients are rounding, which doubles as it likes.
        noise = ROUNDING * torch.finfo(tree.leaves(y)[0].dtype).eps * scale
        return {**moved, "scale": scale} if after <= max(2 * before, noise) else self._taken_back(state)

    @staticmethod
    def _taken_back(state: State) -> State:
        delta = 2 * state["delta"]
        failure = "" if delta <= LARGEST_DELTA else "no delta keeps the gradient from doubling: is it that of the objective?"
        return {**state, "delta": delta, "taken_back": state["taken_back"] + 1, "failure": failure}

    def _moved(self, problem: Problem, x: Tree, gradient: Tree, eta: float) -> Tree:
        """The minimiser of the subproblem."""
        proxy = problem.proxy
        own = proxy.gradient(x)
        shift = tree.sub(gradient, own)
        if proxy.has("prox"):
            return proxy.prox(tree.axpy(-eta, shift, x), eta)
        # The subproblem's gradient is a sum of these, and no smaller than their rounding.
        floor = ROUNDING * torch.finfo(tree.leaves(x)[0].dtype).eps * float(tree.norm(own) + tree.norm(gradient))

        def subproblem(y: Tree) -> tuple[Tensor, Tree]:
            value, slope = proxy.value_and_gradient(y)
            step = tree.sub(y, x)
            total = value + tree.dot(shift, step) + tree.dot(step, step) / (2 * eta)
            return total, tree.axpy(1 / eta, step, tree.add(slope, shift))

        def solved(y: Tree, slope: Tree) -> bool:
            return float(tree.norm(slope)) <= max(floor, self.tolerance * float(tree.norm(tree.sub(y, x))) / eta)

        return minimised(subproblem, x, solved, self.inner_steps)

    def report(self, problem: Problem, state: State) -> Report:
        report = Report(state["x"])
        if state["delta"] is not None:
            report.certificate = {"delta": state["delta"], "eta": self.eta(state["delta"]), "taken_back": state["taken_back"]}
        if state["random"]:
            report.batch_loss = state["value"]
        elif state["gradient"] is not None:
            report.value, report.gap = state["value"], tree.norm(state["gradient"])
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report


class _Solved(Exception):
    """The point that was asked about will do; it may be a trial of a line search."""


def minimised(value_and_gradient: Callable[[Tree], tuple[Tensor, Tree]], x: Tree, solved: Callable[[Tree, Tree], bool],
              iterations: int) -> Tree:
    """L-BFGS from ``x`` until ``solved(y, gradient)``; else the last point of so many iterations."""
    point = tree.flatten(x).detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([point], max_iter=iterations, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        y = tree.unflatten(point.detach(), x)
        value, gradient = value_and_gradient(y)
        if solved(y, gradient):
            raise _Solved
        point.grad = tree.flatten(gradient).clone()
        return value

    with contextlib.suppress(_Solved):
        optimizer.step(closure)
    return tree.map(lambda leaf: leaf.clone(), tree.unflatten(point.detach(), x))
