"""What a method is guaranteed to do on a problem, and whether a run keeps to it.

    bound(t) = transient(γ, t) + floor(γ) ≥ measured(t),  the mean over runs of f − f* or ‖x − x*‖² at the theorem's iterate

``theorem`` finds the bound, ``iterations_for`` inverts it, ``check_rate`` runs the method.

Garrigos, Gower: Handbook of Convergence Theorems for (Stochastic) Gradient Methods, arXiv 2301.11235.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fallline.core import tree
from fallline.core.budget import Budget
from fallline.core.counts import Counts
from fallline.core.driver import Moment, solve
from fallline.core.keys import Key, as_key
from fallline.core.method import Method
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.landscape.descents import (
    AveragedMomentum,
    Descent,
    MinibatchDescent,
    ProximalDescent,
    StochasticDescent,
    StochasticProximalDescent,
)
from fallline.landscape.rate_facts import facts_for, stated_facts
from fallline.landscape.theorems import Facts, Theorem, theorem

ROUNDINGS = 64
"""How many roundings a measurement may be off: no bound below that is tested."""


class Iterations(NamedTuple):
    """So many steps of this size suffice."""

    steps: int
    step_size: float


def iterations_for(eps: float, method: str, assumptions: str | Collection[str], facts: Problem | Mapping[str, Any], *,
                   batch_size: int | None = None) -> Iterations:
    """Return how many steps guarantee a measure of at most ``eps``, and of what size.

    γ is the largest allowed whose floor is at most ε/2; the steps are the fewest with bound(t) ≤ ε. For SGD on a strongly convex
    function that is about max(2 L_max/μ, 4 σ*²/(μ² ε)) log(2 D²/ε), as in the handbook.

    Parameters
    ----------
    eps : float
        Of f − f*, or of ‖x − x*‖², as the theorem measures.
    method, assumptions
        As for ``theorem``.
    facts : Problem or mapping of str to float
        Where L, mu, D … are stated.
    batch_size : int, optional
        b, for "minibatch-sgd".
    """
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a finite number > 0, got {eps}")
    row = theorem(method, assumptions)
    known = facts_for(row, facts, batch_size=batch_size)
    slope = row.floor(known, 1.0)  # floors are proportional to γ
    step = min(row.largest_step(known), eps / (2 * slope) if slope > 0 else math.inf)
    high = 1
    while row.rate(high, known, step) > eps:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if row.rate(middle, known, step) > eps else (low, middle)
    return Iterations(high, step)


@dataclass(frozen=True, repr=False)
class RateCheck:
    """A measured run beside the bound of its theorem, at some steps."""

    theorem: Theorem
    step_size: float
    allowed: bool
    """Whether the theorem allows the step size."""
    steps: tuple[int, ...]
    measured: tuple[float, ...]
    """The mean over runs; infinite where one diverged."""
    bound: tuple[float, ...]
    resolution: float
    """What rounding lets be measured: a bound below it is not tested there."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Measured over bound, or over the resolution where that is larger."""
        return tuple(m / max(b, self.resolution) for m, b in zip(self.measured, self.bound, strict=True))

    @property
    def largest_ratio(self) -> float:
        """At most 1 where the run keeps to the theorem."""
        return max(self.ratios)

    def plot(self) -> Any:
        """Return a plotly figure of measured against guaranteed, logarithmic."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, values, dash in (("guaranteed", self.bound, "dash"), ("measured", self.measured, "solid")):
            figure.add_scatter(x=self.steps, y=values, mode="lines+markers", name=name, line_dash=dash)
        return figure.update_layout(template="simple_white", xaxis_title="steps", yaxis_title=_measured(self.theorem), xaxis_type="log",
                                    yaxis_type="log", title=f"{self.theorem.method}: {self.theorem.statement}")

    def __repr__(self) -> str:
        beyond = "" if self.allowed else ", beyond what the theorem allows"
        lines = [repr(self.theorem), f"  step size {self.step_size:.4g}{beyond}; measured / guaranteed up to {self.largest_ratio:.4g}"]
        lines += [f"  t = {t}: {m:.4g} <= {b:.4g}: {'yes' if r <= 1 else 'no'}"
                  for t, m, b, r in zip(self.steps, self.measured, self.bound, self.ratios, strict=True)]
        return "\n".join(lines)


def _measured(row: Theorem) -> str:
    return "f − f*" if row.measure == "gap" else "‖x − x*‖²"


def check_rate(problem: Problem, method: str, steps: int | Sequence[int], assumptions: str | Collection[str], *,
               step_size: float | None = None, batch_size: int | None = None, replicas: int = 20, key: Key | int = 0) -> RateCheck:
    """Run a method from ``problem.x0`` and hold it against its theorem.

    Parameters
    ----------
    problem : Problem
        Its facts state what the theorem needs: ``L``, ``mu``, ``L_max``, ``G``, ``delta_star``, and ``best_value`` or ``solution`` to
        measure against. D, f(x₀) − f*, σ*² and n follow from these; without data, L_max = L and σ*² = 0.
    method, assumptions
        As for ``theorem``.
    steps : int or sequence of int
        At which t ≥ 1 to compare; one number T stands for 1, 2, 4, … and T.
    step_size : float, optional
        γ; by default the largest allowed, or D / (G √T) for subgradients. One that is not allowed is run all the same, and noted.
    batch_size : int, optional
        b, for "minibatch-sgd".
    replicas : int, default 20
        Independent runs to average over. A deterministic method runs once.
    key : Key or int, default 0

    Raises
    ------
    ValueError
        If a fact is missing or out of range, or no theorem follows from the assumptions.

    Notes
    -----
    A bound speaks of the mean over all runs; that of 20 may exceed a bound that is tight. The sum of R copies of a problem, each with
    its samples in an order of its own, is a problem to which every theorem applies with R D², R σ*², R Δ* and R G²: a run of it is R
    replicas at the price of one.
    """
    row = theorem(method, assumptions)
    known = facts_for(row, problem, batch_size=batch_size)
    at = _checked_steps(steps)
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise ValueError(f"replicas must be a whole number of at least 1, got {replicas!r}")
    step = row.step_size(known, at[-1]) if step_size is None else step_size
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step_size must be a finite number > 0, got {step}")
    measure, resolution = _measure(row, problem, known)
    runner = RUNNERS[method](step, row.iterate) if batch_size is None else MinibatchDescent(step, batch_size, row.iterate)
    runs = replicas if method in STOCHASTIC and len(problem.parts) else 1
    found = [_run(problem, runner, at, as_key(key).fold("replica", r), measure) for r in range(runs)]
    means = tuple(sum(column) / runs for column in zip(*found, strict=True))
    bounds = tuple(row.rate(t, known, step) for t in at)
    return RateCheck(row, step, step <= row.largest_step(known) * (1 + 1e-12), at, means, bounds, resolution)


RUNNERS: Mapping[str, type[Descent]] = {
    "gd": Descent, "subgradient": Descent, "sgd": StochasticDescent, "stochastic-subgradient": StochasticDescent,
    "momentum": AveragedMomentum, "proximal-gd": ProximalDescent, "proximal-sgd": StochasticProximalDescent}
STOCHASTIC = ("sgd", "minibatch-sgd", "momentum", "stochastic-subgradient", "proximal-sgd")


def _checked_steps(steps: int | Sequence[int]) -> tuple[int, ...]:
    """Ascending step numbers; of one number T, the powers of 2 up to it and T."""
    given = [steps] if isinstance(steps, int) else list(steps)
    if not given or any(isinstance(t, bool) or not isinstance(t, int) or t < 1 for t in given):
        raise ValueError(f"steps must be whole numbers of at least 1, got {steps!r}")
    if isinstance(steps, int):
        given += [2**i for i in range(steps.bit_length()) if 2**i < steps]
    return tuple(sorted(set(given)))


def _measure(row: Theorem, problem: Problem, known: Facts) -> tuple[Callable[[Tree], float], float]:
    """What the theorem measures, uncounted, and the least that rounding lets be seen of it."""
    stated, free = stated_facts(problem), problem.counted(Counts())
    name = "best_value" if row.measure == "gap" else "solution"
    reference = stated.get(name)
    if reference is None:
        raise ValueError(f"the problem must state {name} to measure {_measured(row)}, and {problem.name!r} does not: put it into facts")
    rounding = ROUNDINGS * torch.finfo(tree.leaves(problem.x0)[0].dtype).eps
    if row.measure == "gap":
        best = float(reference)
        scale = max(abs(best), abs(float(free.value(problem.x0))))
        return lambda x: float(free.value(x)) - best, rounding * scale
    condition = max(known.get("L", 0.0), known.get("L_max", 0.0)) / known["mu"]
    return lambda x: float(tree.norm(tree.sub(x, reference))) ** 2, (rounding * condition * float(tree.norm(reference))) ** 2


def _run(problem: Problem, method: Method, steps: tuple[int, ...], key: Key, measure: Callable[[Tree], float]) -> list[float]:
    """The measure after each of the steps, infinite where the run ended before."""
    found: dict[int, float] = {}

    def look(moment: Moment) -> None:
        if moment.step in steps:
            value = measure(moment.report.resolve())
            found[moment.step] = value if math.isfinite(value) else math.inf

    solve(problem, method, Budget(steps=steps[-1]), key=key, every=math.gcd(*steps), trace=1, callback=look)
    return [found.get(t, math.inf) for t in steps]
