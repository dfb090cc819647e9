"""A map of a momentum, with one average for the step and another for the memory (Lion, Lion-K).

    u = ∇κ(β₁ m + (1 − β₁) g);   m ← β₂ m + (1 − β₂) g

κ = ‖·‖₁ gives the sign (Lion). With decay λ, the step solves min f(x) + κ*(λ x) / λ: for a norm κ, min f over the ball of radius
1 / λ of the dual norm.

Chen et al.: Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675. Chen, Liu, Liang, Liu: Lion Secretly Solves Constrained
Optimization, ICLR 2024, arXiv 2310.05898.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fallline.optim.engine.arithmetic import blend, over
from fallline.optim.engine.parts import Direction, Scalars, Tensors
from fallline.optim.engine.reduction import reduce
from fallline.optim.engine.state import State, like


@dataclass(frozen=True)
class Kappa:
    """A convex function by a subgradient, on one parameter as a direction sees it; 0 where that is 0."""

    reduces: ClassVar[bool] = False
    scope: ClassVar[Literal["elementwise", "matrix"]] = "elementwise"

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Matrix scope: the shape of one parameter's ``c``; rows by default."""
        return Direction().view(shape)

    def __call__(self, c: Tensor) -> Tensor:
        """∇κ(c), which may take the place of ``c``."""
        raise NotImplementedError

    def dual_norm(self, x: Tensor) -> Tensor:
        """The norm of a parameter whose ball of radius 1 / λ is the constraint."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sign(Kappa):
    """κ = ‖c‖₁: sign(c)."""

    def __call__(self, c: Tensor) -> Tensor:
        return torch.sign(c, out=over(c))

    def dual_norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, math.inf)


@dataclass(frozen=True)
class SoftSign(Sign):
    """κ = Σ √(c² + e²): c / √(c² + e²). It differs from ℓ₁ by at most e an entry, and the ball is the same."""

    e: float = 1e-3

    def __call__(self, c: Tensor) -> Tensor:
        return c / (c * c + self.e**2).sqrt()


@dataclass(frozen=True)
class Normalised(Kappa):
    """κ = ‖c‖₂ over each tensor: c / ‖c‖."""

    reduces: ClassVar[bool] = True

    def __call__(self, c: Tensor) -> Tensor:
        return _over_norm(c, reduce(c * c).sqrt())

    def dual_norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x)


@dataclass(frozen=True)
class RowsNormalised(Kappa):
    """κ = Σ_rows ‖c_row‖₂: every row over its norm. Rows are indices of the first dimension; of a vector, entries."""

    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    def __call__(self, c: Tensor) -> Tensor:
        return _over_norm(c, torch.linalg.vector_norm(c, dim=-1, keepdim=True))

    def dual_norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x.reshape(self.view(tuple(x.shape))), dim=-1).amax()


def _over_norm(c: Tensor, norm: Tensor) -> Tensor:
    return c / torch.where(norm > 0, norm, 1.0)


@dataclass(frozen=True)
class Custom(Kappa):
    """A function ``c -> ∇κ(c)`` of one whole tensor's momentum, in the sign convention of the paper, whose momentum collects −g."""

    function: Callable[[Tensor], Tensor]
    scope: ClassVar[Literal["elementwise", "matrix"]] = "matrix"

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def __call__(self, c: Tensor) -> Tensor:
        found = [self.function(-row) for row in c]
        wrong = next((u for u in found if not isinstance(u, Tensor) or u.shape != c.shape[1:]), None)
        if wrong is not None:
            said = tuple(wrong.shape) if isinstance(wrong, Tensor) else repr(wrong)
            raise ValueError(f"kappa must return one number for each of its argument, shape {tuple(c.shape[1:])}, got {said}")
        return torch.stack(found).neg()

    def dual_norm(self, x: Tensor) -> Tensor:
        raise ValueError("the constraint of a kappa given as a function is not known; measure it where the function was written")


@dataclass(frozen=True)
class MappedMomentum(Direction):
    """u = ∇κ(β₁ m + (1 − β₁) g). ``precision`` is that of m: by default the parameter's, or float32 for its halves."""

    precision: torch.dtype | None = None
    kappa: Kappa = field(default_factory=Sign)

    @property
    def reduces(self) -> bool:  # type: ignore[override]
        """Whether κ looks at whole tensors."""
        return self.kappa.reduces

    @property
    def scope(self) -> Any:  # type: ignore[override]
        """What κ looks at."""
        return self.kappa.scope

    def view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.kappa.view(shape)

    def coefficients(self, group: Mapping[str, Any], t: int) -> Scalars:
        beta1, beta2 = group["betas"]
        return {"new1": 1 - beta1, "new2": 1 - beta2}

    def init(self, p: Tensor) -> dict[str, State]:
        return {"exp_avg": like(p, precision=self.precision)}

    def __call__(self, g: Tensor, p: Tensor, s: Tensors, c: Any) -> tuple[Tensor, Tensors]:
        m = s["exp_avg"]
        u = self.kappa(blend(m, g, c.new1))
        return u, {"exp_avg": blend(m, g, c.new2, out=over(m))}
