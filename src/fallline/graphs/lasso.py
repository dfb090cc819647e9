"""Many small lassos at once: sweeps of coordinate descent, and the exact solution once the signs are known."""

from __future__ import annotations

import torch
from torch import Tensor

from fallline.core.terms.base import soft_threshold


def lasso(G: Tensor, c: Tensor, lam: float, allowed: Tensor, start: Tensor, rounds: int = 200) -> Tensor:
    """Return argmin over w of ½ wᵀGw − cᵀw + λ‖w‖₁ with w = 0 where not allowed, for B problems, ``(B, d)``.

    A round is a few sweeps of coordinate descent, a coordinate of all problems at a time, and then the solution as if the signs were
    those of the minimum; where it has these signs and satisfies the optimality conditions it is the minimum, and done with.

    Parameters
    ----------
    G : Tensor (d, d) or (B, d, d)
        Positive definite.
    c, allowed, start : Tensor (B, d)
    lam : float
    rounds : int, default 200
        At most.
    """
    w, left = start.clone(), torch.arange(len(start), device=start.device)
    for _ in range(rounds):
        matrices = G[left] if G.ndim == 3 else G.expand(len(left), *G.shape)
        swept = _swept(matrices, c[left], lam, allowed[left], w[left])
        signs = torch.where(allowed[left], swept.sign() if lam else 1.0, 0.0)
        exact = _on_support(matrices, c[left] - lam * signs, signs != 0)
        slopes = (c[left] - (matrices @ exact[:, :, None])[:, :, 0]).abs()
        bound = lam + 1e-9 * c[left].abs().amax(1, keepdim=True)
        right = (((exact.sign() == signs) | (lam == 0)) & ((slopes <= bound) | ~allowed[left])).all(1)
        w[left] = torch.where(right[:, None], exact, swept)
        left = left[~right]
        if not len(left):
            break
    return w


def _swept(G: Tensor, c: Tensor, lam: float, allowed: Tensor, w: Tensor, sweeps: int = 4) -> Tensor:
    w, products = w.clone(), (G @ w[:, :, None])[:, :, 0]
    for k in [*range(G.shape[1])] * sweeps:
        target = soft_threshold(c[:, k] - products[:, k] + G[:, k, k] * w[:, k], lam) / G[:, k, k]
        change = torch.where(allowed[:, k], target - w[:, k], 0)
        w[:, k] += change
        products += change[:, None] * G[:, k]
    return w


def _on_support(G: Tensor, c: Tensor, support: Tensor) -> Tensor:
    """G_SS⁻¹ c_S on each problem's support S, 0 elsewhere."""
    scale = G.diagonal(dim1=1, dim2=2).sqrt()
    scaled = G / (scale[:, :, None] * scale[:, None, :])
    masked = torch.where(support[:, :, None] & support[:, None, :], scaled, torch.eye(G.shape[1]).to(G))
    found: Tensor = torch.linalg.solve_ex(masked, torch.where(support, c / scale, 0))[0]
    return found / scale
