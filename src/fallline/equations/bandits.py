"""Bandits that choose a solver's parameter from what earlier systems cost.

Only the cost k of the arm chosen is seen, in iterations, at least 1. With d arms, at t = 1, 2, …:

    Tsallis-INF   K_a += (k − 1)/p_a for the arm a drawn,   s = mean cost − 1,   η = 2/√t
                  p_a = 4 (η (K_a/s − z))⁻²,   z such that Σ p = 1
    ChebCB        features φ_j(c) = T_j(2 (c − lo)/(hi − lo) − 1), j < m, of a context c; for every arm least squares
                  θ_a = argmin Σ (θᵀφ − (k − 1)/S)²,   |θ_0| ≤ 1/N,   |θ_j| ≤ 2 (hi − lo) L/(S j)
                  p_a = 1/(d + η (ŷ_a − ŷ*)) for every arm but the best, of the predictions ŷ = θᵀφ; the best has what is left
                  K = largest cost,   L = (largest − least)/(hi − lo),   N = 2 + 4 (hi − lo)(L/K)(1 + log m),   S = K N

Tsallis-INF does as well as the best fixed arm in hindsight, up to O(√(d T)) over T systems; ChebCB in the long run as the best arm for
every context, where costs are smooth in it.

M. Khodak, E. Chow, M. F. Balcan, A. Talwalkar: Learning to relax: setting solver parameters across a sequence of linear system
instances, ICLR 2024, arXiv 2310.02246; Tsallis-INF is of J. Zimmert, Y. Seldin, JMLR 22 (2021) 28.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from fallline.core.checks import check_count
from fallline.core.keys import Key, as_key

Vector = NDArray[np.float64]
NEWTON_STEPS = 20


class Bandit:
    """Arms, a choice that stands until its cost is told, and a state that can be kept.

    Parameters
    ----------
    arms : iterable of float
        The parameters to choose from; at least two.
    key : Key or int, default 0
        Of the draws.
    """

    def __init__(self, arms: Iterable[float], key: Key | int = 0) -> None:
        self.arms = [float(arm) for arm in arms]
        if len(self.arms) < 2 or not all(math.isfinite(arm) for arm in self.arms):
            raise ValueError(f"arms must be at least two finite numbers, got {self.arms!r}")
        self.key = as_key(key)
        self.state: dict[str, Any] = {"t": 1, "chosen": None, "p": 0.0}

    def _probabilities(self, context: float | None) -> Vector:
        raise NotImplementedError

    def _learn(self, arm: int, p: float, cost: float) -> None:
        raise NotImplementedError

    def predict(self, context: float | None = None) -> float:
        """Return the arm for the next system; the same one until ``update`` tells its cost."""
        if self.state["chosen"] is None:
            p = self._probabilities(context)
            drawn = float(torch.rand((), dtype=torch.float64, generator=self.key.fold(self.state["t"]).generator()))
            chosen = min(int(np.searchsorted(np.cumsum(p), drawn, side="right")), len(p) - 1)
            self.state.update(chosen=chosen, p=float(p[chosen]))
        return self.arms[self.state["chosen"]]

    def update(self, cost: float) -> None:
        """Take in the cost of the arm that ``predict`` gave last: iterations, at least 1."""
        if self.state["chosen"] is None:
            raise ValueError("update needs an arm that the cost belongs to; call predict first")
        if not (math.isfinite(cost) and cost >= 1):
            raise ValueError(f"cost must be a finite number of iterations of at least 1, got {cost!r}; cap a solver that diverges")
        self._learn(self.state["chosen"], self.state["p"], float(cost))
        self.state.update(t=self.state["t"] + 1, chosen=None, p=0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return all that was learnt, as numbers and tensors."""
        return {name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict`` of a bandit with the same arms and key."""
        if state.keys() != self.state.keys():
            raise ValueError(f"state must be that of a {type(self).__name__}, with {sorted(self.state)}, got {sorted(state)}")
        arrays = {name: value.numpy().copy() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
        for name, value in self.state.items():
            if isinstance(value, np.ndarray) and value.shape != arrays[name].shape:
                raise ValueError(f"state must be that of {len(self.arms)} arms: {name} has shape {arrays[name].shape}, not "
                                 f"{value.shape}")
        self.state = arrays

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.arms)} arms from {min(self.arms):g} to {max(self.arms):g}, t={self.state['t']})"


class TsallisINF(Bandit):
    """Tsallis-INF: importance-weighted costs, regularised by the entropy −Σ √p; without a context.

    Parameters
    ----------
    arms, key
        As for ``Bandit``.

    Notes
    -----
    Newton's 20 steps for z start from min K/s − 2/η, where Σ p ≥ 1, and come down from there; from the authors' start, −1, they can
    leave for the wrong side of the pole. Costs so far of 1 only leave s = 1.

    Examples
    --------
    >>> bandit = TsallisINF([1.0, 1.5, 1.9])
    >>> for _ in range(300):
    ...     bandit.update({1.0: 90, 1.5: 30, 1.9: 60}[bandit.predict()])
    >>> bandit
    TsallisINF(3 arms from 1 to 1.9, t=301)
    """

    def __init__(self, arms: Iterable[float], key: Key | int = 0) -> None:
        super().__init__(arms, key)
        self.state.update(K=np.zeros(len(self.arms)), total=0.0)

    def probabilities(self) -> Vector:
        """Return the probability of every arm for the next system."""
        t, excess = self.state["t"], self.state["total"] - (self.state["t"] - 1)
        eta, scale = 2 / math.sqrt(t), excess / (t - 1) if excess > 0 else 1.0
        costs = self.state["K"] / scale
        z = costs.min() - 2 / eta
        for _ in range(NEWTON_STEPS):
            p = 4 / (eta * (costs - z)) ** 2
            z -= (p.sum() - 1) / (eta * (p**1.5).sum())
        p = 4 / (eta * (costs - z)) ** 2
        return p / p.sum()

    def _probabilities(self, context: float | None) -> Vector:
        return self.probabilities()

    def _learn(self, arm: int, p: float, cost: float) -> None:
        self.state["total"] += cost
        self.state["K"][arm] += (cost - 1) / p


class ChebCB(Bandit):
    """ChebCB: inverse-gap weighting of costs that are Chebyshev series in a context.

    Parameters
    ----------
    arms : iterable of float
    degree : int
        m, the number of Chebyshev polynomials, T_0 … T_{m−1}.
    lo, hi : float
        The interval of contexts.
    key : Key or int, default 0

    Notes
    -----
    η = 2 t √(d t / (R + 2 α² t)), where R is what the predictions' squared errors exceed those of the present fits by, and
    α = (π + (2/π) log(2m + 1)) (hi − lo) L / (2 S (m + 1)) bounds the error of a series; so it grows about in proportion to t, as in
    the authors' code. Their R counts the fits' errors of one arm only. Past costs are kept as moments, m² numbers an arm.
    """

    def __init__(self, arms: Iterable[float], degree: int, lo: float, hi: float, key: Key | int = 0) -> None:
        super().__init__(arms, key)
        check_count("degree", degree, "4 to 6 are typical")
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise ValueError(f"lo and hi must be the ends of an interval of contexts, got {lo!r} and {hi!r}")
        self.degree, self.lo, self.hi = degree, float(lo), float(hi)
        d = len(self.arms)
        self.state.update(gram=np.zeros((d, degree, degree)), moments=np.zeros((d, degree)), squares=np.zeros(d),
                          theta=np.zeros((d, degree)), features=np.zeros(degree), eta=0.0, largest=1.0, least=math.inf, scale=0.0,
                          errors=0.0)

    def costs(self, context: float) -> Vector:
        """Return what every arm is predicted to cost in a context; 1 before anything is known."""
        return 1 + self.state["scale"] * (self.state["theta"] @ self._features(context))

    def _features(self, context: float | None) -> Vector:
        if context is None or not self.lo <= context <= self.hi:
            raise ValueError(f"context must be a number from {self.lo:g} to {self.hi:g}, got {context!r}")
        angle = math.acos(min(1.0, max(-1.0, 2 * (context - self.lo) / (self.hi - self.lo) - 1)))
        return np.cos(angle * np.arange(self.degree))

    def _probabilities(self, context: float | None) -> Vector:
        self.state["features"] = self._features(context)
        predicted = self.state["theta"] @ self.state["features"]
        best = int(predicted.argmin())
        p = 1 / (len(self.arms) + self.state["eta"] * (predicted - predicted[best]))
        p[best] = 0.0
        p[best] = 1 - p.sum()
        return p

    def _learn(self, arm: int, p: float, cost: float) -> None:
        state, phi, t = self.state, self.state["features"], self.state["t"]
        predicted = float(state["theta"][arm] @ phi)
        state["gram"][arm] += np.outer(phi, phi)
        state["moments"][arm] += (cost - 1) * phi
        state["squares"][arm] += (cost - 1) ** 2
        state.update(largest=max(state["largest"], cost), least=min(state["least"], cost))
        width, m = state["largest"] - state["least"], self.degree  # (hi − lo) L
        N = 2 + 4 * width / state["largest"] * (1 + math.log(m))
        scale, rescaled = state["largest"] * N, state["largest"] * N != state["scale"]
        state["scale"] = scale
        bounds = np.array([1 / N, *(2 * width / scale / np.arange(1, m))])
        for a in range(len(self.arms)) if rescaled else (arm,):
            state["theta"][a] = _bounded_fit(state["gram"][a], state["moments"][a] / scale, bounds)
        state["errors"] += (predicted - (cost - 1) / scale) ** 2
        alpha = (math.pi + 2 / math.pi * math.log(2 * m + 1)) * width / (2 * scale * (m + 1))
        regret = max(0.0, state["errors"] - self._residuals(scale))
        bound = regret + 2 * alpha**2 * t
        state["eta"] = 2 * t * math.sqrt(len(self.arms) * t / bound) if bound > 0 else 0.0

    def _residuals(self, scale: float) -> float:
        """Σ (θ_aᵀφ − (k − 1)/S)² of all arms, from the moments."""
        theta, gram = self.state["theta"], self.state["gram"]
        fitted = np.einsum("ai,aij,aj->", theta, gram, theta) - 2 * float((theta * self.state["moments"]).sum()) / scale
        return float(fitted + self.state["squares"].sum() / scale**2)


def _bounded_fit(gram: Vector, moments: Vector, bounds: Vector) -> Vector:
    """argmin θᵀGθ − 2θᵀh in the box |θ| ≤ bounds; the shortest where there are several and it lies inside."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * max(values[-1], 1e-300)
    roots = np.sqrt(values[kept])
    rows, right = roots[:, None] * vectors[:, kept].T, vectors[:, kept].T @ moments / roots
    free: Vector = vectors[:, kept] @ (right / roots)
    if np.all(np.abs(free) <= bounds):
        return free
    box = np.maximum(bounds, 1e-12)  # SciPy takes no empty interval
    found: Vector = lsq_linear(rows, right, (-box, box), method="bvls").x
    return found
