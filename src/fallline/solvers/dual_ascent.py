"""Dual ascent on inequality constraints, with any method for the primal steps.

    min f(x)  subject to  h(x) ≤ 0,       L(x, λ) = f(x) + ⟨λ, h(x)⟩,   λ₀ = 0
    x_t ≈ argmin_x L(x, λ_t),  a number of steps from x_{t−1}
    λ_{t+1} = max(λ_t + η h(x_t), 0)

The dual function min_x L is concave and h(x_t) its supergradient, whatever f and h are. Where they are not convex, the mixture of
x_{t₀}, …, x_t (one of them for each prediction) meets the constraints in the limit, since Σ h(x_t) ≤ (λ_t − λ_{t₀}) / η, and the last
iterate need not; the richer a network, the less the last iterate of constrained learning violates.

J. Elenter, L. F. O. Chamon, A. Ribeiro: Near-optimal solutions of constrained learning problems, ICLR 2024, arXiv 2403.11844.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.constrained_training import ConstrainedTraining
from fallline.core.constraints import lagrangian
from fallline.core.errors import WrongProblem
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State, Train
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.tree import Tree

# A constraint counts as infeasible where, over the last half of at least FIRST_LOOK dual steps, it is exceeded by STEADY times as much
# as in the quarter before, λ_i h_i, by which a feasible point's loss is larger (weak duality), is BEYOND the range of losses seen, and
# the excess levels off: it falls by at most SLOWING times as much as it did one doubling of the steps, and so of λ, before. Going on
# like that it never falls by more than it just did, which is little. Where a large λ is yet to come, falls grow with each doubling.
FIRST_LOOK, STEADY, BEYOND, SLOWING = 64, 0.9, 10.0, 0.5


@dataclass(frozen=True, repr=False)
class FeasibilityReport:
    """What the constraints are at the end: multipliers, and by how much ℓ_i exceeds its level (negative where there is room).

    Attributes
    ----------
    names : tuple of str
    multipliers : Tensor (m,)
        λ.
    excess : Tensor (m,)
        h of the last iterate; of a network on all training data.
    mixture : Tensor (m,)
        The mean of h over the iterates after the t₀-th, t₀ the power of two between a quarter and a half of their number.
    held_out, held_out_mixture : Tensor (m,) or None
        The same on validation data.
    """

    names: tuple[str, ...]
    multipliers: Tensor
    excess: Tensor
    mixture: Tensor
    held_out: Tensor | None = None
    held_out_mixture: Tensor | None = None

    def __repr__(self) -> str:
        columns = {"multiplier": self.multipliers, "last": self.excess, "mixture": self.mixture}
        if self.held_out is not None and self.held_out_mixture is not None:
            columns |= {"last, held out": self.held_out, "mixture, held out": self.held_out_mixture}
        width = max(len("constraint"), *map(len, self.names))
        lines = [f"{'constraint':<{width}}" + "".join(f"  {name:>17}" for name in columns)]
        for row in zip(self.names, *(c.tolist() for c in columns.values()), strict=True):
            lines.append(f"{row[0]:<{width}}" + "".join(f"  {number:>17.4g}" for number in row[1:]))
        return "\n".join(lines)


@register("dual-ascent")
@dataclass(frozen=True)
class DualAscent(Method):
    """λ ← max(λ + η h(x), 0) after every so many steps of ``primal`` on the Lagrangian, which goes on from where it was.

    For ``ConstrainedTraining`` and ``Constrained(smooth, inequality=h)``. One step is one dual step.

    Parameters
    ----------
    primal : Method, default ``Train(torch.optim.Adam, lr=1e-3)``
        Minimises the Lagrangian; its state (momenta, its place in the data) is kept from one λ to the next.
    dual_lr : float, default 1.0
        η. Smaller where λ swings; the smaller, the more steps until λ is as large as it must be.
    primal_steps : int, default 100
        Of ``primal`` before every dual step: a few epochs for a network.

    Notes
    -----
    The solution is the last iterate, the certificate a ``FeasibilityReport``: multipliers, and violations of the last iterate and of
    the mixture, on training and on validation data. h is that of all training data, in evaluation mode: noise in it would bias λ
    upwards through the maximum. There is no gap: nothing shows that a network minimises its Lagrangian.

    Levels that no x meets make λ grow without end. A run ends as "failed" when it does while violations level off, which is a sign and
    no proof: a primal method that does not get near enough to a minimiser looks the same.
    """

    primal: Method = field(default_factory=lambda: Train(torch.optim.Adam, lr=1e-3))
    dual_lr: float = 1.0
    primal_steps: int = 100

    needs: ClassVar[tuple[str, ...]] = ("gradient", "inequality")
    kinds: ClassVar[tuple[str, ...]] = ("constrained",)
    space: ClassVar[Mapping[str, Range]] = {"dual_lr": LogUniform(1e-2, 1e2)}

    def __post_init__(self) -> None:
        if not isinstance(self.primal, Method):
            raise TypeError(f"primal must be a Method, got {self.primal!r}; Train(optimizer) makes one of a torch optimizer")
        if not (math.isfinite(self.dual_lr) and self.dual_lr > 0):
            raise ValueError(f"dual_lr must be a finite number > 0, got {self.dual_lr}")
        check_count("primal_steps", self.primal_steps, "the Lagrangian must be minimised between dual steps")

    def check(self, problem: Problem) -> None:
        super().check(problem)
        for oracle in ("project", "linear_minimize", "equality"):
            if problem.has(oracle):
                raise WrongProblem(f"DualAscent takes inequalities alone, and {problem.name!r} has a set or an equality as well; "
                                   "state both as inequalities, or leave them out")

    def init(self, problem: Problem, key: Key) -> State:
        value, excess, held_out = self._look(problem, problem.x0)
        measured = torch.zeros_like(torch.stack([excess, excess if held_out is None else held_out]))
        start = lagrangian(problem, torch.zeros_like(excess))
        self.primal.check(start)
        return {"primal": self.primal.init(start, key), "multipliers": torch.zeros_like(excess), "value": value, "excess": excess,
                "held_out": held_out, "sum": measured, "oldest": measured, "older": measured, "old": measured, "old_t": 0, "older_t": 0,
                "oldest_t": 0, "least": value, "most": value, "t": 0, "failure": ""}

    def step(self, problem: Problem, state: State) -> State:
        if state["failure"]:
            return state
        inner, primal = lagrangian(problem, state["multipliers"]), state["primal"]
        for _ in range(self.primal_steps):
            primal = self.primal.step(inner, primal)
        value, excess, held_out = self._look(problem, self.primal.report(inner, primal).resolve())
        t = state["t"] + 1
        total = state["sum"] + torch.stack([excess, excess if held_out is None else held_out])
        state = {**state, "primal": primal, "multipliers": (state["multipliers"] + self.dual_lr * excess).clamp(min=0), "value": value,
                 "excess": excess, "held_out": held_out, "sum": total, "t": t, "least": torch.minimum(state["least"], value),
                 "most": torch.maximum(state["most"], value)}
        if t & (t - 1):
            return state
        failure = self._failure(problem, state) if t >= FIRST_LOOK else ""
        return {**state, "oldest": state["older"], "oldest_t": state["older_t"], "older": state["old"], "older_t": state["old_t"],
                "old": total, "old_t": t, "failure": failure}

    @torch.no_grad()
    def _look(self, problem: Problem, x: Tree) -> tuple[Tensor, Tensor, Tensor | None]:
        """f and h, and h on held-out data."""
        held_out = problem.held_out(x) if isinstance(problem, ConstrainedTraining) else None
        return problem.value(x), problem.inequality(x).detach(), held_out

    def _failure(self, problem: Problem, state: State) -> str:
        """Why there seems to be no feasible point; called at powers of two, before the sums move on."""
        sums = [state[name][0] for name in ("oldest", "older", "old", "sum")]
        times = [state[name] for name in ("oldest_t", "older_t", "old_t", "t")]
        first, early, late = ((b - a) / (t - s) for (a, b), (s, t) in zip(pairwise(sums), pairwise(times), strict=True))
        worth, seen = state["multipliers"] * late, state["most"] - state["least"]
        level = (early > 0) & (late >= STEADY * early) & (early - late <= SLOWING * (first - early).clamp(min=0))
        hopeless = level & (worth > BEYOND * seen) & (seen > 0)
        if not bool(hopeless.any()):
            return ""
        i = int(torch.where(hopeless, worth, -math.inf).argmax())
        return (f"the constraint {_names(problem, len(worth))[i]!r} seems to be infeasible: its multiplier has grown steadily to "
                f"{float(state['multipliers'][i]):.3g}, and it is still exceeded by {float(late[i]):.3g}, hardly less than before; "
                "relax its level, take a richer model, or more primal_steps")

    def report(self, problem: Problem, state: State) -> Report:
        primal = self.primal.report(problem, state["primal"])
        report = Report(primal.solution, value=state["value"], batch_loss=primal.batch_loss)
        if state["t"]:
            mixture, held_out = (state["sum"] - state["older"]) / (state["t"] - state["older_t"])
            separate = state["held_out"] is not None
            report.certificate = FeasibilityReport(_names(problem, len(mixture)), state["multipliers"], state["excess"], mixture,
                                             state["held_out"], held_out if separate else None)
        if state["failure"]:
            report.status, report.message = "failed", state["failure"]
        return report

    def pack(self, state: State) -> State:
        return {**state, "primal": self.primal.pack(state["primal"])}

    def unpack(self, problem: Problem, key: Key, packed: State) -> State:
        start = lagrangian(problem, packed["multipliers"])
        return {**packed, "primal": self.primal.unpack(start, key, packed["primal"])}

    def clone(self, state: State) -> State:
        return {**state, "primal": self.primal.clone(state["primal"])}

    def close(self, state: State) -> None:
        if "primal" in state:  # not where a run ends before it starts
            self.primal.close(state["primal"])

    def identity(self, problem: Problem) -> dict[str, str]:
        inner = self.primal.identity(lagrangian(problem, torch.zeros(())))
        return {**super().identity(problem), **{f"primal {name}": value for name, value in inner.items()}}


def _names(problem: Problem, count: int) -> tuple[str, ...]:
    return tuple(problem.constraints) if isinstance(problem, ConstrainedTraining) else tuple(str(i) for i in range(count))
