"""You have Ax = b, a root or a fixed point: Krylov methods and relaxation, learned directions and parameters,
iterations of a map, equations solved in parallel, layers that are fixed points, functions of matrices.

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
from fallline.equations.bandits import ChebCB, TsallisINF
from fallline.equations.direction_networks import DirectionNetwork
from fallline.equations.fixed_points import Displacement, Halpern, Picard
from fallline.equations.graph_solver import CGS, batch_graphs, fixed_point_layer
from fallline.equations.krylov import MINRES, ConjugateGradient
from fallline.equations.learned_directions import DCDM, ritz_rhs, train_dcdm
from fallline.equations.parallel_networks import gumbel_argmax, parallel_layers, parallel_rnn, parallel_sample
from fallline.equations.parallel_solve import parallel_solve
from fallline.equations.relaxation import SOR, Jacobi
from fallline.equations.tuned_solver import TunedSolver, sor_solve

__all__ = [
    "CGS", "DCDM", "MINRES", "SOR", "ChebCB", "ConjugateGradient", "DirectionNetwork", "Displacement", "Halpern", "Jacobi", "Picard",
    "TsallisINF", "TunedSolver", "batch_graphs", "bjorck", "cholesky_orthonormalize", "fixed_point_layer", "gumbel_argmax", "inv_sqrtm",
    "inverse_pth_root", "inverse_root", "newton_schulz", "orthonormalize", "parallel_layers", "parallel_rnn", "parallel_sample",
    "parallel_solve", "ritz_rhs", "solve_lyapunov", "sor_solve", "sqrtm", "train_dcdm",
]
