"""Stochastic model-based minimisation of weakly convex functions: minimise a model of one sample, near the last point.

    φ(x) = E f(x, ξ) + r(x);   x⁺ = argmin_y r(y) + f_x(y, ξ) + ‖y − x‖² / (2 α_t),   α_t = α (t + 1)^−decay

    subgradient    f_x(y) = f(x) + ⟨v, y − x⟩,  v ∈ ∂f(x)
    clipped        f_x(y) = max(f(x) + ⟨v, y − x⟩, lower)
    prox-linear    f_x(y) = h(c(x) + ∇c(x)(y − x))  for f = h ∘ c
    prox-point     f_x(y) = f(y)

With scalar c, h = |·| and no r, prox-linear is x − clip(c/‖∇c‖², −α, α) ∇c. At a point drawn with probability ∝ α_t, for steps ∝ 1/√T,
E ‖∇φ_λ‖ = O(T^−1/4) for the Moreau envelope φ_λ(x) = min_y φ(y) + ‖y − x‖²/(2λ), ∇φ_λ = (x − argmin) / λ.

Davis, Drusvyatskiy: Stochastic model-based minimization of weakly convex functions, SIAM J. Optim. 2019, arXiv 1803.06523.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.composite_loss import Outer
from fallline.core.constructors import summed
from fallline.core.counts import Counts
from fallline.core.errors import MissingOracle
from fallline.core.keys import Key
from fallline.core.method import Method, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range
from fallline.core.tree import Tree
from fallline.core.warning import warn

ABOVE = Outer(0, 1)  # max(c, 0)
ROUNDS, CLOSE = 200, 1e-7


def scalar_multiplier(residual: Tensor, squared_norm: Tensor, step: float | Tensor, outer: Outer) -> Tensor:
    """Return u with argmin_y h(c + ⟨ζ, y − x⟩) + ‖y − x‖²/(2α) = x − α u ζ: c / (α‖ζ‖²) cut to h's slopes; 0-d or batched."""
    low = outer.high if outer.sums else outer.low  # the largest of one residual is that residual
    moves = squared_norm > 0
    return torch.where(moves, residual / torch.where(moves, step * squared_norm, 1.0), 0.0).clamp(low, outer.high)


def _loss(problem: Problem) -> Problem:
    return problem.smooth if problem.kind == "composite" else problem


def _prox(problem: Problem, x: Tree, step: float) -> Tree:
    return problem.prox(x, step) if problem.kind == "composite" else x


def _minimiser(problem: Problem, x: Tree, c: Tensor, jacobian: Tensor, outer: Outer, rows: int, step: float) -> Tree:
    """argmin_y r(y) + mean over rows of h(c + J (y − x)) + ‖y − x‖²/(2α), by the multipliers u of the residuals."""
    flat = tree.flatten(x)

    def at(u: Tensor) -> Tree:
        return _prox(problem, tree.unflatten(flat - step * (u @ jacobian), x), step)

    if len(c) > 1:
        return at(_multipliers(problem, x, at, c, jacobian, outer, rows, step))
    if problem.kind != "composite":
        return at(scalar_multiplier(c, (jacobian**2).sum(1), step, outer))
    return at(c.new_tensor([_root(lambda u: float(c + jacobian @ (tree.flatten(at(c.new_tensor([u]))) - flat)), outer)]))


def _root(slope: Callable[[float], float], outer: Outer) -> float:
    """The multiplier of one residual: where the falling ``slope`` is 0, or the end of its range nearest to that."""
    low, high = outer.high if outer.sums else outer.low, outer.high
    if slope(high) >= 0:
        return high
    return low if slope(low) <= 0 else float(scipy.optimize.brentq(slope, low, high, xtol=1e-15))


