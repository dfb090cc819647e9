"""You have an objective: smooth, composite, finite-sum, constrained. Newton's family, model-based and
normalised descent, Frank-Wolfe, sparse regression, phase fields."""

from fallline.solvers.frank_wolfe import AwayFrankWolfe, FrankWolfe, FrankWolfeGap
from fallline.solvers.generalized_smooth import BetaGD, GrowthExponent, NormalizedSPIDER, estimate_alpha
from fallline.solvers.ginzburg_landau import GinzburgLandau, plot_phases
from fallline.solvers.graph_ssl import GraphLabels, graph_ssl, neighbor_laplacian
from fallline.solvers.lazy_newton import LazyCubicNewton, LazyNewton
from fallline.solvers.model_based import Clipped, Model, ProxLinear, ProxPoint, StochasticModel, Subgradient, moreau_grad_norm
from fallline.solvers.momentum_splitting import MomentumSplitting
from fallline.solvers.nonconvex_ag import NonconvexAcceleratedGradient
from fallline.solvers.nonconvex_regression import NonconvexAG, RegularizationPath
from fallline.solvers.segment_steps import Backtracking, LineSearch, Monotone, OpenLoop, StepSize

__all__ = [
    "AwayFrankWolfe", "Backtracking", "BetaGD", "Clipped", "FrankWolfe", "FrankWolfeGap", "GinzburgLandau", "GraphLabels",
    "GrowthExponent", "LazyCubicNewton", "LazyNewton", "LineSearch", "Model", "MomentumSplitting", "Monotone", "NonconvexAG",
    "NonconvexAcceleratedGradient", "NormalizedSPIDER", "OpenLoop", "ProxLinear", "ProxPoint", "RegularizationPath", "StepSize",
    "StochasticModel", "Subgradient", "estimate_alpha", "graph_ssl", "moreau_grad_norm", "neighbor_laplacian", "plot_phases",
]
