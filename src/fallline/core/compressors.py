"""Compressors: of what workers send each other, and of what is kept.

The k largest entries, by their size; or low rank, one step of a power iteration that all workers share:

    P = mean_w M_w Q;   P̂ = orthonormal columns of P;   Q⁺ = mean_w M_wᵀ P̂;   M̂ = P̂ Q⁺ᵀ ≈ mean_w M_w

M̂ is the same on every worker, and r(n + m) numbers are sent instead of nm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fallline.core.linalg import orthonormalize

Mean = Callable[[Tensor], Tensor]


def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return int32 indices and values of the k entries of a vector that are largest in size; of equal ones, some, so that it is k."""
    if not 1 <= k <= len(x) or len(x) > torch.iinfo(torch.int32).max:
        raise ValueError(f"k must be between 1 and the {len(x)} entries of x, of which there may be 2³¹ − 1, got {k}")
    indices = x.abs().topk(k, sorted=False).indices
    return indices.to(torch.int32), x[indices]


def power_step(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return P̂ ``(n, r)`` with orthonormal columns and Q⁺ ``(m, r)`` with P̂ Q⁺ᵀ ≈ the matrix ``(n, m)``, by a basis ``(m, r)``."""
    left = orthonormalize(matrix @ basis)
    return left, matrix.mT @ left


def mean_together(mean: Mean, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Average many tensors ``(workers here, ...)`` over all workers in one exchange."""
    if not tensors:
        return []
    flat = mean(torch.cat([t.flatten(1) for t in tensors], 1))
    chunks = flat.split([t[0].numel() for t in tensors])
    return [chunk.view(t.shape[1:]) for chunk, t in zip(chunks, tensors, strict=True)]


def low_rank_mean(matrices: Sequence[Tensor], bases: Sequence[Tensor], mean: Mean) -> tuple[list[Tensor], list[Tensor]]:
    """Return rank-r approximations of the means of matrices over all workers, and the bases for the next round.

    Parameters
    ----------
    matrices : sequence of tensors (workers here, n, m)
    bases : sequence of tensors (m, r)
        The same on every worker; last round's, or random ones.
    mean : callable
        Takes ``(workers here, k)`` and returns the mean over all workers everywhere, ``(k,)``; called twice.
    """
    lefts = mean_together(mean, [m @ q for m, q in zip(matrices, bases, strict=True)])
    lefts = [orthonormalize(p) for p in lefts]
    rights = mean_together(mean, [(p.T @ m).mT for m, p in zip(matrices, lefts, strict=True)])
    return [p @ q.T for p, q in zip(lefts, rights, strict=True)], rights