def _multipliers(problem: Problem, x: Tree, at: Callable[[Tensor], Tree], c: Tensor, jacobian: Tensor, outer: Outer, rows: int,
                 step: float) -> Tensor:
    """The u of several residuals, where y is ``at(u)``: a concave maximisation over U / rows with gradient c + J (y − x)."""
    plain = problem.kind != "composite"
    known, rows_of = c.double().cpu().numpy(), jacobian.double().cpu().numpy()

    def negative(u: np.ndarray) -> tuple[float, np.ndarray]:
        if plain:
            slope = known - step * (rows_of @ (u @ rows_of))
            return -u @ (known + slope) / 2, -slope
        y = at(torch.as_tensor(u).to(c))
        move = tree.sub(y, x)
        slope = known + rows_of @ tree.flatten(move).double().cpu().numpy()
        return -float(u @ slope + tree.norm(move) ** 2 / (2 * step) + summed(problem.term, y)), -slope

    bounds = [(outer.low / rows, outer.high / rows)] * len(c)
    start = np.full(len(c), 1 / len(c) if outer.sums else 0.0)
    if outer.sums:
        sums = np.kron(np.eye(rows), np.ones(len(c) // rows))
        ones = {"type": "eq", "fun": lambda u: sums @ u - 1 / rows, "jac": lambda u: sums}
        found = scipy.optimize.minimize(negative, start, jac=True, bounds=bounds, method="SLSQP", constraints=ones,
                                        options={"ftol": 1e-15, "maxiter": 1_000})
    else:
        found = scipy.optimize.minimize(negative, start, jac=True, bounds=bounds, method="L-BFGS-B",
                                        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 10_000, "maxfun": 100_000, "maxcor": 30})
    return torch.as_tensor(found.x).to(c)


class Model(Protocol):
    """A model of a sample's loss: returns argmin_y r(y) + f_x(y) + ‖y − x‖²/(2 step)."""

    needs: ClassVar[tuple[str, ...]]
    """Oracles of the sample's loss."""

    def __call__(self, drawn: Problem, x: Tree, step: float) -> Tree:
        """Return the minimiser; ``drawn`` is a sample's loss, or its ``Composite`` with r."""
        ...


@dataclass(frozen=True)
class Subgradient:
    """f(x) + ⟨v, y − x⟩: the proximal subgradient step prox_{αr}(x − αv)."""

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    def __call__(self, drawn: Problem, x: Tree, step: float) -> Tree:
        """Return the minimiser."""
        return _prox(drawn, tree.axpy(-step, _loss(drawn).gradient(x), x), step)


@dataclass(frozen=True)
class Clipped:
    """max(f(x) + ⟨v, y − x⟩, lower) for a loss that is nowhere below ``lower``: Polyak's step, at most α long in units of v."""

    lower: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    def __call__(self, drawn: Problem, x: Tree, step: float) -> Tree:
        """Return the minimiser."""
        value, gradient = _loss(drawn).value_and_gradient(x)
        return _minimiser(drawn, x, value[None] - self.lower, tree.flatten(gradient)[None], ABOVE, 1, step)


@dataclass(frozen=True)
class ProxLinear:
    """h(c(x) + ∇c(x)(y − x)): closed for one residual without r, a root of one variable with r, else a small quadratic programme."""

    needs: ClassVar[tuple[str, ...]] = ("linearization",)

    def __call__(self, drawn: Problem, x: Tree, step: float) -> Tree:
        """Return the minimiser."""
        loss = _loss(drawn)
        c, jacobian = loss.linearization(x)
        return _minimiser(drawn, x, c, jacobian, loss.outer, loss.samples, step)


@dataclass(frozen=True)
class ProxPoint:
    """f itself, where the problem has a closed form for one data point; no r."""

    needs: ClassVar[tuple[str, ...]] = ("proximal_point",)

    def __call__(self, drawn: Problem, x: Tree, step: float) -> Tree:
        """Return the minimiser."""
        if drawn.kind == "composite":
            raise MissingOracle("model 'prox_point' has no closed form with a regularizer; take model='prox_linear', or the loss alone")
        y: Tree = drawn.proximal_point(x, step)
        return y


MODELS: dict[str, Model] = {"subgradient": Subgradient(), "clipped": Clipped(), "prox_linear": ProxLinear(), "prox_point": ProxPoint()}


@register("stochastic-model")
@dataclass(frozen=True)
class StochasticModel(Method):
    """x⁺ = argmin_y r(y) + f_x(y, ξ) + ‖y − x‖²/(2 α_t), α_t = α (t + 1)^−decay, one sample a step.

    Parameters
    ----------
    model : {"subgradient", "clipped", "prox_linear", "prox_point"} or Model, default "subgradient"
        f_x. "subgradient" takes any problem with gradients, "clipped" any whose loss is nowhere negative (``Clipped(lower=...)`` for
        another bound), the others a ``CompositeLoss``. "prox_point" needs its ``proximal_point`` and samples of one data point;
        for residuals that are linear in x it is "prox_linear".
    alpha : float, default 0.1
        The paper's β. Prox-linear and prox-point work over decades of it.
    decay : float, default 0.5
        0 for a constant step, which theory takes proportional to 1/√T.
    batch_size : int, optional
        Data points a sample; by default the problem's.
    output : {"last", "random"}, default "last"
        The solution: the last point, or one met on the way with probability ∝ α_t, of which theory speaks.

    Notes
    -----
    r is the term of a ``Composite`` problem. No gap is reported: ``moreau_grad_norm`` is the measure of stationarity.
    """

    model: Literal["subgradient", "clipped", "prox_linear", "prox_point"] | Model = "subgradient"
    alpha: float = 0.1
    decay: float = 0.5
    batch_size: int | None = None
    output: Literal["last", "random"] = "last"

    space: ClassVar[Mapping[str, Range]] = {"alpha": LogUniform(1e-4, 1e2)}

    def __post_init__(self) -> None:
        if not (callable(self.model) or (isinstance(self.model, str) and self.model in MODELS)):
            raise ValueError(f"model must be one of {', '.join(map(repr, MODELS))} or a Model, got {self.model!r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be a finite number > 0, got {self.alpha!r}; a step is alpha (t + 1)^-decay")
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ValueError(f"decay must be a finite number >= 0, got {self.decay!r}; 0 is a constant step")
        if self.output not in ("last", "random"):
            raise ValueError(f"output must be 'last' or 'random', got {self.output!r}")

    @property
    def _model(self) -> Model:
        return MODELS[self.model] if isinstance(self.model, str) else self.model

    def check(self, problem: Problem) -> None:
        """Raise unless the loss has gradients and samples have what the model needs."""
        super().check(_loss(problem))
        drawn = problem.draw(Key(), size=self.batch_size)
        missing = [oracle for oracle in self._model.needs if not _loss(drawn).has(oracle)]
        if missing:
            raise MissingOracle(f"StochasticModel with model {self.model!r} needs {missing[0]!r}, which samples of {problem.name!r} do "
                                "not have; CompositeLoss(outer, inner, data, x0) makes a problem with 'linearization' and, given one, "
                                "with a 'proximal_point' for samples of one data point")
        if "proximal_point" in self._model.needs and problem.kind == "composite":
            raise MissingOracle(f"StochasticModel with model {self.model!r} takes no regularizer; model='prox_linear' does")

    def init(self, problem: Problem, key: Key) -> State:
        x = tree.clone(problem.x0)
        return {"x": x, "chosen": x, "total": 0.0, "t": 0, "key": key}

    def step(self, problem: Problem, state: State) -> State:
        t, key = state["t"], state["key"].fold(state["t"])
        alpha = self.alpha * (t + 1) ** -self.decay
        state = {**state, "t": t + 1}
        if self.output == "random":
            total = state["total"] + alpha
            lot = float(torch.rand((), generator=key.fold("output").generator()))
            state.update(total=total, chosen=state["x"] if lot < alpha / total else state["chosen"])
        return {**state, "x": self._model(problem.draw(key, size=self.batch_size), state["x"], alpha)}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["x"] if self.output == "last" or state["t"] == 0 else state["chosen"])


