"""The eigenvalues of a loss's Hessian and of its Gauss-Newton part.

    ∇²L = Jᵀ H J + Σ_i (∂ℓ/∂f_i) ∇²f_i,      J = ∂f/∂θ,  H = ∂²ℓ/∂f²

for outputs f and loss ℓ(f). The first term, Gauss-Newton, is positive semi-definite for a convex ℓ, has rank at most the
number of outputs, and makes the few large eigenvalues; the second fades as a squared error does. More parameters lengthen
the bulk of eigenvalues near zero, the data move the large ones.

Sagun, Evci, Güney, Dauphin, Bottou: Empirical Analysis of the Hessian of Over-Parametrized Neural Networks,
ICLR workshop 2018, arXiv 1706.04454.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fallline.core import tree
from fallline.core.curvature import GaussNewton
from fallline.core.errors import MissingOracle
from fallline.core.keys import Key, as_key
from fallline.core.operators import LinearOperator, SpectralDensity, spectral_density, top_eigenvalues
from fallline.core.problem import Problem
from fallline.core.tree import Tree
from fallline.landscape.evaluation import evaluation
from fallline.landscape.spectrum import Spectrum

DENSE_LIMIT, ENDS = 5_000, 10
DENSITY_STEPS, DENSITY_SAMPLES = 80, 10


def hessian_spectrum(problem: Problem, x: Tree | None = None, *, k: int | None = None, density: bool = False,
                     key: Key | int = 0) -> Spectrum:
    """Return eigenvalues of ∇²f(x).

    Up to 5,000 variables all of them, from the dense Hessian; beyond, the ``k`` largest and ``k`` smallest by Lanczos with full
    re-orthogonalisation, each product one backward pass through a backward pass that is kept.

    Parameters
    ----------
    problem : Problem
        ``Training`` (all training data), ``Objective(model, loss)(inputs, targets)``, or anything with ``hessian`` and ``hvp``.
        A model is evaluated in evaluation mode and put back as it was: running batch-norm statistics, no dropout.
    x : tree, optional
        The point, in float32 or float64; by default ``problem.x0``, the model's own weights. Buffers beside the parameters,
        as a training result has them, are ignored: load them into the model.
    k : int, optional
        How many at each end; asks for Lanczos whatever the size, unless 2k is at least the size. Default 10 if Lanczos is needed.
    density : bool, default False
        Also the distribution of all eigenvalues: from the eigenvalues if all are there, else by stochastic Lanczos
        quadrature with 10 random starts of 80 steps.
    key : Key or int, default 0
        Of Lanczos' start vectors.

    Notes
    -----
    The scale is that of the loss: a sum over data has eigenvalues as many times larger than a mean. The second term of a ReLU
    network's Hessian vanishes almost everywhere inside a layer.
    """
    with evaluation(problem, x) as (realisation, point):
        realisation.require("hvp", by="hessian_spectrum")
        return _spectrum("Hessian", tree.size(point), lambda: realisation.hessian(point),
                         lambda: realisation.hessian_operator(point), k, density, as_key(key))


def gauss_newton_spectrum(problem: Problem, x: Tree | None = None, *, k: int | None = None, density: bool = False,
                          key: Key | int = 0) -> Spectrum:
    """Return eigenvalues of the Gauss-Newton matrix Jᵀ H J of a model.

    Parameters as for ``hessian_spectrum``; products are reverse passes through the model linearised once.

    Raises
    ------
    MissingOracle
        The problem has no model whose outputs could be differentiated.
    """
    with evaluation(problem, x) as (realisation, point):
        if not hasattr(realisation, "outputs"):
            raise MissingOracle(f"the Gauss-Newton matrix needs a model's outputs, which the {problem.kind} problem "
                                f"{problem.name!r} does not have; pass Training, or Objective(model, loss)(inputs, targets)")
        model = GaussNewton(realisation, point)
        return _spectrum("Gauss-Newton", model.size, model.to_dense, lambda: model.operator, k, density, as_key(key))


def _spectrum(matrix: str, size: int, dense: Callable[[], Tensor], make: Callable[[], LinearOperator], k: int | None, density: bool,
              key: Key) -> Spectrum:
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size):
        raise ValueError(f"k must be a whole number between 1 and the {size} variables, got {k!r}")
    if (k is None and size <= DENSE_LIMIT) or (k is not None and 2 * k >= size):
        values = torch.linalg.eigvalsh(_symmetric(dense())).flip(0)
        exact = SpectralDensity(values.flip(0), torch.full_like(values, 1 / size), size, 0) if density else None
        return Spectrum(values, size, True, True, exact, matrix)
    operator = make()
    # Residuals of a few roundings cannot be had; those of eigenvectors this good leave eigenvalues good to rounding.
    tol = torch.finfo(operator.dtype).eps ** (2 / 3)
    ends = [top_eigenvalues(operator, k or ENDS, which=which, tol=tol, generator=key.fold(which).generator())
            for which in ("largest", "smallest")]
    values = torch.cat([ends[0].values, ends[1].values.flip(0)])
    estimate = spectral_density(operator, min(DENSITY_STEPS, size), DENSITY_SAMPLES, key.fold("density").generator()) \
        if density else None
    return Spectrum(values, size, False, all(end.converged for end in ends), estimate, matrix)


def _symmetric(A: Tensor) -> Tensor:
    if not bool(torch.isfinite(A).all()):
        raise ValueError("the matrix has NaN or infinite entries at x; give a point where the loss is finite and smooth")
    return (A + A.T) / 2
