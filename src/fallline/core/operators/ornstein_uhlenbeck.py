"""A x = b as the mean of a stochastic process: an analog device's way to solve it, simulated.

    dx = −(A x − b) ds + √(2/β) dW,    x(s) → N(A⁻¹ b, β⁻¹ A⁻¹),    E x(s) = A⁻¹ b + e^{−A s} (x(0) − A⁻¹ b)

for A symmetric positive definite, by Euler and Maruyama: x ← x − h (A x − b) + √(2 h/β) ξ, ξ ~ N(0, I). An electrical circuit runs
through the process by itself, whatever the size of A; a digital computer pays a product with A for every h.

Aifer, Donatella, Hunter Gordon, Duffield, Ahle, Simpson, Crooks, Coles: Thermodynamic Linear Algebra, arXiv 2308.05660.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.keys import normal_like
from fallline.core.operators.linear import LinearOperator, square_size
from fallline.core.operators.spectra import Tridiagonalization, lanczos

__all__ = ["OUSolution", "OUSolver"]

GUARD_PRODUCTS = 8


@dataclass(frozen=True)
class OUSolution:
    """Where a run of the process ended.

    Attributes
    ----------
    solution : Tensor or tree
        x at the end, or its mean over the run, shaped as b.
    last : Tensor or tree
        x at the end, from where another run goes on.
    analog_time : float
        How long the device ran, in units of the inverse of A.
    steps : int
        Steps of the simulation.
    dt : float
        Their length.
    matvecs : int
        Products with A that the simulation took, those of the guard included: the digital cost, which a device would not have.
    """

    solution: Any
    last: Any
    analog_time: float
    steps: int
    dt: float
    matvecs: int

    def __repr__(self) -> str:
        return f"OUSolution(analog_time={self.analog_time:g}, steps={self.steps}, dt={self.dt:.3g}, matvecs={self.matvecs})"


class OUSolver:
    """The process dx = −((A + λ I) x − b) ds + √(2/β) dW.

    Parameters
    ----------
    operator : LinearOperator, shape (n, n), or function
        A, symmetric positive semi-definite; or the function v ↦ A v on vectors shaped as b.
    b : Tensor of shape (n,), or a tree of n entries
    damp : float, default 0
        λ ≥ 0. A + λ I has to be positive definite: a singular A needs λ > 0.
    dt : float, default 0.1
        The longest step. It is shortened to 1/λ_max, which eight steps of Lanczos estimate at the first run: the simulation is stable
        below 2/λ_max, and up to 1/λ_max no mode of the error changes sign. The simulated covariance is β⁻¹ A⁻¹ (I − h A / 2)⁻¹: at
        h = 0.1/λ_max too large by a twentieth in the stiffest direction, at the longest step by a factor of two there.
    beta_inv : float, default 0
        1/β, the noise.

    Examples
    --------
    >>> A = LinearOperator.from_tensor(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    >>> OUSolver(A, torch.ones(2)).run(20.0).solution
    tensor([0.5000, 0.2500])
    """

    def __init__(self, operator: LinearOperator | Callable[[Any], Any], b: tree.Tree, damp: float = 0.0, *, dt: float = 0.1,
                 beta_inv: float = 0.0) -> None:
        if not isinstance(operator, LinearOperator):
            operator = LinearOperator.from_function(operator, b, adjoint=operator)
        n = square_size(operator, "OUSolver")
        if tree.size(b) != n:
            raise ValueError(f"b must have {n} entries for {operator!r}, got {tree.size(b)}")
        for name, value in (("damp", damp), ("beta_inv", beta_inv)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if not (math.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be a finite number > 0, got {dt}; it is shortened where A needs it")
        self.operator = operator.shifted(damp) if damp else operator
        self.b, self.damp, self.dt, self.beta_inv = b, damp, dt, beta_inv

    @functools.cached_property
    def _guard(self) -> Tridiagonalization:
        return lanczos(self.operator, min(GUARD_PRODUCTS, self.operator.shape[0]), generator=torch.Generator().manual_seed(0))

    @functools.cached_property
    def largest(self) -> float:
        """λ_max of A + λ I, from below and to a few per cent: twice as much would still be stable."""
        value = float(torch.linalg.eigvalsh(self._guard.tridiagonal)[-1])
        if not value > 0:
            raise ValueError(f"A + damp I must be positive definite, and its largest eigenvalue is {value:.3g}")
        return value

    def run(self, t: float, x0: tree.Tree | None = None, *, generator: torch.Generator | None = None,
            average: bool = False) -> OUSolution:
        """Let the process run for the time ``t``.

        Parameters
        ----------
        t : float
            At least 0; the steps are all of one length.
        x0 : like b, optional
            Where it starts, 0 by default.
        generator : torch.Generator
            Of the noise, where ``beta_inv`` is not 0.
        average : bool, default False
            Return the mean of x over the run, which noise moves less, in the place of its end.
        """
        if not (math.isfinite(t) and t >= 0):
            raise ValueError(f"t must be a finite number >= 0, got {t}")
        if (generator is None) == (self.beta_inv > 0):
            raise ValueError("generator must be given where beta_inv is above 0, and only there, got "
                             f"generator={generator!r} with beta_inv={self.beta_inv}")
        if x0 is not None and tree.size(x0) != tree.size(self.b):
            raise ValueError(f"x0 must have {tree.size(self.b)} entries, got {tree.size(x0)}")
        b = tree.flatten(self.b).to(self.operator.dtype)
        x = torch.zeros_like(b) if x0 is None else tree.flatten(x0).to(b)
        known = "_guard" in self.__dict__
        steps = math.ceil(t / min(self.dt, 1 / self.largest) - 1e-9) if t else 0
        h = t / steps if steps else 0.0
        total = torch.zeros_like(x) if average and steps else None
        for _ in range(steps):
            x = x - h * (self.operator.matvec(x) - b)
            if generator is not None:
                x = x + math.sqrt(2 * h * self.beta_inv) * normal_like(x, generator)
            if total is not None:
                total += x
        shaped = lambda v: v if isinstance(self.b, Tensor) and self.b.ndim == 1 else tree.unflatten(v, self.b)
        spent = steps + (0 if known or not steps else self._guard.iterations)
        return OUSolution(shaped(x if total is None else total / steps), shaped(x), float(t), steps, h, spent)

    def __repr__(self) -> str:
        return f"OUSolver({self.operator!r}, damp={self.damp:g}, dt={self.dt:g}, beta_inv={self.beta_inv:g})"