def moreau_grad_norm(problem: Problem, x: Tree, lam: float) -> float:
    """Return ‖∇φ_λ(x)‖ = ‖x − y‖/λ with y = argmin φ(y) + ‖y − x‖²/(2λ): small only near a point that is nearly stationary.

    y is found to 7 digits by prox-linear steps on all data, damped where the model is below the loss. Nothing is counted.

    Parameters
    ----------
    problem : Problem
        A ``CompositeLoss``, or a ``Composite`` of one with a term.
    x : tree
    lam : float
        λ, positive and below 1/ρ for a ρ-weakly convex φ: else y need not be unique. Checked where ``facts`` have ``weak_convexity``.

    Raises
    ------
    ValueError
        ``lam`` is not in that range.
    MissingOracle
        The problem has no ``linearization``.
    """
    free = problem.counted(Counts())
    loss = _loss(free)
    rho = loss.facts.get("weak_convexity", 0.0) + (free.term.weak_convexity if free.kind == "composite" else 0.0)
    if not (math.isfinite(lam) and lam > 0 and lam * rho < 1):
        raise ValueError(f"lam must be a positive number below 1 / weak_convexity{f' = {1 / rho:.3g}' if rho else ''}, got {lam}")
    if not loss.has("linearization"):
        raise MissingOracle(f"moreau_grad_norm needs 'linearization', which {problem.name!r} does not have; CompositeLoss offers it")
    y, damping = tree.clone(x), 0.0
    close = max(CLOSE, 10 * torch.finfo(tree.flatten(x).dtype).eps) * (1 + float(tree.norm(x)))
    c, jacobian = loss.linearization(y)
    for _ in range(ROUNDS):
        step = 1 / (1 / lam + damping)
        centre = tree.axpy(step * damping, tree.sub(y, x), x)
        shifted = c + jacobian @ tree.flatten(tree.sub(centre, y))
        z = _minimiser(free, centre, shifted, jacobian, loss.outer, loss.samples, step)
        move = tree.sub(z, y)
        length = float(tree.norm(move))
        modelled = _mean(loss, c + jacobian @ tree.flatten(move)) + damping / 2 * length**2
        after, slopes = loss.linearization(z)
        # The model falls by at least (1/λ + damping)/2 ‖z − y‖²: with this excess, what is minimised falls by a quarter of ‖z − y‖²/λ.
        if _mean(loss, after) - modelled <= length**2 / (4 * lam) or length <= close:
            y, c, jacobian, damping = z, after, slopes, damping / 2
        else:
            damping = max(2 * damping, 1 / lam)
        if length <= close:
            break
    else:
        warn(f"the proximal point is not exact after {ROUNDS} prox-linear steps: lam = {lam} may be too near 1 / weak convexity")
    return float(tree.norm(tree.sub(x, y))) / lam


def _mean(loss: Problem, residuals: Tensor) -> float:
    """The loss from the residuals of all rows, flat."""
    return float(loss.outer(residuals.reshape(loss.samples, -1)))
