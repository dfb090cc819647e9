"""Normalised descent where curvature grows with the gradient.

    f is α-symmetric:   ‖∇f(x) − ∇f(y)‖ ≤ (L₀ + L₁ max_{z ∈ [x, y]} ‖∇f(z)‖^α) ‖x − y‖,   α ∈ [0, 1]
    β-normalised GD:    x ← x − γ ∇f(x) / ‖∇f(x)‖^β,   α ≤ β ≤ 1,   γ ∝ ε^β
    SPIDER:             v ← mean ∇f_ξ(x) over b_big samples every q steps, else v + mean (∇f_ξ(x) − ∇f_ξ(x⁻)) over b_small
                        x ← x − γ v / ‖v‖,   γ ∝ ε,   q = b_small ∝ 1/ε,   b_big ∝ 1/ε²

A polynomial of degree p has α = (p − 2) / (p − 1), an exponential 1. To ‖∇f‖ ≤ ε: O(ε⁻²) steps, or O(ε⁻³) samples, as for smooth f.

Chen, Zhou, Liang, Lu: Generalized-Smooth Nonconvex Optimization is As Efficient As Smooth Nonconvex Optimization, ICML 2023,
arXiv 2303.02854.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from fallline.core import tree
from fallline.core.estimators import storm
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.tree import Tree
from fallline.optim.engine.optimizer import EngineOptions, Optimizer
from fallline.optim.engine.parts import Gradient
from fallline.optim.step_sizes.gradient_norm import OverGradientNorm

LIKELIHOOD_RATIO = 5.99  # the 95 % point of χ² with the two degrees of freedom that L₁ and α add to a constant
LEAST_ERROR = 1e-12  # mean square of relative errors that rounding alone explains


@register("beta-gd")
class BetaGD(Optimizer):
    """x ← x − γ g / ‖g‖^β, the norm over all parameters; no step where g is 0.

    β = 0 is gradient descent, β = 1 normalised gradient descent. β below the objective's α diverges from far away. With a constant γ
    the iterates end in a cycle about the solution, of length γ at β = 1: decay it with a scheduler. No state.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1e-2
        γ, proportional to ε^β for gradients of norm ε; the paper's constants are conservative, tune it.
    beta : float, default 2/3
        From 0 to 1; 2/3 is the α of quartics. See ``estimate_alpha``.
    weight_decay : float, default 0
        Added to the gradient.
    **options
        ``compile``, ``nonfinite``, ``maximize``, ``storage`` of the engine.

    Raises
    ------
    ValueError
        ``beta`` is outside [0, 1], or another hyperparameter is illegal.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0)}

    def __init__(self, params: Any, lr: float = 1e-2, beta: float = 2 / 3, weight_decay: float = 0.0,
                 **options: Unpack[EngineOptions]) -> None:
        if isinstance(beta, bool) or not 0 <= beta <= 1:
            raise ValueError(f"beta must be a number in [0, 1], got {beta!r}; at least the alpha of the objective: 2/3 for quartics")
        super().__init__(params, Gradient(), {"lr": lr, "weight_decay": weight_decay}, step_size=OverGradientNorm(power=float(beta)),
                         **options)


@register("normalized-spider")
@dataclass(frozen=True)
class NormalizedSPIDER(Method):
    """x ← x − γ v / ‖v‖, v a gradient of many samples, then corrected by differences of gradients on few, the same at both points.

    Parameters
    ----------
    lr : float, default 0.01
        γ, the length of every step, proportional to the ε aimed at.
    q : int, default 10
        Steps from one large sample to the next; proportional to 1/ε.
    b_small : int, default 10
        Samples of a difference; proportional to 1/ε.
    b_big : int, optional
        Samples of a large one, proportional to 1/ε²; by default all data, which finite sums allow.

    Notes
    -----
    Per q steps 2q − 1 gradients and ``b_big`` + 2 (q − 1) ``b_small`` samples. Memory: two copies of x. Samples are drawn with
    replacement. A problem without data has exact gradients. The gap is ‖v‖, an estimate of ‖∇f‖; the first report has none.
    """

    lr: float = 0.01
    q: int = 10
    b_small: int = 10
    b_big: int | None = None

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(1e-4, 1.0)}

    def __post_init__(self) -> None:
        if isinstance(self.lr, bool) or not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number > 0, the length of a step, got {self.lr!r}")
        for name in ("q", "b_small", "b_big"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not (whole or (name == "b_big" and value is None)):
                raise ValueError(f"{name} must be a whole number >= 1{', or None for all data' * (name == 'b_big')}, got {value!r}")

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        return {"x": x, "before": x, "v": None, "gap": None, "t": 0, "key": key}

    def step(self, problem: Problem, state: State) -> State:
        x, key = state["x"], state["key"].fold(state["t"])
        if state["t"] % self.q == 0:
            v = (problem if self.b_big is None else problem.draw(key, size=self.b_big)).gradient(x)
        else:
            drawn = problem.draw(key, size=self.b_small)
            v = storm(state["v"], drawn.gradient(x), drawn.gradient(state["before"]), 0.0)
        norm = tree.norm(v)
        length = torch.where(norm > 0, self.lr / norm, 0.0)
        return {**state, "x": tree.axpy(-length, v, x), "before": x, "v": v, "gap": norm, "t": state["t"] + 1}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["x"], gap=state["gap"])


