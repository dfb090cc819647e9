"""Coordinate descent for fractions, every step the global minimiser of a non-convex function of one variable.

    F(x) = (f(x) + h(x)) / g(x);   q(η) = f(x) + η ∇_i f + (c_i + θ) η²/2 + h(x + η e_i),   f(x + η e_i) ≤ f(x) + η ∇_i f + c_i η²/2
    fractional (FCD)    η = argmin q(η) / g(x + η e_i)
    parametric (PCD)    η = argmin q(η) − F(x) g(x + η e_i)
    x_i ← x_i + η,   and F falls by θ η² / (2 g(x⁺)) at least

g is affine between the breakpoints η_j = −(G x)_j / G_ji of ‖G x‖₁ (and the like): on each interval the parametric optimum is the
clipped vertex of a parabola, and the fractional one a root of a quadratic equation. All intervals are solved at once and the best is
taken. For a concave g both functions fall and then rise, and the end of the fall is found by sectioning.

Yuan: Coordinate Descent Methods for Fractional Minimization, ICML 2023, arXiv 2201.12691.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fallline.core.blocks import BlockModel, SmoothBlocks, block_model
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.fractional import PiecewiseLinear, SquareRootSum
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.sets import Box
from fallline.core.space import Range
from fallline.core.terms import L1, ElasticNet, Scaled, SquaredL2, Term, Zero

REFRESH = 100  # sweeps after which rounding is cleared from G x and what f keeps
SECTIONS, ROUNDS = 64, 12


@dataclass(frozen=True)
class Numerator:
    """q(η) = a η² + b η + c + weight |x + η| for η in [low, high]."""

    a: Tensor
    b: Tensor
    c: Tensor
    x: Tensor
    weight: float
    low: Tensor
    high: Tensor

    def __call__(self, eta: Tensor) -> Tensor:
        """Return q, infinite outside the bounds."""
        inside = (eta >= self.low) & (eta <= self.high)
        return torch.where(inside, (self.a * eta + self.b) * eta + self.c + self.weight * (self.x + eta).abs(), math.inf)

    def slope(self, eta: Tensor) -> Tensor:
        """Return q' from the right."""
        return 2 * self.a * eta + self.b + torch.full_like(eta, self.weight).copysign(self.x + eta)


