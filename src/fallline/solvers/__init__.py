"""You have an objective: smooth, composite, finite-sum, constrained. Newton's family, model-based and
normalised descent.

``solvers.descent`` has the parts that Newton-type methods are composed of.
"""

from fallline.solvers import descent
from fallline.solvers.accelerated_cubic import AcceleratedCubic
from fallline.solvers.damped_newton import AICN, AffineInvariantCubicSize, DampedNewton, DampedSearch, RootNewton, RootSize
from fallline.solvers.descent import Minimizer
from fallline.solvers.generalized_smooth import BetaGD, GrowthExponent, NormalizedSPIDER, estimate_alpha
from fallline.solvers.gradient_normalized import GradRegNewton, gns_radius
from fallline.solvers.lazy_newton import LazyCubicNewton, LazyNewton
from fallline.solvers.model_based import Clipped, Model, ProxLinear, ProxPoint, StochasticModel, Subgradient, moreau_grad_norm
from fallline.solvers.polynomial_preconditioning import (
    Constant,
    KrylovGD,
    KrylovStep,
    PolynomialStep,
    PreconditionedFGM,
    PreconditionedGD,
    SymmetricPolyPrecond,
)
from fallline.solvers.trust_region import TrustRegionCG, TrustRegionNewton

__all__ = [
    "AICN", "AcceleratedCubic", "AffineInvariantCubicSize", "BetaGD", "Clipped", "Constant", "DampedNewton", "DampedSearch",
    "GradRegNewton", "GrowthExponent", "KrylovGD", "KrylovStep", "LazyCubicNewton", "LazyNewton", "Minimizer", "Model",
    "NormalizedSPIDER", "PolynomialStep", "PreconditionedFGM", "PreconditionedGD", "ProxLinear", "ProxPoint", "RootNewton", "RootSize",
    "StochasticModel", "Subgradient", "SymmetricPolyPrecond", "TrustRegionCG", "TrustRegionNewton", "descent", "estimate_alpha",
    "gns_radius", "moreau_grad_norm",
]
