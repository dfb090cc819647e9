"""Steepest descent in a metric: u = A(x) g with A symmetric and positive semidefinite.

    positive   A = diag(x):                u = x ∘ g
    simplex    A = diag(x) − x xᵀ:         u = x ∘ (g − ⟨x, g⟩), over each tensor
    affine     A = I − Bᵀ (B Bᵀ)⁻¹ B:      keeps B x

The first two are H⁻¹ and its restriction to Σ x = 1 for the entropy's Hessian H = diag(1 / x) (Hessian-Riemannian flows).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.optim.engine.parts import Direction, Tensors
from fallline.optim.engine.reduction import reduce


@dataclass(frozen=True)
class Positive(Direction):
    """u = x ∘ g."""

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return p * g, {}


@dataclass(frozen=True)
class Simplex(Direction):
    """u = x ∘ (g − ⟨x, g⟩)."""

    reduces: ClassVar[bool] = True

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        return p * (g - reduce(p * g)), {}


@dataclass(frozen=True, eq=False)
class OnFlattened(Direction):
    """A rule on whole tensors, flattened; one for each."""

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(shape),)


@dataclass(frozen=True, eq=False)
class Affine(OnFlattened):
    """u = g − Qᵀ Q g, with the orthonormal rows Q of B."""

    rows: Tensor

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        rows = self.rows.to(g)
        return g - g @ rows.mT @ rows, {}


@dataclass(frozen=True, eq=False)
class CustomMetric(OnFlattened):
    """u = A(x) g by a function ``(x, g) -> A(x) g`` of flattened tensors."""

    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        found = [self.function(x, each) for x, each in zip(p, g, strict=True)]
        if any(not isinstance(u, Tensor) or u.shape != g.shape[1:] for u in found):
            raise ValueError(f"precond must return one number for each entry of its tensor, shape {tuple(g.shape[1:])}, got "
                             f"{found[0]!r}")
        return torch.stack(found), {}