def _fractional_vertex(a: Tensor, b: Tensor, c: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """Both η, stacked, at which (a η² + b η + c) / (s η + r) is stationary: a s η² + 2 a r η + b r − s c = 0."""
    last = b * r - s * c
    root = ((a * r) ** 2 - a * s * last).clamp(min=0).sqrt()
    larger = a * r + torch.where(r < 0, -root, root)
    return torch.stack([-last / larger, -larger / (a * s)])


def piecewise_minimiser(q: Numerator, g: PiecewiseLinear, z: Tensor, rows: Tensor | slice, column: Tensor,
                        alpha: Tensor | None) -> Tensor:
    """Return the global minimiser of q − alpha g, or of q / g without alpha, along a column of G.

    Parameters
    ----------
    q : Numerator
    z : Tensor (m,)
        G x.
    rows, column : Tensor or slice, Tensor
        Where the column is nonzero, and its entries there.
    alpha : 0-d tensor, optional

    Returns
    -------
    0-d tensor
        0 where nothing is better.
    """
    pieces = g.pieces(z, rows, column)
    kink = -q.x[None]
    inner = torch.cat([pieces.breaks, kink]).sort().values
    left, right = torch.cat([torch.full_like(kink, -math.inf), inner]), torch.cat([inner, torch.full_like(kink, math.inf)])
    of = torch.searchsorted(pieces.breaks, left.contiguous(), right=True)
    s, r = pieces.slopes[of], pieces.intercepts[of]
    sign = torch.full_like(left, q.weight).copysign(left - kink)
    b, c = q.b + sign, q.c + sign * q.x
    left, right = torch.maximum(left, q.low), torch.minimum(right, q.high)
    if alpha is not None:
        eta = ((alpha * s - b) / (2 * q.a)).clamp(left, right)[None]
    else:
        eta = torch.cat([_fractional_vertex(q.a, b, c, s, r).clamp(left, right), left[None], right[None]])
    above, below = (q.a * eta + b) * eta + c, s * eta + r
    value = torch.where(below > 0, above / below, math.inf) if alpha is None else above - alpha * below
    # An empty interval, an end at infinity and a root that is none have no value.
    value = torch.where((left <= right) & eta.isfinite() & value.isfinite(), value, math.inf)
    return eta.reshape(-1)[value.argmin()]


def concave_minimiser(q: Numerator, g: SquareRootSum, z: Tensor, rows: Tensor | slice, column: Tensor, alpha: Tensor | None) -> Tensor:
    """Return the minimiser as ``piecewise_minimiser`` does, for a concave g: where a function that falls and rises turns."""
    low, high = g.domain(z, rows, column)
    low, high = torch.maximum(low, q.low), torch.minimum(high, q.high)

    def rises(eta: Tensor) -> Tensor:
        below, slope = g.along(z, rows, column, eta)
        return (q.slope(eta) > alpha * slope) if alpha is not None else (q.slope(eta) * below > q(eta) * slope)

    reach = 1.0
    far = torch.tensor([-1.0, 1.0], dtype=z.dtype, device=z.device)
    for _ in range(200):  # until the ends enclose the minimum
        ends = (reach * far).clamp(low, high)
        up = rises(ends)
        if bool((~up[0] | (ends[0] == low)) & (up[1] | (ends[1] == high))):
            break
        reach *= 4
    left, right = ends
    share = torch.linspace(0, 1, SECTIONS + 1, dtype=z.dtype, device=z.device)
    for _ in range(ROUNDS):
        eta = left + share * (right - left)
        first = rises(eta).to(torch.int64).cumsum(0).eq(0).sum()  # how many points lie where it falls
        left, right = eta[(first - 1).clamp(min=0)], eta[first.clamp(max=SECTIONS)]
    return (left + right) / 2


@register("fractional-cd")
@dataclass(frozen=True)
class FractionalCD(Method):
    """x_i ← x_i + η, η the global minimiser of a model of F = (f + h) / g along one coordinate.

    Parameters
    ----------
    variant : {"parametric", "fractional"}, default "parametric"
        What is minimised: q − F(x) g, or q / g.
    theta : float, default 1e-6
        θ ≥ 0, added to the curvature bounds: F falls by θ η²/(2g) at least.
    select : {"cyclic", "random"}, default "cyclic"
        In turn, or in an order drawn afresh for every sweep. The paper's random rule draws with replacement, after which no number of
        steps tells that all coordinates are at rest.

    Raises
    ------
    ValueError
        An unknown name, a negative θ, or θ = 0 with a coordinate along which f has no curvature.
    WrongProblem, MissingOracle
        Another kind of problem; a numerator without bounds on its curvature; a term that is not ℓ₁, ℓ₂² or bounds.

    Notes
    -----
    Solves ``Fractional`` problems whose f is a ``Quadratic`` or a ``LinearModel`` with a loss of bounded curvature, and whose term h,
    if any, is ``L1``, ``ElasticNet``, ``SquaredL2`` or ``Box``, scaled or not. For a convex g it ends in coordinate-wise stationary
    points, which is more than those of (proximal) gradient methods; for a concave one in global minima. A step costs a sort of a
    column's nonzeros and a value of f. G x is kept and made afresh every 100 sweeps. The gap is the largest |η| of the last whole
    sweep; 1e-9 is the paper's tolerance. Reports failure where the numerator becomes negative or g does not stay positive. Best on
    the CPU in float64.
    """

    variant: Literal["parametric", "fractional"] = "parametric"
    theta: float = 1e-6
    select: Literal["cyclic", "random"] = "cyclic"

    kinds: ClassVar[tuple[str, ...]] = ("fractional",)
    needs: ClassVar[tuple[str, ...]] = ("denominator",)
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        if self.variant not in ("parametric", "fractional"):
            raise ValueError(f"variant must be 'parametric' or 'fractional', got {self.variant!r}")
        if self.select not in ("cyclic", "random"):
            raise ValueError(f"select must be 'cyclic' or 'random', got {self.select!r}")
        if not (math.isfinite(self.theta) and self.theta >= 0):
            raise ValueError(f"theta must be a finite number >= 0, got {self.theta}; 1e-6 is the default")

    def check(self, problem: Problem) -> None:
        """Raise unless the fraction's parts are ones whose one-dimensional problems can be solved globally."""
        super().check(problem)
        model = block_model(problem.numerator)
        if isinstance(model, SmoothBlocks) or not model.bounded:
            raise MissingOracle("FractionalCD needs bounds on the numerator's curvature along coordinates: a Quadratic, or a "
                                f"LinearModel with loss 'squared' or 'logistic', got {problem.numerator!r}")
        if not isinstance(problem.denominator, PiecewiseLinear | SquareRootSum):
            raise WrongProblem(f"FractionalCD minimises globally along lines for the denominators of core.fractional, got "
                               f"{problem.denominator!r}")
        _separate(_term(problem))
        if not self.theta and float(model.coordinate_bounds().amin()) <= 0:
            raise ValueError("theta must be positive here: along a coordinate f has no curvature, and a step could be infinite")

    def init(self, problem: Problem, key: Key) -> State:
        model, term, g = block_model(problem.numerator), _term(problem), problem.denominator
        x = problem.x0.detach().clone()
        if term is not None:
            x = term.prox(x, 0.0)
        state: State = {"x": x, "kept": model.start(x), "z": g.operator.matvec(x), "c": model.coordinate_bounds() + self.theta, "t": 0,
                        "key": key, "order": torch.arange(len(x), device=x.device), "longest": torch.zeros_like(x[0]), "gap": None,
                        "work": 0}
        problem.counts.add("gradients")
        return self._valued(problem, model, state)

    def step(self, problem: Problem, state: State) -> State:
        model, term, g, t, x = block_model(problem.numerator), _term(problem), problem.denominator, state["t"], state["x"]
        if self.select == "random" and t % len(x) == 0:
            state = {**state, "order": torch.randperm(len(x), generator=state["key"].fold("sweep", t).generator()).to(x.device)}
        block = state["order"][t % len(x), None]
        rows, part = g.columns.part(block)
        q = _numerator(state["above"], model.partial(x, state["kept"], block)[0], state["c"][block[0]], x[block[0]], block, term)
        minimiser: Callable[..., Tensor] = piecewise_minimiser if isinstance(g, PiecewiseLinear) else concave_minimiser
        eta = minimiser(q, g, state["z"], rows, part[:, 0], state["ratio"] if self.variant == "parametric" else None)[None]
        model.move(x, state["kept"], block, eta)
        g.columns.add(state["z"], block, eta)
        state = {**state, "t": t + 1, "longest": torch.maximum(state["longest"], eta[0].abs())}
        problem.counts.add("coordinates")
        if (t + 1) % len(x) == 0:
            problem.counts.add("gradients")
            state.update(gap=state["longest"], longest=torch.zeros_like(eta[0]))
            if (t + 1) % (REFRESH * len(x)) == 0:
                problem.counts.add("gradients")
                state.update(kept=model.start(x), z=g.operator.matvec(x))
        return self._valued(problem, model, state)

    @staticmethod
    def _valued(problem: Problem, model: BlockModel, state: State) -> State:
        """Bring F and its parts up to date."""
        term, x = _term(problem), state["x"]
        above = model.value(x, state["kept"]) + problem.constant + (0 if term is None else term.value(x))
        below = problem.denominator.value(state["z"])
        return {**state, "above": above, "below": below, "ratio": above / below}

    def report(self, problem: Problem, state: State) -> Report:
        report = Report(state["x"].clone(), value=state["ratio"], gap=state["gap"])
        if bool(state["below"] <= 0):
            report.status, report.message = "failed", f"the denominator has become {float(state['below']):.3g}, and must stay positive"
        elif bool(state["above"] < 0):
            report.status = "failed"
            report.message = (f"the numerator has become {float(state['above']):.3g}: below 0 a smaller fraction has a smaller "
                              "denominator, and the steps mean nothing; add a constant to it")
        return report


def _term(problem: Problem) -> Term | None:
    return problem.numerator.term if problem.numerator.kind == "composite" else None


def _separate(term: Term | None) -> tuple[float, float]:
    """Weights of |x_i| and of x_i²/2."""
    if term is None or isinstance(term, Box | Zero):
        return 0.0, 0.0
    if isinstance(term, L1):
        return term.weight, 0.0
    if isinstance(term, SquaredL2):
        return 0.0, term.weight
    if isinstance(term, ElasticNet):
        return term.l1, term.l2
    if isinstance(term, Scaled):
        l1, l2 = _separate(term.term)
        return term.factor * l1, term.factor * l2
    raise WrongProblem(f"FractionalCD takes the terms L1, ElasticNet, SquaredL2 and Box in the numerator, got {term!r}")


def _numerator(above: Tensor, slope: Tensor, c: Tensor, x: Tensor, block: Tensor, term: Term | None) -> Numerator:
    """q along a coordinate, from the numerator's value, ∇_i f and c_i + θ."""
    l1, l2 = _separate(term)
    low, high = torch.full_like(x, -math.inf), torch.full_like(x, math.inf)
    while isinstance(term, Scaled):  # of bounds: they are the same
        term = term.term
    if isinstance(term, Box):
        box = term.restricted(block)
        low, high = box.low.to(x).reshape(()) - x, box.high.to(x).reshape(()) - x
    return Numerator((c + l2) / 2, slope + l2 * x, above - l1 * x.abs(), x, l1, low, high)
