"""Consensus-based optimization: a population that drifts to its softly best point.

    x_α = Σ_i X_i e^{−α f(X_i)} / Σ_i e^{−α f(X_i)}
    CBO:      X_i ← X_i − λ dt (X_i − x_α) + σ √dt D_i ξ_i,   ξ_i ~ N(0, I)
              D_i = ‖X_i − x_α‖ (isotropic)  or  diag(X_i − x_α) (anisotropic)
    hopping:  X_i ~ N(x_k, s² I),  x_{k+1} = x_α  ≈  argmin_y f(y) + ‖y − x_k‖² / (2αs²)  ≈  x_k − αs² ∇f(x_k)

Riedl, Klock, Geldhauser, Fornasier: Gradient is all you need?, arXiv 2306.09778.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.core.keys import Key, as_key
from fallline.core.method import AskTell, Report, State
from fallline.core.problem import Problem
from fallline.core.registry import register
from fallline.core.space import LogUniform, Range, Uniform
from fallline.core.warning import warn


def consensus_point(points: Tensor, values: Tensor, alpha: float) -> Tensor:
    """Return ``x_α``, the mean of the points (n, d) under weights ``e^{−α f}``; a NaN value counts as +∞.

    All values infinite or NaN gives NaN: no point is better than another.
    """
    values = torch.where(torch.isnan(values), torch.inf, values).to(points.dtype)
    return torch.softmax(-alpha * (values - values.min()), 0) @ points


def _positive(method: Any, *names: str) -> None:
    for name in names:
        value = getattr(method, name)
        if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")


def _at_least_two(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be a whole number of at least 2 (points in the population), got {n!r}")


def _remember(state: State, points: Tensor, values: Tensor) -> State:
    """Keep the best point seen so far."""
    i = int(torch.argmin(torch.where(torch.isnan(values), torch.inf, values)))
    if float(values[i]) < state["best_value"]:
        return {**state, "best": points[i].clone(), "best_value": float(values[i])}
    return state


@register("consensus-based")
@dataclass(frozen=True)
class CBO(AskTell):
    """X_i ← X_i − λ dt (X_i − x_α) + σ √dt D_i ξ_i. Values only; a NaN value counts as +∞.

    Parameters
    ----------
    n : int, default 200
        Points in the population; a step costs n values.
    alpha : float, default 100
        How softly the best is chosen.
    lam, sigma, dt : float, defaults 1, 0.8, 0.1
        Drift, noise, time step. In theory the population contracts if 2λ > dσ² (isotropic) or 2λ > σ² (anisotropic); a warning
        says where that is violated.
    noise : {"isotropic", "anisotropic"}, default "isotropic"
    collapse : float, default 1e-12
        When the population is narrower than this share of its first width, it starts again around the best point at its first
        width; 0 for never.

    Notes
    -----
    The population starts uniformly in the problem's bounds, else as N(x0, I). The solution is the best point seen, the gap the
    width of the population (its largest distance from the consensus), the certificate the consensus itself.
    """

    n: int = 200
    alpha: float = 100.0
    lam: float = 1.0
    sigma: float = 0.8
    dt: float = 0.1
    noise: Literal["isotropic", "anisotropic"] = "isotropic"
    collapse: float = 1e-12

    space: ClassVar[Mapping[str, Range]] = {"sigma": Uniform(0.1, 2.0), "alpha": LogUniform(1.0, 1e4)}

    def __post_init__(self) -> None:
        _at_least_two(self.n)
        _positive(self, "alpha", "lam", "sigma", "dt")
        if not 0 <= self.collapse < 1:
            raise ValueError(f"collapse must be in [0, 1), a share of the population's first width, got {self.collapse!r}")
        if self.noise not in ("isotropic", "anisotropic"):
            raise ValueError(f"noise must be 'isotropic' or 'anisotropic', got {self.noise!r}")

    def init(self, problem: Problem, key: Key) -> State:
        x0 = problem.x0
        dimension = x0.numel() if self.noise == "isotropic" else 1
        if 2 * self.lam <= dimension * self.sigma**2:
            warn(f"the theory's contraction needs 2·lam > {'d·' if dimension > 1 else ''}sigma², and here "
                 f"2·lam = {2 * self.lam:g} and the right side is {dimension * self.sigma**2:g}: the population may spread; sigma "
                 f"below {math.sqrt(2 * self.lam / dimension):.3g} is safe")
        generator = key.fold("start").generator()
        if "bounds" in problem.facts:
            low, high = (torch.as_tensor(b, dtype=x0.dtype) for b in problem.facts["bounds"])
            points = low + (high - low) * torch.rand(self.n, x0.numel(), dtype=x0.dtype, generator=generator)
        else:
            points = x0.cpu() + torch.randn(self.n, x0.numel(), dtype=x0.dtype, generator=generator)
        points = points.to(x0.device)
        width = float((points - points.mean(0)).norm(dim=1).max())
        return {"points": points, "consensus": points.mean(0), "first_width": width, "width": width, "t": 0, "key": key,
                "best": x0.clone(), "best_value": math.inf}

    def ask(self, state: State) -> Tensor:
        return state["points"]

    def tell(self, state: State, points: Tensor, values: Tensor) -> State:
        state = _remember(state, points, values)
        consensus = consensus_point(points, values, self.alpha)
        away = points - consensus
        generator = state["key"].fold(state["t"]).generator()
        normal = torch.randn(points.shape, dtype=points.dtype, generator=generator).to(points.device)
        scale = away.norm(dim=1, keepdim=True) if self.noise == "isotropic" else away
        moved = points - self.lam * self.dt * away + self.sigma * math.sqrt(self.dt) * scale * normal
        width = float((moved - consensus).norm(dim=1).max())
        if width < self.collapse * state["first_width"]:
            moved = state["best"] + state["first_width"] / math.sqrt(points.shape[1]) * normal
        return {**state, "points": moved, "consensus": consensus, "width": width, "t": state["t"] + 1}

    def report(self, problem: Problem, state: State) -> Report:
        if state["t"] == 0:
            return Report(state["best"])
        # All values NaN or infinite: the consensus is NaN, and so must the report be.
        gap = state["width"] if torch.isfinite(state["consensus"]).all() else math.nan
        return Report(state["best"], value=state["best_value"], gap=gap, certificate={"consensus": state["consensus"]})


@register("consensus-hopping")
@dataclass(frozen=True)
class ConsensusHopping(AskTell):
    """X_i ~ N(x_k, s²I), x_{k+1} = x_α: descent with step αs² along an implied gradient, from values only.

    Parameters
    ----------
    sigma : float, default 0.1
        The sampling width s. A hop is at most about s·√(2 ln n) long, so keep α·s·‖∇f‖ ≤ 1.
    alpha : float, default 100
    n : int, default 200
        Values a step.
    """

    sigma: float = 0.1
    alpha: float = 100.0
    n: int = 200

    space: ClassVar[Mapping[str, Range]] = {"sigma": LogUniform(1e-3, 1.0), "alpha": LogUniform(1.0, 1e4)}

    def __post_init__(self) -> None:
        _at_least_two(self.n)
        _positive(self, "sigma", "alpha")

    def init(self, problem: Problem, key: Key) -> State:
        return {"x": problem.x0.clone(), "t": 0, "key": key, "best": problem.x0.clone(), "best_value": math.inf}

    def ask(self, state: State) -> Tensor:
        return _cloud(state["x"], self.sigma, self.n, state["key"].fold(state["t"]))

    def tell(self, state: State, points: Tensor, values: Tensor) -> State:
        state = _remember(state, points, values)
        return {**state, "x": consensus_point(points, values, self.alpha), "t": state["t"] + 1}

    def report(self, problem: Problem, state: State) -> Report:
        return Report(state["x"], certificate={"best": state["best"], "best_value": state["best_value"]})


def _cloud(x: Tensor, sigma: float, n: int, key: Key) -> Tensor:
    normal = torch.randn(n, x.numel(), dtype=x.dtype, generator=key.generator())
    return x + sigma * normal.to(x.device)


def cbo_gradient(f: Callable[[Tensor], Tensor], x: Tensor, sigma: float, alpha: float, n: int, key: Key | int = 0) -> Tensor:
    """Return ``(x − x_α) / (αs²)``, the gradient that a hop from ``x`` implies; tends to ∇f(x) as s → 0 and n → ∞.

    Parameters
    ----------
    f : callable
        Takes points (n, d), returns values (n,).
    x : tensor, shape (d,)
    sigma, alpha : float
    n : int
    key : Key or int, default 0
    """
    points = _cloud(x, sigma, n, as_key(key))
    return (x - consensus_point(points, f(points), alpha)) / (alpha * sigma**2)
