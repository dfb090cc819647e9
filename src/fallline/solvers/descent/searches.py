"""Searches: how far to go on a path of steps.

    Fixed               t as given
    Armijo              first t of t₀, t₀/2, … with f(x + s) ≤ f + c₁⟨g, s⟩
    Backtracking        first t of t, t/2, … where f falls as much as the model; the next search starts at 2t
    RatioTest           t is a trust region's radius, adapted by ρ = fall of f / fall of the model
    GradientNormalized  t = γ/‖g‖_*: first of γ, γ/2, … with f − f⁺ ≥ ‖g⁺‖_*² t/8; then 2γ

A search evaluates at trial points and accepts one. NaN and infinite values mean "too far".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.solvers.descent.descents import Path, Step

Memory = dict[str, Any]
ROUNDING = 1e-10
"""Of a predicted fall: a model that is exact must not be refused for its last digits."""
LARGEST = 1e100
"""No step size grows beyond: an unbounded objective would double it for ever."""


@dataclass(frozen=True)
class Point:
    """A point with its value (0-d) and flat gradient."""

    x: Tree
    value: Tensor
    gradient: Tensor

    @property
    def finite(self) -> bool:
        return math.isfinite(float(self.value)) and bool(torch.isfinite(self.gradient).all())

    @property
    def noise(self) -> float:
        """The rounding error of f, relative to f itself, below which differences of f say nothing and must decide nothing."""
        return 16 * torch.finfo(self.value.dtype).eps * abs(float(self.value))


class Trials:
    """The objective at points tried from one place."""

    def __init__(self, problem: Problem, here: Point) -> None:
        self.problem, self.here, self.hidden = problem, here, False

    def moved(self, displacement: Tensor) -> Tree:
        return tree.add(self.here.x, tree.unflatten(displacement, self.here.x))

    def value(self, step: Step) -> float:
        """Return f(x + s)."""
        return float(self.problem.value(self.moved(step.displacement)))

    def judged(self, step: Step, spare: float, point: Point | None = None) -> Point | None:
        """Return x + s where f has fallen enough, with ``spare`` left; by gradients where rounding hides whether it has.

        Then f must still fall at the step's end, or the gradient not have grown: steps that are too long would swing about a solution
        as far as rounding hides what they do to f.
        """
        point = self.at(step) if point is None else point
        norms = [torch.linalg.vector_norm(g) for g in (point.gradient, self.here.gradient)]
        if spare >= 0 or bool(point.gradient @ step.displacement <= 0) or bool(norms[0] <= norms[1]):
            return point
        self.hidden = True
        return None

    def found(self, point: Point | None, memory: Memory, before: Memory, message: str) -> Found:
        """Return what a search decided: to stay, where all that it could try is hidden by rounding."""
        return Found(self.here, before) if point is None and self.hidden else Found(point, memory, message)

    def at(self, step: Step) -> Point:
        """Return x + s with value and gradient."""
        x = self.moved(step.displacement)
        value, gradient = self.problem.value_and_gradient(x)
        return Point(x, value, tree.flatten(gradient).to(self.here.gradient.dtype))


@dataclass(frozen=True)
class Found:
    """What a search decided: the accepted point, or None and why; what it keeps for the next search."""

    point: Point | None
    memory: Memory
    message: str = ""


@dataclass(frozen=True)
class Search:
    """Accepts a step on a path."""

    def start(self) -> Memory:
        """Return what is kept between steps: numbers."""
        return {}

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        """Return the accepted point."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


def _no_model(path: Path) -> str:
    return f"the curvature is not positive definite, so the model has no minimum; {path.remedy}"


def _halved(path: Path, t: float, tries: int, accept: Callable[[Step, float], Point | None]) -> tuple[Point | None, float, str]:
    """The first point accepted at t, t/2, …, with its t; or None and why."""
    step: Step | None = None
    for _ in range(tries):
        step = path(t)
        point = None if step is None else accept(step, t)
        if point is not None:
            return point, t, ""
        t /= 2
    message = _no_model(path) if step is None else (
        f"no step was accepted in {tries} trials, down to a size of {2 * t:.3g}: is the gradient that of the objective?")
    return None, t, message


