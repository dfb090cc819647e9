"""You have Ax = b, a root or a fixed point: iterations of a map, functions of matrices.

Functions of matrices take batches, work on every device, and compute half precisions in float32. Which method is accurate and fast
for which matrices is measured in `docs/matrix-functions.md`.
"""

from fallline.core.linalg import (
    bjorck,
    cholesky_orthonormalize,
    inv_sqrtm,
    inverse_pth_root,
    inverse_root,
    newton_schulz,
    orthonormalize,
    solve_lyapunov,
    sqrtm,
)
from fallline.equations.fixed_points import Displacement, Halpern, Picard
from fallline.equations.parallel_networks import gumbel_argmax, parallel_layers, parallel_rnn, parallel_sample
from fallline.equations.parallel_solve import parallel_solve

__all__ = [
    "Displacement", "Halpern", "Picard", "bjorck", "cholesky_orthonormalize", "gumbel_argmax", "inv_sqrtm", "inverse_pth_root",
    "inverse_root", "newton_schulz", "orthonormalize", "parallel_layers", "parallel_rnn", "parallel_sample", "parallel_solve",
    "solve_lyapunov", "sqrtm",
]
