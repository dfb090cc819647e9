"""Convergence theorems as data: a row for a method and what it assumes, with the largest step and the bound.

    bound(t) = transient(γ, t) + floor(γ),        such as  D² / (γ t) + 2 γ σ*²  or  (1 − γ μ)ᵗ D² + 2 γ σ*² / μ

with D = ‖x₀ − x*‖, L and L_max the smoothness of the mean and of its terms, μ strong convexity (or the constant of Polyak-Łojasiewicz,
‖∇f‖² ≥ 2 μ (f − f*)), σ*² = E‖∇f_i(x*) − ∇f(x*)‖², G² ≥ E‖g‖² for subgradients g, Δ* = f* − mean of min f_i, and for batches of b of
n samples without replacement

    L_b = n (b − 1) / (b (n − 1)) · L + (n − b) / (b (n − 1)) · L_max,      σ_b² = (n − b) / (b (n − 1)) · σ*²

Garrigos, Gower: Handbook of Convergence Theorems for (Stochastic) Gradient Methods, arXiv 2301.11235, editions of 2023 and 2024. They
differ in small constants: for SGD on convex functions one allows γ < 1/(2 L_max) and bounds by D² / (2 γ (1 − 2 γ L_max) t) +
γ σ*² / (1 − 2 γ L_max). The rows here have γ ≤ 1/(4 L_max), where both are at most D² / (γ t) + 2 γ σ*²; likewise for L_b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fallline.landscape.descents import Iterate

Facts = Mapping[str, float]


def batch_smoothness(facts: Facts) -> float:
    """L_b, between L_max at b = 1 and L at b = n."""
    n, b = facts["n"], facts["batch_size"]
    return (n * (b - 1) * facts["L"] + (n - b) * facts["L_max"]) / (b * (n - 1)) if n > 1 else facts["L"]


def batch_noise(facts: Facts) -> float:
    """σ_b², the variance at the solution of the mean of b different samples' gradients."""
    n, b = facts["n"], facts["batch_size"]
    return (n - b) / (b * (n - 1)) * facts["sigma_star_squared"] if n > 1 else 0.0


@dataclass(frozen=True, repr=False)
class Theorem:
    """What a method guarantees under some assumptions; expectations where it is stochastic."""

    method: str
    assumptions: tuple[str, ...]
    needs: tuple[str, ...]
    """The facts in its bound, by name."""
    measure: Literal["gap", "distance"]
    """Whether the bound is on f − f* or on ‖x − x*‖²."""
    iterate: Iterate
    """Of which iterate: x_t, the mean of x_0 … x_{t−1}, or the best of these."""
    section: int
    """Of the handbook."""
    statement: str
    largest_step: Callable[[Facts], float] = field(compare=False)
    transient: Callable[[Facts, float, float], float] = field(compare=False)
    floor: Callable[[Facts, float], float] = field(default=lambda f, step: 0.0, compare=False)

    def step_size(self, facts: Facts, horizon: int | None = None) -> float:
        """The largest step; for subgradients, which have none, D / (G √horizon)."""
        largest = self.largest_step(facts)
        if math.isfinite(largest):
            return largest
        if horizon is None:
            raise ValueError(f"horizon, the number of steps, must be given: the step of {self.method} depends on it")
        return facts["D"] / (facts["G"] * math.sqrt(horizon))

    def rate(self, t: float, facts: Facts, step_size: float | None = None) -> float:
        """The bound after ``t`` ≥ 1 steps of size ``step_size``, by default the largest (for subgradients, that of horizon t)."""
        if not t >= 1:
            raise ValueError(f"t must be at least 1 step, got {t}")
        step = self.step_size(facts, math.ceil(t)) if step_size is None else step_size
        return self.transient(facts, step, t) + self.floor(facts, step)

    def __repr__(self) -> str:
        of = {"last": "x_t", "average": "mean of x_0 … x_{t−1}", "best": "best of x_0 … x_{t−1}"}[self.iterate]
        return f"Theorem({self.method}, {', '.join(self.assumptions)}; {of}: {self.statement})"


def _gap_over(factor: float) -> Callable[[Facts, float, float], float]:
    """D² / (factor γ t)."""
    return lambda f, step, t: f["D"] ** 2 / (factor * step * t)


