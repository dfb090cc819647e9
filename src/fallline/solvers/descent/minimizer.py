"""A descent, a search and a curvature source make a method.

    at x: H from the curvature source;  the path t ↦ s(t) from the descent, with H and ∇f(x);  x⁺ = x + s(t), t from the search
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fallline.core import tree
from fallline.core.errors import NonFiniteError
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import Range
from fallline.solvers.descent.curvature import Curvature, Exact
from fallline.solvers.descent.descents import CubicNewton, Descent
from fallline.solvers.descent.local import Unusable
from fallline.solvers.descent.searches import Backtracking, Point, Search, Trials

KINDS = ("smooth", "finite-sum", "training", "least-squares")


@dataclass(frozen=True)
class Composed(Method):
    """A method of three parts; subclasses say which.

    Works on the flattened variables, in their precision: use float64 for digits. The gap is the gradient norm. A search that accepts
    nothing ends the run as "failed" and says why; the answer is then the last point accepted.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient", "hessian")
    kinds: ClassVar[tuple[str, ...]] = KINDS

    def parts(self) -> tuple[Descent, Search, Curvature]:
        """Return descent, search and curvature source."""
        raise NotImplementedError(f"{type(self).__name__} must define parts")

    @functools.cached_property
    def _parts(self) -> tuple[Descent, Search, Curvature]:
        return self.parts()

    def check(self, problem: Problem) -> None:
        super().check(problem)
        problem.require(*self._parts[2].needs, by=type(self).__name__)

    def init(self, problem: Problem, key: Key) -> State:
        _, search, curvature = self._parts
        x = tree.clone(problem.x0)
        value, gradient = problem.value_and_gradient(x)
        return {"x": x, "value": value, "gradient": tree.flatten(gradient).to(tree.precision(x)), "search": search.start(),
                "curvature": curvature.start(key), "failure": ""}

    def step(self, problem: Problem, state: State) -> State:
        descent, search, curvature = self._parts
        here = Point(state["x"], state["value"], state["gradient"])
        if not here.finite:
            raise NonFiniteError("the objective or its gradient has NaN or infinite entries")
        if state["failure"] or (not bool(here.gradient.any()) and not descent.leaves_saddles):
            return state
        try:
            local, memory = curvature.at(problem, here.x, state["curvature"])
        except Unusable as error:
            return {**state, "failure": str(error)}
        found = search(Trials(problem, here), descent.path(local, here.gradient), state["search"])
        point = found.point or here
        return {"x": point.x, "value": point.value, "gradient": point.gradient, "search": found.memory, "curvature": memory,
                "failure": found.message}

    def report(self, problem: Problem, state: State) -> Report:
        report = Report(state["x"], value=state["value"], gap=torch.linalg.vector_norm(state["gradient"]))
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report


@register("minimizer")
@dataclass(frozen=True)
class Minimizer(Composed):
    """x⁺ = x + s(t): the path s of ``descent``, the size t of ``search``, the curvature behind them from ``curvature``.

    Parameters
    ----------
    descent : Descent, default ``CubicNewton()``
        ``GradientStep``, ``NewtonStep``, ``RegularizedNewton``, ``CubicNewton``, ``TrustRegion``, ``TruncatedCG``, ``KrylovStep``,
        ``PolynomialStep``.
    search : Search, default ``Backtracking()``
        ``Fixed``, ``Armijo``, ``Backtracking``, ``RatioTest`` (for trust regions), ``GradientNormalized``, ``DampedSearch`` …
    curvature : Curvature, default ``Exact()``
        ``Exact``, ``Products``, ``Zero``, ``HutchinsonDiagonal``, ``Fisher``, ``GaussNewton``, ``Sketched``, ``Averaged``, ``Lazy``,
        ``Given``.

    Examples
    --------
    >>> method = Minimizer(TruncatedCG(), RatioTest(), Products())      # Steihaug's trust region, no Hessian formed
    >>> fl.minimize(fun, x0, method)

    Notes
    -----
    Reports the gradient norm as the gap.
    """

    descent: Descent = field(default_factory=CubicNewton)
    search: Search = field(default_factory=Backtracking)
    curvature: Curvature = field(default_factory=Exact)

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        for name, kind in (("descent", Descent), ("search", Search), ("curvature", Curvature)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, such as those of fallline.solvers.descent; "
                                f"got {getattr(self, name)!r}")

    def parts(self) -> tuple[Descent, Search, Curvature]:
        return self.descent, self.search, self.curvature
