"""The Lyapunov equation S X + X S = G for a symmetric positive definite S, by the iteration for the matrix sign.

    c = √‖S²‖_F,  B ← S / c,  C ← G / c;
    C ← ½ (3 C − C B² − B² C + B C B),  B ← ½ B (3 I − B²);        B → I,  ½ C → X

Matrix products only. Each step multiplies an eigenvalue b of B by (3 − b²)/2, at most 1.5, until it is near 1 and convergence
quadratic; the smallest starts at about s_min / s_max, so 8 steps serve condition numbers of S up to about 10.

X is also the derivative of the square root: S² = A, dA = G gives dS = X. The equation is self-adjoint, ⟨W, X⟩ = ⟨Y, G⟩ where
S Y + Y S = W, and dX solves it for dG − dS X − X dS; so derivatives of any order are solutions too.

Y. Song, N. Sebe, W. Wang: Fast Differentiable Matrix Square Root, ICLR 2022, arXiv 2201.08663.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fallline.core.checks import check_count
from fallline.core.linalg.batches import at_least_float32, largest_entry, require_square, symmetric


def solve_lyapunov(S: Tensor, G: Tensor, steps: int = 8) -> Tensor:
    """Return the X of S X + X S = G.

    Parameters
    ----------
    S : Tensor, shape (..., n, n)
        Symmetric positive definite: its symmetric part is taken. Half precisions are computed in float32.
    G : Tensor, shape (..., n, n)
        Symmetric: its symmetric part is taken.
    steps : int, default 8
        Steps of the iteration, for all matrices: none is looked at, so nothing waits for a device.

    Returns
    -------
    Tensor, shape (..., n, n), dtype of S
        Symmetric; differentiable in S and G, to any order. Zero where S is zero.

    Raises
    ------
    ValueError
        If S or G is not square, their shapes differ, or steps is not a whole number of at least 1.
    """
    require_square(S, "S")
    if G.shape != S.shape:
        raise ValueError(f"G must have the shape of S, {tuple(S.shape)}, got {tuple(G.shape)}")
    check_count("steps", steps, "8 is typical")
    return Lyapunov.apply(symmetric(at_least_float32(S)), symmetric(at_least_float32(G)), None, None, steps).to(S.dtype)


class Lyapunov(torch.autograd.Function):
    """X of symmetric S and G: from the eigenvectors V and eigenvalues s of S where they are known, else by iteration."""

    generate_vmap_rule = True

    @staticmethod
    def forward(S: Tensor, G: Tensor, V: Tensor | None, s: Tensor | None, steps: int) -> Tensor:
        return _iterated(S, G, steps) if V is None or s is None else _by_eigenvalues(G, V, s)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        S, _, V, s, ctx.steps = inputs
        ctx.save_for_backward(S, V, s, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        S, V, s, X = ctx.saved_tensors
        Y = Lyapunov.apply(S, symmetric(gradients[0]), V, s, ctx.steps)
        XY = X @ Y
        return -(XY + XY.mT), Y, None, None, None


def _iterated(S: Tensor, G: Tensor, steps: int) -> Tensor:
    scale = largest_entry(S)  # S² neither under- nor overflows
    S = S / scale
    square = S @ S
    norm = torch.linalg.matrix_norm(square, keepdim=True)
    present = norm > 0
    norm = torch.where(present, norm, 1.0)
    B, C = S / norm.sqrt(), G / norm.sqrt()
    squared = square / norm
    for step in range(steps):
        # B and C stay symmetric, so C B² is the transpose of B² C: five products a step.
        BC = B @ C
        BBC = B @ BC
        C = 0.5 * (3 * C - BBC - BBC.mT + BC @ B)
        if step < steps - 1:
            B = 1.5 * B - 0.5 * (squared @ B)
            squared = B @ B
    return torch.where(present, C / (2 * scale), 0.0)


def _by_eigenvalues(G: Tensor, V: Tensor, s: Tensor) -> Tensor:
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    rotated = V.mT @ G @ V
    return V @ torch.where(sums > 0, rotated / torch.where(sums > 0, sums, 1.0), 0.0) @ V.mT