def _contracted(start: Callable[[Facts], float]) -> Callable[[Facts, float, float], float]:
    """(1 − γ μ)ᵗ · start."""
    def transient(f: Facts, step: float, t: float) -> float:
        part = step * f["mu"]
        return math.exp(t * math.log1p(-part)) * start(f) if part < 1 else 0.0  # a power of 1 − γμ would round γμ away

    return transient


def _squared_distance(facts: Facts) -> float:
    return facts["D"] ** 2


SMOOTH, CONVEX, STRONG, PL = "smooth", "convex", "strongly convex", "pl"
INTERPOLATION, LIPSCHITZ = "interpolation", "lipschitz"
NOISE = "sigma_star_squared"

# Of the rows of a method, the first whose assumptions are met is taken: faster rates stand first.
THEOREMS: tuple[Theorem, ...] = (
    Theorem("gd", (SMOOTH, STRONG), ("L", "mu", "D"), "distance", "last", 3,
            "for γ ≤ 1/L, ‖x_t − x*‖² ≤ (1 − γμ)ᵗ D²",
            lambda f: 1 / f["L"], _contracted(_squared_distance)),
    Theorem("gd", (SMOOTH, PL), ("L", "mu", "initial_gap"), "gap", "last", 3,
            "for γ ≤ 1/L, f(x_t) − f* ≤ (1 − γμ)ᵗ (f(x_0) − f*)",
            lambda f: 1 / f["L"], _contracted(lambda f: f["initial_gap"])),
    Theorem("gd", (SMOOTH, CONVEX), ("L", "D"), "gap", "last", 3,
            "for γ ≤ 1/L, f(x_t) − f* ≤ D² / (2γt)",
            lambda f: 1 / f["L"], _gap_over(2)),
    Theorem("sgd", (SMOOTH, STRONG, INTERPOLATION), ("L_max", "mu", "D"), "distance", "last", 5,
            "for γ ≤ 1/(2 L_max), E‖x_t − x*‖² ≤ (1 − γμ)ᵗ D², the corollary at σ*² = 0",
            lambda f: 1 / (2 * f["L_max"]), _contracted(_squared_distance)),
    Theorem("sgd", (SMOOTH, STRONG), ("L_max", "mu", "D", NOISE), "distance", "last", 5,
            "for γ ≤ 1/(2 L_max), E‖x_t − x*‖² ≤ (1 − γμ)ᵗ D² + 2γσ*²/μ",
            lambda f: 1 / (2 * f["L_max"]), _contracted(_squared_distance), lambda f, step: 2 * step * f[NOISE] / f["mu"]),
    Theorem("sgd", (SMOOTH, PL), ("L", "L_max", "mu", "initial_gap", "delta_star"), "gap", "last", 5,
            "for γ ≤ μ/(L L_max), E f(x_t) − f* ≤ (1 − γμ)ᵗ (f(x_0) − f*) + γ L L_max Δ*/μ; terms need not be convex",
            lambda f: f["mu"] / (f["L"] * f["L_max"]), _contracted(lambda f: f["initial_gap"]),
            lambda f, step: step * f["L"] * f["L_max"] * f["delta_star"] / f["mu"]),
    Theorem("sgd", (SMOOTH, CONVEX, INTERPOLATION), ("L_max", "D"), "gap", "average", 5,
            "for γ ≤ 1/(4 L_max), E f(x̄_t) − f* ≤ D² / (γt), the corollary at σ*² = 0",
            lambda f: 1 / (4 * f["L_max"]), _gap_over(1)),
    Theorem("sgd", (SMOOTH, CONVEX), ("L_max", "D", NOISE), "gap", "average", 5,
            "for γ ≤ 1/(4 L_max), E f(x̄_t) − f* ≤ D² / (γt) + 2γσ*²",
            lambda f: 1 / (4 * f["L_max"]), _gap_over(1), lambda f, step: 2 * step * f[NOISE]),
    Theorem("minibatch-sgd", (SMOOTH, STRONG), ("L", "L_max", "mu", "D", NOISE, "n", "batch_size"), "distance", "last", 6,
            "for γ ≤ 1/(2 L_b), E‖x_t − x*‖² ≤ (1 − γμ)ᵗ D² + 2γσ_b²/μ, batches without replacement",
            lambda f: 1 / (2 * batch_smoothness(f)), _contracted(_squared_distance),
            lambda f, step: 2 * step * batch_noise(f) / f["mu"]),
    Theorem("minibatch-sgd", (SMOOTH, CONVEX), ("L", "L_max", "D", NOISE, "n", "batch_size"), "gap", "average", 6,
            "for γ ≤ 1/(4 L_b), E f(x̄_t) − f* ≤ D² / (γt) + 2γσ_b², batches without replacement",
            lambda f: 1 / (4 * batch_smoothness(f)), _gap_over(1), lambda f, step: 2 * step * batch_noise(f)),
    Theorem("momentum", (SMOOTH, CONVEX), ("L_max", "D", NOISE), "gap", "last", 7,
            "for γ ≤ 1/(4 L_max), E f(x_t) − f* ≤ D² / (γ(t + 1)) + 2γσ*², momentum as averaging of the iterates",
            lambda f: 1 / (4 * f["L_max"]), lambda f, step, t: f["D"] ** 2 / (step * (t + 1)), lambda f, step: 2 * step * f[NOISE]),
    Theorem("subgradient", (LIPSCHITZ, CONVEX), ("G", "D"), "gap", "best", 9,
            "for any γ, min f − f* ≤ D² / (2γt) + γG²/2; D / (G √T) is best for T steps",
            lambda f: math.inf, _gap_over(2), lambda f, step: step * f["G"] ** 2 / 2),
    Theorem("stochastic-subgradient", (LIPSCHITZ, CONVEX), ("G", "D"), "gap", "average", 9,
            "for any γ, E f(x̄_t) − f* ≤ D² / (2γt) + γG²/2; D / (G √T) is best for T steps",
            lambda f: math.inf, _gap_over(2), lambda f, step: step * f["G"] ** 2 / 2),
    Theorem("proximal-gd", (SMOOTH, STRONG), ("L", "mu", "D"), "distance", "last", 11,
            "for γ ≤ 1/L, ‖x_t − x*‖² ≤ (1 − γμ)ᵗ D²; smooth is the first term of the sum",
            lambda f: 1 / f["L"], _contracted(_squared_distance)),
    Theorem("proximal-gd", (SMOOTH, CONVEX), ("L", "D"), "gap", "last", 11,
            "for γ ≤ 1/L, F(x_t) − F* ≤ D² / (2γt); smooth is the first term of the sum",
            lambda f: 1 / f["L"], _gap_over(2)),
    Theorem("proximal-sgd", (SMOOTH, STRONG), ("L_max", "mu", "D", NOISE), "distance", "last", 12,
            "for γ ≤ 1/(2 L_max), E‖x_t − x*‖² ≤ (1 − γμ)ᵗ D² + 2γσ*²/μ; smooth is the first term of the sum",
            lambda f: 1 / (2 * f["L_max"]), _contracted(_squared_distance), lambda f, step: 2 * step * f[NOISE] / f["mu"]),
)
METHODS = tuple(dict.fromkeys(row.method for row in THEOREMS))
ASSUMPTIONS = tuple(sorted({name for row in THEOREMS for name in row.assumptions}))
IMPLIED = {STRONG: (CONVEX, PL)}


