"""Convex penalties: ℓ1, squared ℓ2, ℓ2, their mixtures, and the group norm.

    λ‖x‖₁            prox: sign(x) max(|x| - tλ, 0)
    λ/2 ‖x‖²         prox: x / (1 + tλ)
    λ‖x‖             prox: max(1 - tλ/‖x‖, 0) x
    λ₁‖x‖₁ + λ₂/2‖x‖²  prox: sign(x) max(|x| - tλ₁, 0) / (1 + tλ₂)
    Σ_g λ_g ‖x_g‖    prox: that of λ_g‖·‖ on each group

Sources: N. Parikh and S. Boyd, *Proximal Algorithms*, Found. Trends Optim. 1 (2014) 127; elastic net: H. Zou and
T. Hastie, J. R. Stat. Soc. B 67 (2005) 301; groups: M. Yuan and Y. Lin, J. R. Stat. Soc. B 68 (2006) 49.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fallline.core.terms.base import Term, check_weight, shrink_norm, soft_threshold

__all__ = ["L1", "L2", "ElasticNet", "GroupL2", "SquaredL2"]


class L1(Term):
    """λ Σ_i |x_i|, with λ = ``weight`` >= 0."""

    separable = True

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = check_weight("weight", weight)

    def value(self, x: Tensor) -> Tensor:
        """Return λ‖x‖₁."""
        return self.entries(x).sum()

    def entries(self, x: Tensor) -> Tensor:
        """Return λ|x_i|."""
        return self.weight * x.abs()

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return soft_threshold(x, step * self.weight)

    def __repr__(self) -> str:
        return f"L1({self.weight:g})"


class SquaredL2(Term):
    """λ/2 Σ_i x_i², with λ = ``weight`` >= 0."""

    separable = True

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = check_weight("weight", weight)

    def value(self, x: Tensor) -> Tensor:
        """Return λ/2 ‖x‖²."""
        return self.entries(x).sum()

    def entries(self, x: Tensor) -> Tensor:
        """Return λ/2 x_i²."""
        return self.weight / 2 * x * x

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return x / (1 + step * self.weight)

    def __repr__(self) -> str:
        return f"SquaredL2({self.weight:g})"


class ElasticNet(Term):
    """λ₁ Σ_i |x_i| + λ₂/2 Σ_i x_i², with λ₁ = ``l1`` and λ₂ = ``l2``."""

    separable = True

    def __init__(self, l1: float = 1.0, l2: float = 1.0) -> None:
        self.l1 = check_weight("l1", l1)
        self.l2 = check_weight("l2", l2)

    def value(self, x: Tensor) -> Tensor:
        """Return λ₁‖x‖₁ + λ₂/2 ‖x‖²."""
        return self.entries(x).sum()

    def entries(self, x: Tensor) -> Tensor:
        """Return λ₁|x_i| + λ₂/2 x_i²."""
        return self.l1 * x.abs() + self.l2 / 2 * x * x

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return soft_threshold(x, step * self.l1) / (1 + step * self.l2)

    def __repr__(self) -> str:
        return f"ElasticNet(l1={self.l1:g}, l2={self.l2:g})"


class L2(Term):
    """λ‖x‖, the norm itself and not its square.

    Parameters
    ----------
    weight : float
        λ >= 0.
    dim : int, tuple of int, or None
        The dimensions that form a vector; the others are a batch, over which ``value`` sums. None: all of x is one
        vector.
    """

    def __init__(self, weight: float = 1.0, dim: int | tuple[int, ...] | None = -1) -> None:
        self.weight = check_weight("weight", weight)
        self.dim = dim

    def value(self, x: Tensor) -> Tensor:
        """Return λ‖x‖, summed over the batch."""
        return self.weight * torch.linalg.vector_norm(x, dim=self.dim).sum()

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=self.dim, keepdim=True)
        return shrink_norm(x, norms, step * self.weight)

    def __repr__(self) -> str:
        return f"L2({self.weight:g}, dim={self.dim})"


class GroupL2(Term):
    """Σ_g λ_g ‖x_g‖ over disjoint groups of entries of the last dimension: the group lasso's penalty.

    Parameters
    ----------
    groups : int or sequence of index sequences
        A block length that divides the last dimension, or lists of indices. Entries in no group are not penalised.
    weight : float or sequence of float
        λ for all groups, or one λ_g each (√|g| each is Yuan and Lin's choice).
    """

    def __init__(self, groups: int | Sequence[Sequence[int]], weight: float | Sequence[float] = 1.0) -> None:
        self.weight: float | tuple[float, ...]
        if isinstance(weight, int | float):
            self.weight = check_weight("weight", weight)
        else:
            self.weight = tuple(check_weight("weight", each) for each in weight)
        self.groups: int | tuple[tuple[int, ...], ...]
        if isinstance(groups, int):
            if groups < 1:
                raise ValueError(f"groups as a block length must be >= 1, got {groups}")
            self.groups = groups
            return
        self.groups = tuple(tuple(int(index) for index in group) for group in groups)
        indices = [index for group in self.groups for index in group]
        if any(index < 0 for index in indices) or len(set(indices)) != len(indices):
            raise ValueError("groups must be disjoint lists of indices >= 0; an index is negative or occurs twice")
        if isinstance(self.weight, tuple) and len(self.weight) != len(self.groups):
            raise ValueError(f"weight has {len(self.weight)} entries for {len(self.groups)} groups")

    def value(self, x: Tensor) -> Tensor:
        """Return Σ_g λ_g ‖x_g‖, summed over the batch."""
        norms, _ = self._norms(x)
        return (self._weights(norms) * norms).sum()

    def _prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        norms, members = self._norms(x)
        thresholds = step * self._weights(norms)
        if members is None:
            blocks = x.unflatten(-1, (norms.shape[-1], -1))
            return shrink_norm(blocks, norms.unsqueeze(-1), thresholds.unsqueeze(-1)).flatten(-2)
        outside = norms > thresholds
        factors = torch.where(outside, 1 - thresholds / torch.where(outside, norms, 1.0), 0.0)
        # Entries in no group have the number of groups as theirs: the factor appended for them is 1.
        factors = torch.cat([factors, torch.ones_like(factors[..., :1])], dim=-1)
        return x * factors[..., members]

    def _norms(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the norms, shape (..., groups), and for index lists the group of each entry."""
        length = x.shape[-1]
        if isinstance(self.groups, int):
            if length % self.groups:
                raise ValueError(f"groups: the block length {self.groups} does not divide the last dimension {length} of x")
            return torch.linalg.vector_norm(x.unflatten(-1, (-1, self.groups)), dim=-1), None
        members = torch.full((length,), len(self.groups), device=x.device)
        for number, group in enumerate(self.groups):
            if max(group, default=-1) >= length:
                raise ValueError(f"groups: index {max(group)} is out of range for the last dimension {length} of x")
            members[list(group)] = number
        squares = x.new_zeros((*x.shape[:-1], len(self.groups) + 1)).index_add(-1, members, x * x)[..., :-1]
        positive = squares > 0
        return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0), members

    def _weights(self, norms: Tensor) -> Tensor:
        weights = torch.as_tensor(self.weight, dtype=norms.dtype, device=norms.device)
        if weights.ndim and len(weights) != norms.shape[-1]:
            raise ValueError(f"weight has {len(weights)} entries for {norms.shape[-1]} groups")
        return weights.expand(norms.shape[-1])

    def __repr__(self) -> str:
        groups = f"blocks of {self.groups}" if isinstance(self.groups, int) else f"{len(self.groups)} groups"
        return f"GroupL2({groups}, weight={self.weight})"
