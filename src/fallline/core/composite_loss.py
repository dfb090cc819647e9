"""Losses that are a simple nonsmooth function of smooth residuals, and so weakly convex.

    f(x) = (1/n) Σ h(c(x; data_i)),   h(c) = max_{u ∈ U} ⟨u, c⟩

    "abs", "l1"   Σ_j |c_j|          U = [−1, 1]^k
    "hinge"       Σ_j max(c_j, 0)    U = [0, 1]^k
    "max"         max_j c_j          U = {u ≥ 0, Σ_j u_j = 1}

Davis, Drusvyatskiy: Stochastic model-based minimization of weakly convex functions, SIAM J. Optim. 2019, arXiv 1803.06523.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.samples import batch_indices, data_tuple
from fallline.core.tree import Tree


@dataclass(frozen=True)
class Outer:
    """h(c) = max ⟨u, c⟩ over ``low`` ≤ u_j ≤ ``high``, with Σ_j u_j = 1 if ``sums``."""

    low: float
    high: float
    sums: bool = False

    def __call__(self, residuals: Tensor) -> Tensor:
        """Return the mean of h over the rows of ``residuals`` (n,) or (n, …), a 0-d tensor."""
        rows = residuals.reshape(len(residuals), -1)
        if self.sums:
            return rows.amax(1).mean()
        return torch.maximum(self.low * rows, self.high * rows).sum(1).mean()


OUTERS = {"abs": Outer(-1, 1), "l1": Outer(-1, 1), "hinge": Outer(0, 1), "max": Outer(0, 1, sums=True)}


def CompositeLoss(
    outer: str,
    inner: Callable[..., Tensor],
    data: Tensor | Sequence[Tensor],
    x0: Tree,
    *,
    batch_size: int = 1,
    proximal_point: Callable[..., Tree] | None = None,
    **options: Any,
) -> Problem:
    """min (1/n) Σ h(c(x; data_i)): a finite sum that knows its residuals c and their Jacobian.

    Beside value, (sub)gradient and mini-batches of a ``FiniteSum`` it offers ``linearization(x)``, the residuals (k,) of all rows and
    their Jacobian (k, number of variables), and ``problem.outer``.

    Parameters
    ----------
    outer : {"abs", "l1", "hinge", "max"}
        h, over the residuals of one row; "abs" and "l1" are one.
    inner : callable ``(x, *batch) -> tensor (rows,) or (rows, …)``
        c, differentiable: the residuals of every row of a batch.
    data : tensor or tuple of tensors
        Each with n rows.
    x0 : tensor or nested tensors
    batch_size : int, default 1
        What ``draw`` takes when not told otherwise.
    proximal_point : callable ``(x, step, *row) -> tree``, optional
        argmin_y h(c(y; row)) + ‖y − x‖² / (2 step) for one row, where there is a closed form; offered by samples of one row.
    **options
        ``name``, ``facts``, ``budget``, ``observer``, ``metric`` of ``Problem``. The fact ``weak_convexity`` is ρ with
        f + ρ/2 ‖x‖² convex.

    Raises
    ------
    ValueError
        ``outer`` is none of these, the data do not fit, or ``inner`` does not return one or more residuals for every row.
    """
    if outer not in OUTERS:
        raise ValueError(f"outer must be one of {', '.join(map(repr, OUTERS))}, got {outer!r}")
    h, tensors = OUTERS[outer], data_tuple(data)
    n = len(tensors[0])
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be between 1 and the {n} data points, got {batch_size}")

    def residuals(x: Tree, rows: tuple[Tensor, ...]) -> Tensor:
        c = inner(x, *rows)
        if c.ndim == 0 or len(c) != len(rows[0]):
            raise ValueError(f"inner must return a row of residuals for each of {len(rows[0])} data points, got shape {tuple(c.shape)}")
        return c

    def over(rows: tuple[Tensor, ...]) -> dict[str, Callable[..., Any]]:
        def linearization(x: Tree) -> tuple[Tensor, Tensor]:
            def flat(v: Tensor) -> tuple[Tensor, Tensor]:
                c = residuals(tree.unflatten(v, x), rows).reshape(-1)
                return c, c

            jacobian, c = torch.func.jacrev(flat, has_aux=True)(tree.flatten(x).detach())
            return c.detach(), jacobian.detach()

        oracles: dict[str, Callable[..., Any]] = {"value": lambda x: h(residuals(x, rows)), "linearization": linearization}
        if proximal_point is not None and len(rows[0]) == 1:
            oracles["proximal_point"] = lambda x, step: proximal_point(x, step, *(r[0] for r in rows))
        return oracles

    def sample(problem: Problem, key: Key, size: int | None, indices: Tensor | None, at: Tree | None) -> Problem:
        chosen = batch_indices(n, key, size, indices, batch_size)
        rows = tuple(t[chosen.to(t.device)] for t in tensors)
        return Problem(problem.x0, over(rows), kind=problem.kind, name=problem.name, samples=len(chosen), given={"outer": h})

    return Problem(x0, over(tensors), **{"kind": "finite-sum", "samples": n, "parts": n, **options, "sampler": sample,
                                         "given": {"outer": h}})