def theorem(method: str, assumptions: str | Collection[str]) -> Theorem:
    """Return the theorem with the fastest rate for a method under some assumptions.

    Parameters
    ----------
    method : str
        "gd", "sgd", "minibatch-sgd", "momentum", "subgradient", "stochastic-subgradient", "proximal-gd" or "proximal-sgd".
    assumptions : str or collection of str
        Of "smooth", "convex", "strongly convex", "pl", "interpolation", "lipschitz". Strongly convex implies convex and pl. For
        stochastic methods smooth is said of every term, and so is convex, but for "pl".

    Raises
    ------
    ValueError
        If a name is not known, or no theorem of the method follows from the assumptions; the message says what is known.

    Examples
    --------
    >>> theorem("gd", ["smooth", "convex"]).rate(100, {"L": 1.0, "D": 2.0})
    0.02
    """
    given = {assumptions} if isinstance(assumptions, str) else set(assumptions)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    unknown = sorted(given - set(ASSUMPTIONS), key=str)
    if unknown:
        raise ValueError(f"assumptions must be among {', '.join(ASSUMPTIONS)}, got {unknown}")
    held = given | {name for assumption in given for name in IMPLIED.get(assumption, ())}
    rows = [row for row in THEOREMS if row.method == method]
    found = next((row for row in rows if held.issuperset(row.assumptions)), None)
    if found is None:
        known = "; or ".join(" and ".join(row.assumptions) for row in rows)
        raise ValueError(f"no theorem for {method} follows from assumptions {sorted(given)}; known are those for {known}")
    return found
