"""The preconditioner of one mode: what is kept of its statistics, and its root.

    H ← β H + (1 − β) M Mᵀ  (or the sum, from ε I);   H^{−1/p} whenever roots are due

A mode longer than a limit keeps the diagonal of H. Numbers that are not finite never enter H or its root.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fallline.core.linalg import inverse_pth_root, inverse_root
from fallline.core.warning import Once
from fallline.optim.directions.kronecker.late import LateRoots
from fallline.optim.engine.parts import Tensors
from fallline.optim.engine.state import State


class Exponent(NamedTuple):
    """Of H^{−1/order} (tr H)^trace, the part of one mode."""

    order: float
    trace: float = 0.0


class Root(Protocol):
    """(A, p) -> A^{−1/p} of a batch of symmetric matrices; matrices that fail come back with NaN."""

    differentiable: ClassVar[bool]

    def __call__(self, A: Tensor, order: float) -> Tensor: ...


@dataclass(frozen=True)
class Clamped:
    """A^{−1/p} with eigenvalues below ε raised to ε."""

    differentiable: ClassVar[bool] = True

    eps: float

    def __call__(self, A: Tensor, order: float) -> Tensor:
        return inverse_root(A, order, self.eps)


@dataclass(frozen=True)
class Shifted:
    """(A + ε I)^{−1/p}, with eigenvalues of A below 0 taken for 0."""

    differentiable: ClassVar[bool] = True

    eps: float

    def __call__(self, A: Tensor, order: float) -> Tensor:
        shift = self.eps * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return inverse_root(A + shift, order, self.eps)


@dataclass(frozen=True)
class Ridged:
    """(A + ridge λ_max I)^{−1/p}, by the coupled Newton iteration or by eigenvalues."""

    differentiable: ClassVar[bool] = False

    ridge: float
    method: Literal["newton", "eigh"]

    def __call__(self, A: Tensor, order: float) -> Tensor:
        return inverse_pth_root(A, order, self.method, self.ridge)


@dataclass(frozen=True)
class Factor:
    """One mode of length n: its state, its statistics from rows M ``(batch, n, rest)``, its root, and the product with it."""

    def init(self, n: int) -> dict[str, State]:
        """Declare the state."""
        raise NotImplementedError

    def observed(self, rows: Tensor, s: Tensors, c: Any) -> Tensors:
        """The statistics after ``rows``."""
        raise NotImplementedError

    @property
    def differentiable(self) -> bool:
        """Whether autograd can follow the statistics to the step."""
        return True

    def begin(self, key: Any, s: Tensors, exponent: Exponent) -> None:
        """Called at the step after the one that renewed the root."""

    def renewed(self, key: Any, s: Tensors, exponent: Exponent, c: Any) -> Tensors:
        """The root of the statistics in ``s``; ``key`` tells the factors of an optimizer apart."""
        return {}

    def multiply(self, x: Tensor, mode: int, s: Tensors, exponent: Exponent, c: Any) -> Tensor:
        """x ×_mode H^{−1/order} (tr H)^trace."""
        raise NotImplementedError


@dataclass(frozen=True)
class Full(Factor):
    """H and its root, 2 n² numbers; 3 n² where roots are late.

    Parameters
    ----------
    root : Root
    initial : float
        H starts at this multiple of I, its root at I.
    late : LateRoots, optional
        A root that is due is that of the statistics when the one before was due, and has been computed since.
    """

    root: Root
    initial: float = 0.0
    late: LateRoots | None = None
    say: Once = field(default_factory=Once, compare=False, repr=False)

    def init(self, n: int) -> dict[str, State]:
        eye = functools.partial(_identity, n, 1.0)
        start: Any = functools.partial(_identity, n, self.initial) if self.initial else 0.0
        states = {"statistics": State((n, n), initial=start), "root": State((n, n), initial=eye)}
        return states if self.late is None else {**states, "snapshot": State((n, n), initial=start)}

    def observed(self, rows: Tensor, s: Tensors, c: Any) -> Tensors:
        return {"statistics": torch.baddbmm(s["statistics"], rows, rows.mT, beta=c.keep_statistics, alpha=c.new_statistics)}

    @property
    def differentiable(self) -> bool:
        return self.late is None and self.root.differentiable

    def begin(self, key: Any, s: Tensors, exponent: Exponent) -> None:
        if self.late is not None:
            self.late.start(key, s["snapshot"], functools.partial(self._roots, exponent))

    def renewed(self, key: Any, s: Tensors, exponent: Exponent, c: Any) -> Tensors:
        statistics = s["statistics"] * c.debias if c.debias != 1 else s["statistics"]
        roots = functools.partial(self._roots, exponent)
        if self.late is None:
            return {"root": self._checked(roots(statistics), s["root"], statistics)}
        given = statistics if c.first_root else s["snapshot"]
        return {"root": self._checked(self.late.take(key, given, roots), s["root"], given), "snapshot": statistics.clone()}

    def _roots(self, exponent: Exponent, statistics: Tensor) -> Tensor:
        """Roots, NaN where they fail: a batch of which one matrix fails is taken one by one."""
        finite = statistics.isfinite().all(-1).all(-1)[:, None, None]
        safe = torch.where(finite, statistics, torch.eye(statistics.shape[-1], dtype=statistics.dtype, device=statistics.device))
        try:
            roots = self.root(safe, exponent.order)
        except torch.linalg.LinAlgError:
            roots = torch.cat([self._one(matrix, exponent.order) for matrix in safe.split(1)])
        if exponent.trace:
            roots = roots * _trace(safe)[:, None, None] ** exponent.trace
        return torch.where(finite, roots, torch.nan)

    def _one(self, matrix: Tensor, order: float) -> Tensor:
        try:
            return self.root(matrix, order)
        except torch.linalg.LinAlgError:
            return torch.full_like(matrix, torch.nan)

    def _checked(self, roots: Tensor, before: Tensor, statistics: Tensor) -> Tensor:
        """Roots, and those of before where they failed; that is no news where nothing has been seen yet."""
        good = told(roots, (statistics != 0).any(-1).any(-1), self.say)
        return torch.where(good[:, None, None], roots.to(before), before)

    def multiply(self, x: Tensor, mode: int, s: Tensors, exponent: Exponent, c: Any) -> Tensor:
        return times_mode(x, s["root"], mode)


def told(roots: Tensor, expected: Tensor, say: Once) -> Tensor:
    """Which matrices of a batch are finite; those that are not are told once where they were ``expected``."""
    good = roots.isfinite().all(-1).all(-1)
    failed = ~good & expected
    if bool(failed.any()):
        say(f"{int(failed.sum())} of {len(good)} roots of a preconditioner of size {roots.shape[-1]} failed: its statistics are not "
            "finite or too ill-conditioned. They keep their last value; a larger eps or ridge helps")
    return good


@dataclass(frozen=True)
class Diagonal(Factor):
    """The diagonal of H, n numbers, from ε on."""

    eps: float

    def init(self, n: int) -> dict[str, State]:
        return {"diagonal": State((n,), nonnegative=True, initial=self.eps)}

    def observed(self, rows: Tensor, s: Tensors, c: Any) -> Tensors:
        return {"diagonal": c.keep_statistics * s["diagonal"] + c.new_statistics * (rows * rows).sum(-1)}

    def multiply(self, x: Tensor, mode: int, s: Tensors, exponent: Exponent, c: Any) -> Tensor:
        diagonal = (s["diagonal"] * c.debias).clamp(min=self.eps)
        shape = [1] * x.ndim
        shape[0], shape[mode + 1] = diagonal.shape
        return x * (diagonal ** (-1 / exponent.order) * diagonal.sum(-1, keepdim=True) ** exponent.trace).view(shape)


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)


def _identity(n: int, factor: float, p: Tensor, index: int) -> Tensor:
    return factor * torch.eye(n, device=p.device)


def times_mode(x: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Multiply a batch of tensors by a batch of symmetric matrices along a mode (0 is the first after the batch)."""
    if mode == 0:
        return (matrix @ x.flatten(2)).view(x.shape) if x.ndim > 2 else (matrix @ x.unsqueeze(-1)).squeeze(-1)
    moved = x.movedim(mode + 1, -1)
    flat = moved.reshape(len(x), -1, moved.shape[-1])
    return (flat @ matrix).view(moved.shape).movedim(-1, mode + 1)


def unfolded(x: Tensor, mode: int) -> Tensor:
    """unfold_mode of a batch of tensors, ``(batch, n, rest)``."""
    return x.movedim(mode + 1, 1).flatten(2) if x.ndim > 2 else x.unsqueeze(-1)