@dataclass(frozen=True, repr=False)
class GrowthExponent:
    """ℓ ≈ L₀ + L₁ ‖∇f‖^α along a trajectory: the β for ``BetaGD`` is at least α."""

    alpha: float
    """0 where curvature does not grow with the gradient."""
    L0: float
    L1: float
    sizes: Tensor
    """The larger gradient norm of every two successive points."""
    curvatures: Tensor
    """‖∇f(x) − ∇f(y)‖ / ‖x − y‖ of every two successive points."""

    def plot(self) -> Any:
        """Return a plotly figure of curvature against gradient norm and the fit, logarithmic."""
        import plotly.graph_objects as go

        sizes, order = self.sizes.sort()
        figure = go.Figure(go.Scatter(x=sizes.tolist(), y=self.curvatures[order].tolist(), mode="markers", name="measured"))
        figure.add_scatter(x=sizes.tolist(), y=(self.L0 + self.L1 * sizes**self.alpha).tolist(), mode="lines", name=repr(self))
        return figure.update_layout(template="simple_white", xaxis_title="‖∇f‖", yaxis_title="‖∇f(x) − ∇f(y)‖ / ‖x − y‖",
                                    xaxis_type="log", yaxis_type="log")

    def __repr__(self) -> str:
        grows = f" + {self.L1:.3g} ‖∇f‖^{self.alpha:.2f}" if self.L1 else ", which does not grow with ‖∇f‖"
        return f"GrowthExponent(curvature ≈ {self.L0:.3g}{grows}; {len(self.sizes)} pairs of points)"


def estimate_alpha(points: Sequence[Tree], gradients: Sequence[Tree]) -> GrowthExponent:
    """Fit ‖∇f(x) − ∇f(y)‖ / ‖x − y‖ ≈ L₀ + L₁ max(‖∇f(x)‖, ‖∇f(y)‖)^α over successive points, by least squares of logarithms.

    α is 0 unless the data refute a constant (a likelihood-ratio test at 5 %). This is a fit of what the trajectory met, not a bound:
    one that turns from steep directions to flat ones, as gradient descent does, sees curvature fall with the gradient on a quadratic
    too. The max stands for that over the segment, so points should be close together; gradients should differ much in size.

    Parameters
    ----------
    points, gradients : sequences of trees
        At least 5 points of a trajectory, in order, and ∇f there. Pairs of equal points, of equal gradients and of size 0 are left out.

    Raises
    ------
    ValueError
        The sequences differ in length or are too short, or hold numbers that are not finite.
    """
    if len(points) != len(gradients) or len(points) < 5:
        raise ValueError(f"points and gradients must be as many, 5 or more, got {len(points)} and {len(gradients)}; collect both in a "
                         "callback")
    x, g = (torch.stack([tree.flatten(each).detach().cpu().double() for each in several]) for several in (points, gradients))
    if not bool(x.isfinite().all() & g.isfinite().all()):
        raise ValueError("points and gradients must be finite, and are not; leave out those after a divergence")
    norms = g.norm(dim=1)
    sizes, moves, changes = torch.maximum(norms[1:], norms[:-1]), x.diff(dim=0).norm(dim=1), g.diff(dim=0).norm(dim=1)
    seen = (moves > 0) & (changes > 0)
    sizes, curvatures = sizes[seen], changes[seen] / moves[seen]
    if len(sizes) < 4:
        raise ValueError(f"points must move the gradient in at least 4 steps, and do in {len(sizes)}; take more points")
    return GrowthExponent(*_fit(sizes.log().numpy(), curvatures.log().numpy()), sizes, curvatures)


def _fit(size: np.ndarray, curvature: np.ndarray) -> tuple[float, float, float]:
    """α, L₀ and L₁ from logarithms."""
    middle = size.mean()

    def residual(p: np.ndarray) -> np.ndarray:
        return np.logaddexp(p[0], p[1] + p[2] * (size - middle)) - curvature

    starts = [[curvature.min(), curvature.mean(), alpha] for alpha in (0.2, 0.5, 0.9)]
    bounds = ([-700, -700, 0], [700, 700, 1])
    best = min((least_squares(residual, start, bounds=bounds, x_scale=[1, 1, 0.1]) for start in starts), key=lambda fit: fit.cost)
    error, constant = (max(float(np.mean(r**2)), LEAST_ERROR) for r in (best.fun, curvature - curvature.mean()))
    if len(size) * math.log(constant / error) <= LIKELIHOOD_RATIO:
        return 0.0, math.exp(curvature.mean()), 0.0
    L0, L1, alpha = best.x
    return float(alpha), math.exp(L0), math.exp(L1 - alpha * middle)
