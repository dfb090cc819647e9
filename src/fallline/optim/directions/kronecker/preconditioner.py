"""Preconditioners of tensors by the modes of a gradient.

    U = X ×_1 H_1^{−1/2k} … ×_k H_k^{−1/2k}                    Shampoo, with k modes that have a factor
    U = (tr H_1)^{(k−1)/2} X ×_1 H_1^{−1/2} … ×_k H_k^{−1/2}   the nearest Kronecker product to the full matrix, nearly (Shampoo²)

The factors learn from G, which need not be X: an average of gradients, for one.

Gupta, Koren, Singer: Shampoo: Preconditioned Stochastic Tensor Optimization, ICML 2018, arXiv 1802.09568.
Morwani, Shapira, Vyas, Malach, Kakade, Janson: A New Perspective on Shampoo's Preconditioner, arXiv 2406.17748.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.optim.directions.kronecker.factors import Exponent, Factor, unfolded
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.state import State

OfGroup = Callable[[Mapping[str, Any]], float]


def summed(group: Mapping[str, Any]) -> float:
    """β = 1: statistics are sums."""
    return 1.0


def second_beta(group: Mapping[str, Any]) -> float:
    """β₂."""
    return float(group["betas"][1])


@dataclass(frozen=True)
class Constant:
    """β, whatever the group."""

    beta: float

    def __call__(self, group: Mapping[str, Any]) -> float:
        return self.beta


@dataclass(frozen=True)
class Kronecker(Direction):
    """X ×_i root(H_i); called with (G, X), where a direction has (G, p).

    Parameters
    ----------
    factor : Factor
        Of modes up to ``max_dim``.
    longer : Factor, optional
        Of longer modes; without it they have none, and k counts the others alone.
    max_dim : int
    root_every, start_step : int
        Roots are due at ``start_step`` and every so many steps from there; before, U is X.
    beta : function of a group
        Of the statistics' average; 1 means a sum.
    debias : bool
        Whether an average is divided by 1 − βᵗ before its root.
    half : bool
        Exponents −1/2 and the trace in front (Shampoo²).
    vectors : bool
        Whether tensors of one dimension are preconditioned.
    statistics_every : int
        Steps between statistics.
    """

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    factor: Factor
    longer: Factor | None = None
    max_dim: int = 1024
    root_every: int = 1
    start_step: int = 1
    beta: OfGroup = summed
    debias: bool = False
    half: bool = False
    vectors: bool = True
    statistics_every: int = 1

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape or (1,)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta = self.beta(group)
        active = t >= self.start_step
        since = t - self.start_step
        return {"learn": float(t % self.statistics_every == 0), "begin": float(since > 0 and (since - 1) % self.root_every == 0),
                "keep_statistics": beta, "new_statistics": 1.0 if beta == 1 else 1 - beta,
                "debias": 1 / (1 - beta**t) if self.debias and beta < 1 else 1.0, "active": float(active),
                "renew": float(active and since % self.root_every == 0), "first_root": float(since == 0)}

    def _factors(self, shape: tuple[int, ...]) -> dict[int, Factor]:
        """The factor of every mode that has one."""
        if len(shape) == 1 and not self.vectors:
            return {}
        chosen = {i: self.factor if n <= self.max_dim else self.longer for i, n in enumerate(shape)}
        return {i: factor for i, factor in chosen.items() if factor is not None}

    def init(self, p: Tensor) -> dict[str, State]:
        return {f"{name}{i}": state for i, factor in self._factors(tuple(p.shape)).items()
                for name, state in factor.init(p.shape[i]).items()}

    def __call__(self, g: Tensor, x: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        factors = self._factors(tuple(g.shape[1:]))
        if g.numel() == 0 or not factors:
            return x, {}
        self._check_differentiable(g, factors)
        k = len(factors)
        exponent = Exponent(2.0, (k - 1) / (2 * k)) if self.half else Exponent(2.0 * k)
        finite = _finite(g)
        # The statistics never see what is not finite; the step shows it, so that it is reported.
        seen, u, new = torch.where(finite, g, 0.0), torch.where(finite, x, torch.nan), dict[str, Tensor]()
        for i, factor in factors.items():
            key = (tuple(c.indices), c.region, i)
            own = {name: s[f"{name}{i}"] for name in factor.init(g.shape[i + 1])}
            if c.begin:
                factor.begin(key, own, exponent)
            changed = factor.observed(unfolded(seen, i), own, c) if c.learn else {}
            if c.renew:
                changed |= factor.renewed(key, {**own, **changed}, exponent, c)
            own |= changed
            if c.active:
                u = factor.multiply(u, i, own, exponent, c)
            new |= {f"{name}{i}": value for name, value in changed.items()}
        return u, new

    def _check_differentiable(self, g: Tensor, factors: Mapping[int, Factor]) -> None:
        if torch.is_grad_enabled() and g.requires_grad and not all(factor.differentiable for factor in factors.values()):
            raise RuntimeError("steps of this rule cannot be unrolled by autograd, which does not follow its roots (damped by a share "
                               "of the largest eigenvalue, late, or kept in codes); Shampoo's can")


def _finite(g: Tensor) -> Tensor:
    """Of every tensor of a batch, whether its numbers and the sum of their squares are finite; ready to broadcast."""
    total = torch.linalg.vector_norm(g.flatten(1), dim=1).square()
    return total.isfinite().view(-1, *[1] * (g.ndim - 1))
