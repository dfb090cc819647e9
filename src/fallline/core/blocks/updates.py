"""How a block moves: x_b ← x_b + d.

    gradient   d = prox_{r/L_b}(x_b − ∇_b f / L_b) − x_b;  where no L_b is known it is doubled until the model majorises f
    matrix     d = argmin ⟨∇_b f, d⟩ + ½ dᵀ H_b d + r(x_b + d),  H_b ⪰ ∇²_bb f fixed
    newton     the same with ∇²_bb f(x) for H_b, then α d, α = 1, ½, ¼, … until F falls by c α (⟨∇_b f, d⟩ + r(x_b + d) − r(x_b))
               without r, what of ∇_b f lies outside the range of ∇²_bb f is added as a gradient step, over max(‖∇²_bb f‖_∞, ‖∇_b f‖)
    exact      newton until the block is solved; matrix where f is quadratic
    message    the matrix update in forests, by elimination from the leaves, in linear time; without r

r is a separable term or absent; without it d = −H⁻¹ ∇_b f.

Nutini, Laradji, Schmidt: Let's Make Block Coordinate Descent Converge Faster, JMLR 2022, arXiv 1712.08859.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from fallline.core.blocks.forests import Elimination
from fallline.core.blocks.models import BlockModel, Kept, LinearBlocks, QuadraticBlocks
from fallline.core.blocks.prox import scaled_prox
from fallline.core.errors import NonFiniteError
from fallline.core.line_search import backtracking
from fallline.core.terms import Term

T = TypeVar("T")
DOUBLINGS = 200
ROUNDING = 8  # of the values that a search compares, in machine precisions


@dataclass
class BlockStep:
    """One block about to move.

    Attributes
    ----------
    x : Tensor (n,)
    kept : dict
        What the model keeps beside x.
    block : Tensor (k,)
        Variables.
    gradient : Tensor (k,)
        ∇_b f(x).
    bounds : Tensor (n,)
        L_i, or running estimates where none are known.
    term : Term, optional
        r on the block.
    number : int, optional
        Which block of a partition, so that what is fixed of it is made once, in ``made``.
    """

    model: BlockModel
    x: Tensor
    kept: Kept
    block: Tensor
    gradient: Tensor
    bounds: Tensor
    term: Term | None = None
    number: int | None = None
    made: dict[tuple[str, int], Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what is fixed of the block, made now if it is not there."""
        if self.number is None:
            return make()
        if (name, self.number) not in self.made:
            self.made[name, self.number] = make()
        found: T = self.made[name, self.number]
        return found

    @property
    def here(self) -> Tensor:
        """x_b."""
        return self.x[self.block]

    def move(self, d: Tensor) -> None:
        """Add d to x_b."""
        self.model.move(self.x, self.kept, self.block, d)

    def refreshed(self) -> None:
        """Look at the partial derivatives again, after a move."""
        self.gradient = self.model.partial(self.x, self.kept, self.block)


class Update(Protocol):
    """Moves a block; returns why it cannot, or nothing."""

    bounded: ClassVar[bool]
    """Whether fixed bounds on curvature are needed."""
    proximal: ClassVar[bool]
    """Whether there may be a term."""

    def __call__(self, step: BlockStep) -> str: ...


def block_norm(model: BlockModel, block: Tensor) -> Tensor:
    """Return L_b = ‖H_b‖, the largest eigenvalue of the bound, made a positive number."""
    bound = model.bound(block)
    largest = bound[0, 0] if len(bound) == 1 else torch.linalg.eigvalsh(bound)[-1]
    return largest.clamp(min=torch.finfo(bound.dtype).tiny)


