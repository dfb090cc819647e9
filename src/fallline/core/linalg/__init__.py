"""Dense linear algebra on batches of small matrices: inverse roots, square roots, orthonormal columns.

Half precisions are computed in float32. Which method is accurate and fast for which matrices is measured in
``docs/matrix-functions.md``.
"""

from fallline.core.linalg.lyapunov import solve_lyapunov
from fallline.core.linalg.orthonormal import bjorck, cholesky_orthonormalize, newton_schulz, orthonormalize
from fallline.core.linalg.roots import inverse_pth_root, inverse_root
from fallline.core.linalg.square_roots import inv_sqrtm, sqrtm

__all__ = [
    "bjorck", "cholesky_orthonormalize", "inv_sqrtm", "inverse_pth_root", "inverse_root", "newton_schulz", "orthonormalize",
    "solve_lyapunov", "sqrtm",
]
