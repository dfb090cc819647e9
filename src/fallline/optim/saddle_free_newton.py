"""Saddle-free Newton: the Hessian's absolute values in the place of its eigenvalues, in a Krylov space.

    V ← orthonormal basis of span(g, H g, …, H^{k−1} g, the previous step),    Ĥ = Vᵀ H V,    ĝ = Vᵀ g
    θ ← θ − η V (|Ĥ| + λ I)⁻¹ ĝ,    |Ĥ| = U |Λ| Uᵀ for Ĥ = U Λ Uᵀ,    λ of a grid: the one with the least loss on the same samples

Newton's step −H⁻¹ g is drawn to saddles, for it goes uphill where the curvature is negative; with |H| it goes downhill, as far as a
linear model may be trusted where the second-order term |δᵀ H δ| is bounded.

Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio: Identifying and attacking the saddle point problem in high-dimensional non-convex
optimization, NeurIPS 2014, arXiv 1406.2572; first in Pascanu, Dauphin, Ganguli, Bengio, arXiv 1405.4604.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from fallline.core.errors import NonFiniteError
from fallline.core.linalg.batches import symmetric
from fallline.core.operators import LinearOperator, lanczos
from fallline.core.registry import register
from fallline.core.space import Integers, LogUniform, Range
from fallline.optim.engine.hyperparameters import check_positive
from fallline.optim.engine.optimizer import EngineOptions
from fallline.optim.engine.parts import DecoupledDecay, Gradient
from fallline.optim.whole_batch import WholeBatch, WholeBatchOptimizer, differentiated, together

GRID = tuple(10.0**i for i in range(-6, 2))
LARGER = 10


@register("saddle-free-newton")
class SaddleFreeNewton(WholeBatchOptimizer):
    """θ ← θ − η V (|Ĥ| + λ I)⁻¹ Vᵀ g in the Krylov space V of the gradient, λ the best of a grid; no step raises the batch's loss.

    Needs curvature: ``opt.step(objective(x, y))``; gradient, Hessian and all trials are of the same samples and masks. One step costs
    two gradients, ``krylov`` + 1 Hessian-vector products and a value for every λ, and holds ``krylov`` + 1 vectors of the parameters'
    size. What is orthogonal to V stays as it is; V begins at g, so that nothing of g is lost.

    Parameters
    ----------
    params : iterable of Tensor or dict
    lr : float, default 1
        η, within the trials too. A group with 0 rests, and has no part in the curvature.
    krylov : int or None, default 50
        k; the authors take 500 for a deep autoencoder. None takes the whole space by a dense Hessian, for a few hundred parameters.
    damping_grid : sequence of float, default 1e-6, 1e-5, …, 10
        λ. Where none of them lowers the loss the largest grows, ten times by a factor of 10, until one does; then no step is taken.
    inner_steps : int, default 1
        Steps in one space with one Ĥ, each with a gradient of its own.
    weight_decay : float, default 0
        Decoupled, of the step that is taken and not of the trials. The paper has none.
    **options
        ``nonfinite``, ``maximize`` of the engine.

    Notes
    -----
    At an exact saddle the gradient is 0, in the directions of negative curvature it may be, and no step is taken along what has no
    gradient: perturb the weights there. |Ĥ| is that of the projection and not the projection of |H|. A batch's Hessian is noisy: take
    batches as large as for Newton's method.
    """

    space: ClassVar[Mapping[str, Range]] = {"lr": LogUniform(0.1, 1.0), "krylov": Integers(5, 200, log=True)}
    derivatives: ClassVar[int] = 2
    need: ClassVar[str] = "the Hessian"

    def __init__(self, params: Any, lr: float = 1.0, krylov: int | None = 50, damping_grid: Sequence[float] = GRID,
                 inner_steps: int = 1, weight_decay: float = 0.0, **options: Unpack[EngineOptions]) -> None:
        for name, value in (("krylov", 1 if krylov is None else krylov), ("inner_steps", inner_steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1{', or None' if name == 'krylov' else ''}, got {value!r}")
        for lam in damping_grid:
            check_positive("damping_grid", lam, "1e-6 to 10 is typical")
        if not len(damping_grid):
            raise ValueError("damping_grid must hold at least one number above 0, got none")
        self.krylov, self.damping_grid, self.inner_steps = krylov, tuple(sorted(float(x) for x in damping_grid)), inner_steps
        super().__init__(params, Gradient(), {"lr": lr, "weight_decay": weight_decay}, move=DecoupledDecay(), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ("krylov", "damping_grid", "inner_steps")}}

    def check_group(self, group: Mapping[str, Any]) -> None:
        together(self, group)

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        batch = differentiated(self, closure, "hessian_operator", self.need)
        if batch is None:
            return None
        if batch.finite:
            with torch.no_grad(), batch.left_out():
                step = self._step(batch)
                batch.take(step, previous_step=step)
        return batch.loss

    def _step(self, batch: WholeBatch) -> Tensor:
        gradient, value = batch.gradient, batch.value()
        step = torch.zeros_like(gradient)
        if not gradient.any():
            return step
        space = Subspace(batch.hessian(), gradient, self.krylov, batch.kept("previous_step"))
        for _ in range(self.inner_steps):
            trials = ((lam, step - space.step(gradient, lam)) for lam in self.damping_grid)
            found = [(tried, trial) for _, trial in trials if (tried := batch.value_after(trial)) < value]
            lam = self.damping_grid[-1]
            while not found and lam < 10.0**LARGER * self.damping_grid[-1]:
                lam *= 10
                trial = step - space.step(gradient, lam)
                tried = batch.value_after(trial)
                found = [(tried, trial)] if tried < value else []
            if not found:
                break
            value, step = min(found, key=lambda each: each[0])
            if self.inner_steps > 1:
                gradient = batch.gradient_after(step)
        return step


class Subspace:
    """The Hessian on a Krylov space, decomposed once for all damping."""

    def __init__(self, hessian: LinearOperator, gradient: Tensor, krylov: int | None, previous: Tensor | None) -> None:
        self.basis: Tensor | None = None
        if krylov is None:
            self.matrix = hessian.to_dense()
        else:
            found = lanczos(hessian, min(krylov, len(gradient)), start=gradient)
            self.basis, self.matrix = found.basis, found.tridiagonal
            if previous is not None and previous.any():
                self._append(hessian, previous / torch.linalg.vector_norm(previous))
        if not self.matrix.isfinite().all():
            raise NonFiniteError('SaddleFreeNewton met curvature that is not finite; lower lr, or pass nonfinite="skip"')
        self._values, self._vectors = torch.linalg.eigh(symmetric(self.matrix))

    def _append(self, hessian: LinearOperator, v: Tensor) -> None:
        """Take in one more vector, unless it is in the space already."""
        assert self.basis is not None
        for _ in range(2):
            v = v - self.basis @ (self.basis.mT @ v)
        size = torch.linalg.vector_norm(v)
        if float(size) <= math.sqrt(torch.finfo(v.dtype).eps):
            return
        v = v / size
        product = hessian.matvec(v)
        self.basis, before = torch.cat([self.basis, v.unsqueeze(1)], 1), self.matrix
        column = self.basis.mT @ product
        self.matrix = torch.cat([torch.cat([before, column[:-1].unsqueeze(0)]), column.unsqueeze(1)], 1)

    def step(self, gradient: Tensor, lam: float) -> Tensor:
        """−V (|Ĥ| + λ I)⁻¹ Vᵀ g."""
        inside = gradient if self.basis is None else self.basis.mT @ gradient
        found = _absolute_step(self._values, self._vectors, inside, lam)
        return found if self.basis is None else self.basis @ found


def _absolute_step(values: Tensor, vectors: Tensor, gradient: Tensor, lam: float) -> Tensor:
    return -(vectors @ ((vectors.mT @ gradient) / (values.abs() + lam)))


def abs_hessian_step(H: Tensor, g: Tensor, lam: float = 0.0) -> Tensor:
    """Return −(|H| + λ I)⁻¹ g, with |H| = U |Λ| Uᵀ for H = U Λ Uᵀ.

    Parameters
    ----------
    H : Tensor, shape (n, n)
        Symmetric.
    g : Tensor, shape (n,)
    lam : float, default 0
        λ ≥ 0; above 0 where H may be singular.

    Raises
    ------
    ValueError
        The shapes do not fit, or λ is negative.
    """
    if H.ndim != 2 or H.shape[0] != H.shape[1] or g.shape != H.shape[:1]:
        raise ValueError(f"H must be a square matrix and g a vector of its size, got shapes {tuple(H.shape)} and {tuple(g.shape)}")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be a finite number >= 0, got {lam}")
    values, vectors = torch.linalg.eigh(symmetric(H))
    return _absolute_step(values, vectors, g, lam)
