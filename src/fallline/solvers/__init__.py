"""You have an objective: smooth, composite, finite-sum, constrained. Newton's family, model-based and normalised descent; linear
programs and feasibility problems as fixed points, which end with a solution or with a proof that there is none."""

from fallline.solvers.feasibility import Feasibility, Separation
from fallline.solvers.generalized_smooth import BetaGD, GrowthExponent, NormalizedSPIDER, estimate_alpha
from fallline.solvers.lazy_newton import LazyCubicNewton, LazyNewton
from fallline.solvers.linear_program import Farkas, LinearProgram
from fallline.solvers.model_based import Clipped, Model, ProxLinear, ProxPoint, StochasticModel, Subgradient, moreau_grad_norm

__all__ = [
    "BetaGD", "Clipped", "Farkas", "Feasibility", "GrowthExponent", "LazyCubicNewton", "LazyNewton", "LinearProgram", "Model",
    "NormalizedSPIDER", "ProxLinear", "ProxPoint", "Separation", "StochasticModel", "Subgradient", "estimate_alpha", "moreau_grad_norm",
]
