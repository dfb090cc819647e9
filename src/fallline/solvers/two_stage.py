"""Two-stage robust programs with uncertain recourse costs, and their exact solution by column-and-constraint generation.

    min_{x ∈ X ∩ {0,1}ⁿ} cᵀx + max_{ξ ∈ U} min_y (q + Qξ)ᵀy,   W y + T x ≤ h,  y binary,     U = {A ξ ≤ b, low ≤ ξ ≤ high}

    worst case of x     max_{ξ, z} z,  z ≤ (q + Qξ)ᵀy_k;  add the recourse y that answers ξ, until z is its cost
    exact CCG           min_{x, z} cᵀx + z,  z ≥ (q + Qξ_k)ᵀy_k,  each y_k feasible with x;  add the worst case of x, likewise

B. Zeng, L. Zhao: Solving two-stage robust optimization problems using a column-and-constraint generation method, Oper. Res. Lett. 41
(2013) 457. The knapsacks: A. N. Arslan, B. Detienne: Decomposition-based approaches for a class of two-stage robust binary
optimization problems, INFORMS J. Comput. 34 (2022) 857.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from fallline.core.keys import Key, as_key
from fallline.solvers.relu_milp import Affine, Array, Program

TOLERANCE = 1e-6
ROUNDS = 1_000
HALF, ENTRIES, SLACK = 10, 2_000_000, 1e-9
"""Items of half a knapsack, whose 3^10 choices are listed; entries of a table of them; what a full knapsack may be over by rounding."""


class WorstCase(NamedTuple):
    """The objective cᵀx + (q + Qξ)ᵀy of a first stage ``x`` at its worst ``xi``, with the best answer ``y``."""

    value: float
    xi: Array
    y: Array


class RobustSolution(NamedTuple):
    """A first stage, what the method holds it to cost, and the scenarios of the last main program, one for each that was solved."""

    x: Array
    value: float
    scenarios: list[Array]


@dataclass(frozen=True, eq=False, repr=False)
class TwoStageInstance:
    """One program.

    Attributes
    ----------
    cost : array (n,)
        c.
    q, Q : array (m,) and (m, d)
        Recourse costs.
    W, T, h : array (r, m), (r, n) and (r,)
        Recourse constraints.
    A, b, low, high : array (s, d), (s,), (d,) and (d,)
        The uncertainty set, which has a point.
    features : array (n, k)
        What is known of each item, for a network; d = n there.
    first : pair of arrays (G, g), optional
        X = {G x ≤ g}.

    Raises
    ------
    ValueError
        Shapes do not fit, numbers are not finite, or low exceeds high.
    """

    cost: Array
    q: Array
    Q: Array
    W: Array
    T: Array
    h: Array
    A: Array
    b: Array
    low: Array
    high: Array
    features: Array
    first: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        if self.Q.ndim != 2 or self.features.ndim != 2:
            raise ValueError(f"Q and features must be matrices, got shapes {self.Q.shape} and {self.features.shape}")
        n, (m, d), r, s = len(self.features), self.Q.shape, self.h.size, self.b.size
        shapes = {"cost": (n,), "q": (m,), "W": (r, m), "T": (r, n), "h": (r,), "A": (s, d), "b": (s,), "low": (d,), "high": (d,)}
        arrays = {name: getattr(self, name) for name in (*shapes, "Q", "features")}
        if self.first is not None:
            arrays |= {"G": self.first[0], "g": self.first[1]}
            shapes |= {"G": (self.first[1].size, n), "g": (self.first[1].size,)}
        for name, array in arrays.items():
            if array.shape != shapes.get(name, array.shape):
                raise ValueError(f"{name} must have shape {shapes[name]} to fit Q, h, b and features, got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite, got NaN or infinite entries in it; leave out rows that hold always, and "
                                 "bound every uncertain number, for an unbounded scenario has no worst case")
        if not (self.low <= self.high).all():
            raise ValueError(f"low must be <= high, got {self.low} and {self.high}")

    def __repr__(self) -> str:
        n, (m, d) = len(self.cost), self.Q.shape
        return f"{type(self).__name__}({n} first-stage and {m} recourse decisions, {d} uncertain numbers)"

    def recourse(self, x: Array, xi: Array) -> tuple[float, Array]:
        """Return the least recourse cost of x under ξ, and the recourse.

        Raises
        ------
        ValueError
            There is no recourse: the problem must have one for every x.
        """
        program = Program()
        y = program.variables(np.zeros(len(self.q)), np.ones(len(self.q)), integer=True, cost=self.q + self.Q @ xi)
        program.require(y.then(-self.W, self.h - self.T @ x))
        found, value = program.solve(mip_rel_gap=0.0)
        return value, abs(found.round())

    def recourse_values(self, x: Array, xi: Array) -> Array:
        """Return least recourse costs of pairs, (B, n) and (B, d) to (B,)."""
        return np.array([self.recourse(*pair)[0] for pair in zip(x, xi, strict=True)])

    def worst_case(self, x: Array) -> WorstCase:
        """Return the exact worst case of a first stage, by linear programs over the answers met so far."""
        xi = self.nominal()
        answers: list[Array] = []
        bound, best = np.inf, WorstCase(-np.inf, xi, np.zeros(len(self.q)))
        first = float(self.cost @ x)
        for _ in range(ROUNDS):
            if answers:
                bound, xi = self._against(np.stack(answers))
            value, y = self.recourse(x, xi)
            if value > best.value or not answers:
                best = WorstCase(value, xi, y)
            if best.value >= bound - TOLERANCE * (1 + abs(bound)):
                return WorstCase(best.value + first, best.xi, best.y)
            answers.append(y)
        raise ValueError(f"the worst case of a first stage was not found within {ROUNDS} rounds")

    def _against(self, answers: Array) -> tuple[float, Array]:
        """max_{ξ ∈ U} min_k (q + Qξ)ᵀy_k."""
        d = len(self.low)
        rows = np.hstack([-answers @ self.Q, np.ones((len(answers), 1))])
        found = linprog(np.append(np.zeros(d), -1.0), A_ub=np.vstack([rows, np.pad(self.A, ((0, 0), (0, 1)))]),
                        b_ub=np.append(answers @ self.q, self.b), bounds=[*zip(self.low, self.high, strict=True), (None, None)],
                        method="highs")
        if not found.success:
            raise ValueError(f"the uncertainty set gives no worst case: {found.message}")
        return -found.fun, found.x[:d]

    def first_stage(self, program: Program) -> Affine:
        """Add x to a program, with its costs."""
        n = len(self.cost)
        x = program.variables(np.zeros(n), np.ones(n), integer=True, cost=self.cost)
        if self.first is not None:
            program.require(x.then(-self.first[0], self.first[1]))
        return x

    def second_stage(self, program: Program, x: Affine) -> Affine:
        """Add a recourse that is feasible with x."""
        y = program.variables(np.zeros(len(self.q)), np.ones(len(self.q)), integer=True)
        program.require(Affine.stack([x, y]).then(np.hstack([-self.T, -self.W]), self.h))
        return y

    def recourse_range(self) -> tuple[float, float]:
        """Return bounds on (q + Qξ)ᵀy over all binary y and ξ within low and high."""
        up, down = self.Q.clip(min=0), self.Q.clip(max=0)
        least = self.q + up @ self.low + down @ self.high
        most = self.q + up @ self.high + down @ self.low
        return float(least.clip(max=0).sum()), float(most.clip(min=0).sum())

    def nominal(self) -> Array:
        """Return the first scenario: the point of [low, high] nearest to 0, or another of U if that is outside of U.

        Raises
        ------
        ValueError
            U is empty.
        """
        nearest = self.low.clip(min=0).clip(max=self.high)
        if bool((self.A @ nearest <= self.b).all()):
            return nearest
        box = list(zip(self.low, self.high, strict=True))
        found = linprog(np.zeros(len(box)), A_ub=self.A, b_ub=self.b, bounds=box, method="highs")
        if not found.success:
            raise ValueError(f"the uncertainty set has no point: {found.message}")
        point: Array = found.x
        return point


def exact_ccg(instance: TwoStageInstance, tol: float = TOLERANCE) -> RobustSolution:
    """Solve a two-stage robust program exactly, by column-and-constraint generation from the nominal scenario.

    Parameters
    ----------
    instance : TwoStageInstance
    tol : float, default 1e-6
        Relative, on the difference of the best worst case found and the main program's value.
    """
    scenarios, best = [instance.nominal()], (np.inf, np.zeros(0))
    low, high = instance.recourse_range()
    for _ in range(ROUNDS):
        program = Program()
        x = instance.first_stage(program)
        z = program.variables(np.array([low]), np.array([high]), cost=1.0)
        for xi in scenarios:
            y = instance.second_stage(program, x)
            program.require(Affine.stack([z, y]).then(np.append(1.0, -(instance.q + instance.Q @ xi))[None]))
        found, bound = program.solve(mip_rel_gap=tol / 10)
        chosen = abs(found[x.variables].round())
        worst = instance.worst_case(chosen)
        best = min(best, (worst.value, chosen), key=lambda pair: pair[0])
        if best[0] <= bound + tol * (1 + abs(bound)):
            return RobustSolution(best[1], best[0], scenarios)
        scenarios.append(worst.xi)
    raise ValueError(f"no solution within {ROUNDS} rounds; is the tolerance of {tol:g} within reach of the solver's?")


class TwoStageFamily(abc.ABC):
    """Instances of one structure, and samples to learn from."""

    @abc.abstractmethod
    def sample(self, key: Key | int) -> TwoStageInstance:
        """Return a random instance."""

    @abc.abstractmethod
    def sample_pairs(self, instance: TwoStageInstance, first_stages: int, scenarios: int, key: Key) -> tuple[Array, Array]:
        """Return random x, each with so many ξ: (first_stages · scenarios, n) and (first_stages · scenarios, d)."""


@dataclass(frozen=True, eq=False, repr=False)
class KnapsackInstance(TwoStageInstance):
    """A knapsack whose recourse is found by listing the choices of its halves, up to 20 items."""

    def recourse(self, x: Array, xi: Array) -> tuple[float, Array]:
        if len(x) > 2 * HALF:
            return super().recourse(x, xi)
        values, choices = self._best(x[None], xi[None])
        return float(values[0]), choices[0]

    def recourse_values(self, x: Array, xi: Array) -> Array:
        if x.shape[1] > 2 * HALF:
            return super().recourse_values(x, xi)
        together = max(1, ENTRIES // len(self._halves[1][0]))
        return np.concatenate([self._best(x[i:i + together], xi[i:i + together])[0] for i in range(0, len(x), together)])

    @cached_property
    def _halves(self) -> list[tuple[Array, Array]]:
        """Choices (y, r) of the items of either half, 0 where an item is of the other half, and their weights, in ascending order."""
        n = len(self.cost)
        halves = []
        for items in (np.arange(n // 2), np.arange(n // 2, n)):
            states = np.array(list(product(range(3), repeat=len(items))))  # left, made, made and repaired
            choices = np.zeros((len(states), 2 * n))
            choices[:, items], choices[:, n + items] = states >= 1, states == 2
            weights = choices @ self.W[0]
            order = np.argsort(weights, kind="stable")
            halves.append((choices[order], weights[order]))
        return halves

    def _best(self, x: Array, xi: Array) -> tuple[Array, Array]:
        """The cheapest pair of a choice of the first half and of one of the second half that still fits, for every row."""
        n, prices = len(self.cost), (self.q + xi @ self.Q.T).T
        (first, weights), (second, others) = self._halves
        one, two = (np.where(half[:, :n] @ (x.T < 0.5) > 0, np.inf, half @ prices) for half in (first, second))
        last = np.searchsorted(others, self.h[0] - weights + SLACK, side="right") - 1  # of the second half's choices that fit
        totals = np.where((last >= 0)[:, None], one + np.minimum.accumulate(two, axis=0)[last], np.inf)
        chosen = totals.argmin(0)
        partner = np.array([two[: last[i] + 1, row].argmin() for row, i in enumerate(chosen)])
        return totals[chosen, np.arange(len(x))], first[chosen] + second[partner]


class RobustKnapsack(TwoStageFamily):
    """Knapsacks whose items lose profit: take orders x, then make y ≤ x of them, and repair r ≤ y of those, once ξ is known.

        min Σ (f_i − p̄_i) x_i + (p̂_i ξ_i − f_i) y_i − p̂_i ξ_i r_i,   Σ c_i y_i + t_i r_i ≤ C,     0 ≤ ξ ≤ 1,  Σ ξ ≤ Γ

    Drawn with c, p̄ uniform on (1, 1000), p̂ = p̄ U((1 − δ)/2, (1 + δ)/2), f = p̄ U(1.1, 1.5), t uniform on (1, c_i), C = h/101 Σ c with h
    40 or 80, δ one of 0.1, 0.5 and 1, Γ one of 0.1, 0.15 and 0.2 of the items. Features of an item: c, p̄, p̂, f, t, C, Γ/n.

    Parameters
    ----------
    items : int or sequence of int
        Each instance has one of these numbers of items.
    """

    def __init__(self, items: int | tuple[int, ...] = 10) -> None:
        self.items = (items,) if isinstance(items, int) else tuple(items)
        if not self.items or min(self.items) < 2:
            raise ValueError(f"items must be whole numbers of at least 2, got {items!r}")

    def sample(self, key: Key | int) -> KnapsackInstance:
        rng = np.random.default_rng(as_key(key).integer())
        n = int(rng.choice(self.items))
        c, mean = rng.uniform(1, 1_000, (2, n))
        delta, share = rng.choice([0.1, 0.5, 1.0]), rng.choice([0.1, 0.15, 0.2])
        capacity = rng.choice([40, 80]) / 101 * c.sum()
        loss = mean * rng.uniform((1 - delta) / 2, (1 + delta) / 2, n)
        price = mean * rng.uniform(1.1, 1.5, n)
        repair = rng.uniform(1, c)
        eye, zero = np.eye(n), np.zeros((n, n))
        features = np.column_stack([c, mean, loss, price, repair, np.full(n, capacity), np.full(n, share)])
        return KnapsackInstance(
            cost=price - mean, q=np.concatenate([-price, np.zeros(n)]), Q=np.vstack([np.diag(loss), -np.diag(loss)]),
            W=np.vstack([np.concatenate([c, repair])[None], np.hstack([eye, zero]), np.hstack([-eye, eye])]),
            T=np.vstack([np.zeros((1, n)), -eye, zero]), h=np.concatenate([[capacity], np.zeros(2 * n)]),
            A=np.ones((1, n)), b=np.array([share * n]), low=np.zeros(n), high=np.ones(n), features=features)

    def sample_pairs(self, instance: TwoStageInstance, first_stages: int, scenarios: int, key: Key) -> tuple[Array, Array]:
        """Return x with a share of items that is uniform on (0, 1), and ξ in random directions with a sum uniform on (0, Γ)."""
        rng = np.random.default_rng(key.integer())
        n, budget = len(instance.cost), instance.b[0]
        x = rng.random((first_stages, n)) < rng.random((first_stages, 1))
        xi = rng.random((first_stages * scenarios, n))
        xi *= budget * rng.random((len(xi), 1)) / xi.sum(1, keepdims=True)
        return x.repeat(scenarios, 0).astype(float), xi.clip(max=1)

    def __repr__(self) -> str:
        return f"RobustKnapsack(items={self.items[0] if len(self.items) == 1 else self.items})"
