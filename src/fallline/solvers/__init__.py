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
from fallline.solvers.segment_steps import BacktrackingStep, LineSearchStep, MonotoneStep, OpenLoopStep, SegmentStep

__all__ = [
    "AwayFrankWolfe", "BacktrackingStep", "BetaGD", "Clipped", "FrankWolfe", "FrankWolfeGap", "GinzburgLandau", "GraphLabels",
    "GrowthExponent", "LazyCubicNewton", "LazyNewton", "LineSearchStep", "Model", "MomentumSplitting", "MonotoneStep", "NonconvexAG",
    "NonconvexAcceleratedGradient", "NormalizedSPIDER", "OpenLoopStep", "ProxLinear", "ProxPoint", "RegularizationPath", "SegmentStep",
    "StochasticModel", "Subgradient", "estimate_alpha", "graph_ssl", "moreau_grad_norm", "neighbor_laplacian", "plot_phases",
]