def _positive(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


@dataclass(frozen=True)
class Fixed(Search):
    """The step of size t, whatever comes of it; t may be a function of the step's number k = 0, 1, …

    Parameters
    ----------
    t : float or callable ``k -> float``
    """

    t: float | Callable[[int], float] = 1.0

    def __post_init__(self) -> None:
        if not callable(self.t):
            _positive(t=self.t)

    def start(self) -> Memory:
        return {"k": 0}

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        t = self.t(memory["k"]) if callable(self.t) else self.t
        step = path(float(t))
        kept = {"k": memory["k"] + 1}
        return Found(None, kept, _no_model(path)) if step is None else Found(trials.at(step), kept)


@dataclass(frozen=True)
class Armijo(Search):
    """The first step of sizes t₀, t₀/2, … with f(x + s) ≤ f(x) + c₁ ⟨g, s⟩."""

    start_size: float = 1.0
    c1: float = 1e-4
    tries: int = 60

    def __post_init__(self) -> None:
        _positive(start_size=self.start_size)
        if not 0 < self.c1 < 1:
            raise ValueError(f"c1 must be between 0 and 1, got {self.c1}; 1e-4 is typical")

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        here = trials.here

        def accept(step: Step, t: float) -> Point | None:
            bound = float(here.value) + self.c1 * float(here.gradient @ step.displacement) + here.noise
            return trials.at(step) if trials.value(step) <= bound else None

        point, _, message = _halved(path, self.start_size, self.tries, accept)
        return Found(point, memory, message)


@dataclass(frozen=True)
class Backtracking(Search):
    """The first step of sizes t, t/2, … whose fall of f is at least that of its model; the next search starts at 2t.

    Parameters
    ----------
    start_size : float, default 1
        t of the first search.
    """

    start_size: float = 1.0
    tries: int = 100

    def __post_init__(self) -> None:
        _positive(start_size=self.start_size)

    def start(self) -> Memory:
        return {"t": float(self.start_size)}

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        here = trials.here

        def accept(step: Step, t: float) -> Point | None:
            spare = float(here.value) - (1 - ROUNDING) * step.predicted - trials.value(step)
            return trials.judged(step, spare) if spare >= -here.noise else None

        point, t, message = _halved(path, memory["t"], self.tries, accept)
        return trials.found(point, {"t": min(2 * t, LARGEST)}, memory, message)


@dataclass(frozen=True)
class RatioTest(Search):
    """Trust-region radii: with ρ = (f(x) − f(x + s)) / (fall of the model),

        ρ < 1/4: Δ ← Δ/4;   ρ > 3/4 and ‖s‖ = Δ: Δ ← min(2Δ, Δ_max);   s is taken if ρ > accept.

    Parameters
    ----------
    radius : float, default 1
        Δ of the first step.
    largest_radius : float, default 1e10
    accept : float, default 1e-4
    """

    radius: float = 1.0
    largest_radius: float = 1e10
    accept: float = 1e-4
    tries: int = 100

    def __post_init__(self) -> None:
        _positive(radius=self.radius, largest_radius=self.largest_radius)
        if not 0 <= self.accept < 0.25:
            raise ValueError(f"accept must be in [0, 1/4), got {self.accept}; 1e-4 is typical")

    def start(self) -> Memory:
        return {"radius": float(self.radius)}

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        radius, here = memory["radius"], trials.here
        for _ in range(self.tries):
            step = path(radius)
            if step is None:
                return Found(None, memory, _no_model(path))
            point = trials.at(step)  # most trials are accepted, and then need the gradient
            fall, predicted = float(here.value) - float(point.value), step.predicted
            ratio = (fall + here.noise) / (predicted + here.noise) if point.finite and predicted >= 0 else -math.inf
            length = float(torch.linalg.vector_norm(step.displacement))
            if ratio < 0.25:
                radius = min(radius, length) / 4
            elif ratio > 0.75 and step.bounded:
                radius = min(2 * radius, self.largest_radius)
            if ratio > self.accept:
                return Found(point, {"radius": radius})
            if radius < 1e-300:
                break
        return Found(None, memory, f"no step was accepted, down to a radius of {radius:.3g}: is the gradient that of the objective?")


@dataclass(frozen=True)
class GradientNormalized(Search):
    """Step size t = γ/‖g‖_*: the first of γ, γ/2, … with f(x) − f(x⁺) ≥ ‖∇f(x⁺)‖_*² t / 8; the next search starts at 2γ.

    Parameters
    ----------
    gamma : float, default 1
        γ of the first search.
    """

    gamma: float = 1.0
    tries: int = 40

    def __post_init__(self) -> None:
        _positive(gamma=self.gamma)

    def start(self) -> Memory:
        return {"gamma": float(self.gamma)}

    def __call__(self, trials: Trials, path: Path, memory: Memory) -> Found:
        here, norm = trials.here, path.dual_norm(trials.here.gradient)

        def accept(step: Step, t: float) -> Point | None:
            point = trials.at(step)
            if not point.finite:
                return None
            spare = float(here.value) - float(point.value) - path.dual_norm(point.gradient) ** 2 * t / 8
            return trials.judged(step, spare, point) if spare >= -here.noise else None

        point, t, message = _halved(path, (memory["gamma"] + 1e-8) / norm, self.tries, accept)
        return trials.found(point, {"gamma": min(max(2 * t * norm, 1e-9), LARGEST)}, memory, message)