@dataclass(frozen=True)
class GradientUpdate:
    """d = prox_{r/L_b}(x_b − ∇_b f / L_b) − x_b, the block's own L_b."""

    bounded: ClassVar[bool] = False
    proximal: ClassVar[bool] = True

    def __call__(self, step: BlockStep) -> str:
        """Move the block."""
        if not step.model.bounded:
            return self._doubled(step)
        step.move(self._direction(step, step.once("norm", lambda: block_norm(step.model, step.block))))
        return ""

    @staticmethod
    def _direction(step: BlockStep, L: Tensor) -> Tensor:
        if step.term is None:
            return -step.gradient / L
        here = step.here
        return step.term.prox(here - step.gradient / L, 1 / L) - here

    def _doubled(self, step: BlockStep) -> str:
        value, L = step.model.along(step.x, step.kept, step.block), step.bounds[step.block].amax()
        before = value(None)
        _check_finite(before, step.gradient)
        for _ in range(DOUBLINGS):
            d = self._direction(step, L)
            above = before + step.gradient @ d + L / 2 * (d @ d) + ROUNDING * torch.finfo(d.dtype).eps * before.abs()
            if bool(value(d) <= above):
                step.bounds[step.block] = L
                step.move(d)
                return ""
            L = 2 * L
        return f"no step of a block lowers the objective, down to 1/L = {float(1 / L):.3g}: is the gradient that of the objective?"


@dataclass(frozen=True)
class MatrixUpdate:
    """d = −H_b⁻¹ ∇_b f with the fixed bound H_b, or its proximal form."""

    bounded: ClassVar[bool] = True
    proximal: ClassVar[bool] = True

    def __call__(self, step: BlockStep) -> str:
        """Move the block."""
        H = step.once("bound", lambda: step.model.bound(step.block))
        if step.term is None and step.number is not None:
            inverse = step.once("inverse", lambda: pseudo_inverse(H))
            d = None if inverse is None else -(inverse @ step.gradient)
        else:
            d = minimiser(step, H)
        return _moved(step, H, d)


@dataclass(frozen=True)
class NewtonUpdate:
    """d = −(∇²_bb f)⁻¹ ∇_b f, or its proximal form, with backtracking.

    A singular ∇²_bb f has its pseudo-inverse taken and, where f is not a quadratic, −(I − HH⁺) ∇_b f / max(‖H‖_∞, ‖∇_b f‖) added: a
    flat curvature (that of x⁴ at 0, or of a Huber loss far out) does not hold a block.

    Parameters
    ----------
    c1 : float, default 1e-4
        Share of the decrease that the slope promises.
    shrink : float, default 0.5
        Factor between trial steps.
    """

    c1: float = 1e-4
    shrink: float = 0.5
    bounded: ClassVar[bool] = False
    proximal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("c1", "shrink"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}; 1e-4 and 0.5 are the defaults")

    def __call__(self, step: BlockStep) -> str:
        """Move the block."""
        _check_finite(step.gradient)
        H = step.model.hessian(step.x, step.kept, step.block)
        d = minimiser(step, H)
        if d is None or isinstance(step.model, QuadraticBlocks):
            return _moved(step, H, d)
        here, term = step.here, step.term
        if term is None:
            scale = torch.maximum(H.abs().sum(1).amax(), torch.linalg.vector_norm(step.gradient)).clamp(min=torch.finfo(H.dtype).tiny)
            d = d - (H @ d + step.gradient) / scale
        fall = 0.0 if term is None else float(term.value(here + d) - term.value(here))
        # The slope is at most −dᵀHd, which has digits where differences of r have none left.
        slope = min(float(step.gradient @ d) + fall, -float(d @ (H @ d)))
        if slope >= 0:
            return ""  # solved, up to rounding
        smooth = step.model.along(step.x, step.kept, step.block)

        def value(alpha: float) -> float:
            return float(smooth(alpha * d)) + (0.0 if term is None else float(term.value(here + alpha * d)))

        start = float(smooth(None)) + (0.0 if term is None else float(term.value(here)))
        _check_finite(torch.tensor((start, slope)))
        found = backtracking(value, start, slope, c1=self.c1, shrink=self.shrink, rounding=ROUNDING * torch.finfo(d.dtype).eps)
        if found.success:
            step.move(found.step * d)
        return ""


