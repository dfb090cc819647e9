"""You have an objective: smooth, composite, finite-sum, constrained. Newton's family, block coordinates, model-based and
normalised descent."""

from fallline.solvers.block_coordinate import ActiveSet, BlockCD
from fallline.solvers.cyclic_blocks import CyclicBlocks, CyclicBlockVR
from fallline.solvers.fractional_cd import FractionalCD
from fallline.solvers.generalized_smooth import BetaGD, GrowthExponent, NormalizedSPIDER, estimate_alpha
from fallline.solvers.lazy_newton import LazyCubicNewton, LazyNewton
from fallline.solvers.model_based import Clipped, Model, ProxLinear, ProxPoint, StochasticModel, Subgradient, moreau_grad_norm

__all__ = [
    "ActiveSet", "BetaGD", "BlockCD", "Clipped", "CyclicBlockVR", "CyclicBlocks", "FractionalCD", "GrowthExponent", "LazyCubicNewton",
    "LazyNewton", "Model", "NormalizedSPIDER", "ProxLinear", "ProxPoint", "StochasticModel", "Subgradient", "estimate_alpha",
    "moreau_grad_norm",
]
