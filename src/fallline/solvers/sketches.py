"""Randomised row methods for K z = r with a symmetric K: every step solves a sketch of the system, nearest to z.

    z ← argmin ‖z' − z‖  subject to  Sᵀ K z' = Sᵀ r
    Kaczmarz   S one unit vector:      z ← z + K_i (r_i − K_iᵀz)/‖K_i‖²
    Gaussian   S one normal vector s:  z ← z + Ks sᵀ(r − Kz)/‖Ks‖²
    block      S an eighth of the unit vectors

Expected convergence is linear, at a rate that falls with the condition number.

Source: R. M. Gower, P. Richtárik, SIAM J. Matrix Anal. Appl. 36 (2015) 1660.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Sweep = Callable[[np.ndarray, np.ndarray, np.ndarray, int, np.random.Generator], None]


def _kaczmarz(K: np.ndarray, r: np.ndarray, z: np.ndarray, steps: int, rng: np.random.Generator) -> None:
    squares = np.einsum("ij,ij->i", K, K)
    for i in rng.integers(len(r), size=steps):
        row = K[i]
        z += ((r[i] - row @ z) / squares[i]) * row


def _gaussian(K: np.ndarray, r: np.ndarray, z: np.ndarray, steps: int, rng: np.random.Generator) -> None:
    normals = rng.standard_normal((steps, len(r)))
    rows, sides = normals @ K, normals @ r
    for row, side in zip(rows, sides, strict=True):
        z += ((side - row @ z) / (row @ row)) * row


def _block(K: np.ndarray, r: np.ndarray, z: np.ndarray, steps: int, rng: np.random.Generator) -> None:
    size = max(1, len(r) // 8)
    for _ in range(steps):
        chosen = rng.choice(len(r), size=size, replace=False)
        rows = K[chosen]
        z += np.linalg.lstsq(rows, r[chosen] - rows @ z, rcond=None)[0]


SKETCHES: dict[str, Sweep] = {"kaczmarz": _kaczmarz, "gaussian": _gaussian, "block": _block}


def sketched_solve(K: Tensor, r: Tensor, z: Tensor, sketch: str, tolerance: float, max_steps: int,
                   rng: np.random.Generator) -> tuple[Tensor, int]:
    """Go on from z until ‖Kz − r‖ ≤ tolerance or the steps run out; return z and the steps taken.

    Parameters
    ----------
    K : Tensor (N, N)
        Symmetric, without a row of zeros.
    r, z : Tensor (N,)
    sketch : {"kaczmarz", "gaussian", "block"}
    tolerance : float
        Checked after every N steps (a block counts for its rows), on the residual itself.
    max_steps : int
    rng : numpy Generator
    """
    matrix, right, found = (t.detach().double().cpu().numpy() for t in (K, r, z))
    found = found.copy()
    chunk = len(right) if sketch != "block" else 8
    taken = 0
    while taken < max_steps and np.linalg.norm(matrix @ found - right) > tolerance:
        steps = min(chunk, max_steps - taken)
        SKETCHES[sketch](matrix, right, found, steps, rng)
        taken += steps
    return torch.as_tensor(found, dtype=z.dtype, device=z.device), taken