@dataclass(frozen=True)
class ExactUpdate:
    """The minimiser over the block, the others fixed.

    Parameters
    ----------
    tol : float, default 1e-10
        The block is solved when its (proximal) gradient has fallen by this factor.
    rounds : int, default 50
        Newton steps at most.
    """

    tol: float = 1e-10
    rounds: int = 50
    bounded: ClassVar[bool] = False
    proximal: ClassVar[bool] = True

    def __call__(self, step: BlockStep) -> str:
        """Move the block."""
        linear = isinstance(step.model, LinearBlocks) and step.model.parts.loss.name == "squared"
        if linear or isinstance(step.model, QuadraticBlocks):
            return MatrixUpdate()(step)
        first = math.inf
        for _ in range(self.rounds):
            size = float(torch.linalg.vector_norm(GradientUpdate._direction(step, torch.ones_like(step.x[0]))))
            first = min(first, size) if math.isinf(first) else first
            if size <= self.tol * first:
                break
            before = step.here
            if failure := NewtonUpdate()(step):
                return failure
            if bool((step.here == before).all()):
                break
            step.refreshed()
        return ""


@dataclass(frozen=True)
class MessagePassing:
    """d = −H_b⁻¹ ∇_b f in a block whose graph is a forest, by elimination from the leaves to the roots: O(|b|)."""

    bounded: ClassVar[bool] = True
    proximal: ClassVar[bool] = False

    def __call__(self, step: BlockStep) -> str:
        """Move the block."""
        factors = step.once("factors", lambda: Elimination.of(step.model.bound_columns(), step.block))
        if factors is None:
            return _indefinite(step)
        step.move(-factors.solve(step.gradient))
        return ""


UPDATES: dict[str, Update] = {"gradient": GradientUpdate(), "matrix": MatrixUpdate(), "newton": NewtonUpdate(), "exact": ExactUpdate(),
                              "message": MessagePassing()}


def minimiser(step: BlockStep, H: Tensor) -> Tensor | None:
    """Return argmin_d ⟨∇_b f, d⟩ + ½ dᵀ H d + r(x_b + d), None where there is none."""
    factor, info = torch.linalg.cholesky_ex(H)
    definite = int(info) == 0
    if step.term is not None:
        here = step.here
        return scaled_prox(step.term, here, step.gradient, H) - here if definite or pseudo_inverse(H) is not None else None
    if definite:
        return -torch.cholesky_solve(step.gradient[:, None], factor)[:, 0]
    inverse = pseudo_inverse(H)
    return None if inverse is None else -(inverse @ step.gradient)


def pseudo_inverse(H: Tensor) -> Tensor | None:
    """Return H⁺ of a positive semidefinite matrix, None where an eigenvalue is negative beyond rounding."""
    _check_finite(H)
    values, vectors = torch.linalg.eigh(H)
    small = len(H) * torch.finfo(H.dtype).eps * values.abs().amax()
    if bool(values[0] < -small):
        return None
    return (vectors * torch.where(values > small, 1 / values, 0.0)) @ vectors.mT


def _moved(step: BlockStep, H: Tensor, d: Tensor | None) -> str:
    """Move to the minimiser of a quadratic model, unless there is none."""
    if d is None:
        return _indefinite(step)
    if isinstance(step.model, QuadraticBlocks) and step.term is None and _unbounded(step, step.model, H, d):
        return f"the objective falls without bound along {_named(step.block)}: H is singular there, and b not in its range"
    step.move(d)
    return ""


def _unbounded(step: BlockStep, model: QuadraticBlocks, H: Tensor, d: Tensor) -> bool:
    """Whether d leaves a part of the gradient that no move can take away, beyond rounding."""
    singular = step.once("singular", lambda: int(torch.linalg.cholesky_ex(H)[1]) > 0)
    if not singular:
        return False
    left, norm = torch.linalg.vector_norm(H @ d + step.gradient), torch.linalg.vector_norm(step.gradient)
    noise = torch.finfo(d.dtype).eps ** 0.5 * (H.abs().amax() * step.here.abs().amax() + model.parts.b.abs().amax())
    return bool((left > 1e-6 * norm) & (left > noise))


def _named(block: Tensor) -> str:
    return f"variables {block[:5].tolist()}" + (" …" if len(block) > 5 else "")


def _indefinite(step: BlockStep) -> str:
    return (f"the Hessian of the block of {_named(step.block)} has a negative eigenvalue: its quadratic model has no minimum; the "
            "objective is not convex, and may be unbounded; update='gradient' takes non-convex objectives that are bounded below")


def _check_finite(*tensors: Tensor) -> None:
    for each in tensors:
        if not bool(torch.isfinite(each).all()):
            raise NonFiniteError("a value, gradient or Hessian of a block has NaN or infinite entries")
