"""You have an objective: smooth, composite, finite-sum, constrained. Newton's family, model-based and
normalised descent, Frank-Wolfe, sparse regression, phase fields,
networks under constraints, learned dual bounds,
robust programs in two stages.

``solvers.descent`` has the parts that Newton-type methods are composed of.
"""

from fallline.solvers.accelerated_cubic import AcceleratedCubic
from fallline.solvers.as_optimizer import AsOptimizer
from fallline.solvers.block_coordinate import ActiveSet, BlockCD
from fallline.solvers.conic_families import BoxConic, ConicFamily, MultiKnapsack, ProductionPlanning
from fallline.solvers.cyclic_blocks import CyclicBlocks, CyclicBlockVR
from fallline.solvers.damped_newton import AICN, AffineInvariantCubicSize, DampedNewton, DampedSearch, RootNewton, RootSize
from fallline.solvers.descent.minimizer import Minimizer
from fallline.solvers.dual_ascent import DualAscent, FeasibilityReport
from fallline.solvers.dual_completion import ConicMinimizer, box_bound, envelope_bound
from fallline.solvers.dual_proxy import BoundGaps, DualProxy, dual_lagrangian_learning
from fallline.solvers.feasibility import Feasibility, Separation
from fallline.solvers.fractional_cd import FractionalCD
from fallline.solvers.frank_wolfe import AwayFrankWolfe, FrankWolfe, FrankWolfeGap
from fallline.solvers.generalized_smooth import BetaGD, GrowthExponent, NormalizedSPIDER, estimate_alpha
from fallline.solvers.ginzburg_landau import GinzburgLandau, plot_phases
from fallline.solvers.gradient_normalized import GradRegNewton, gns_radius
from fallline.solvers.graph_ssl import GraphLabels, graph_ssl, neighbor_laplacian
from fallline.solvers.halfspace_tester import Accept, Reject, disagreement_bound, test_and_learn
from fallline.solvers.large_steps import LargeStepGD, LogRegGD, NormalizedLargeStepGD, SeparationTime, separation_time
from fallline.solvers.lazy_newton import LazyCubicNewton, LazyNewton
from fallline.solvers.linear_program import Farkas, LinearProgram
from fallline.solvers.model_based import Clipped, Model, ProxLinear, ProxPoint, StochasticModel, Subgradient, moreau_grad_norm
from fallline.solvers.momentum_splitting import MomentumSplitting
from fallline.solvers.neur2ro import Neur2RO
from fallline.solvers.nonconvex_ag import NonconvexAcceleratedGradient
from fallline.solvers.nonconvex_regression import NonconvexAG, RegularizationPath
from fallline.solvers.polynomial_preconditioning import (
    Constant,
    KrylovGD,
    KrylovStep,
    PolynomialStep,
    PreconditionedFGM,
    PreconditionedGD,
)
from fallline.solvers.segment_steps import BacktrackingStep, LineSearchStep, MonotoneStep, OpenLoopStep, SegmentStep
from fallline.solvers.sketched_sqp import AdaSketchNewton
from fallline.solvers.symmetric_polynomials import SymmetricPolyPrecond
from fallline.solvers.trust_region import TrustRegionCG, TrustRegionNewton
from fallline.solvers.two_stage import RobustKnapsack, RobustSolution, TwoStageFamily, TwoStageInstance, WorstCase, exact_ccg

__all__ = [
    "AICN", "AcceleratedCubic", "Accept", "ActiveSet", "AdaSketchNewton", "AffineInvariantCubicSize", "AsOptimizer",
    "AwayFrankWolfe", "BacktrackingStep", "BetaGD", "BlockCD", "BoundGaps", "BoxConic", "Clipped", "ConicFamily", "ConicMinimizer",
    "Constant", "CyclicBlockVR", "CyclicBlocks", "DampedNewton", "DampedSearch", "DualAscent", "DualProxy", "Farkas", "Feasibility",
    "FeasibilityReport", "FractionalCD", "FrankWolfe", "FrankWolfeGap", "GinzburgLandau", "GradRegNewton", "GraphLabels",
    "GrowthExponent", "KrylovGD", "KrylovStep", "LargeStepGD", "LazyCubicNewton", "LazyNewton", "LineSearchStep", "LinearProgram",
    "LogRegGD", "Minimizer", "Model", "MomentumSplitting", "MonotoneStep", "MultiKnapsack", "Neur2RO", "NonconvexAG",
    "NonconvexAcceleratedGradient", "NormalizedLargeStepGD", "NormalizedSPIDER", "OpenLoopStep", "PolynomialStep",
    "PreconditionedFGM", "PreconditionedGD", "ProductionPlanning", "ProxLinear", "ProxPoint", "RegularizationPath", "Reject",
    "RobustKnapsack", "RobustSolution", "RootNewton", "RootSize", "SegmentStep", "Separation", "SeparationTime", "StochasticModel",
    "Subgradient", "SymmetricPolyPrecond", "TrustRegionCG", "TrustRegionNewton", "TwoStageFamily", "TwoStageInstance", "WorstCase",
    "box_bound", "disagreement_bound", "dual_lagrangian_learning", "envelope_bound", "estimate_alpha", "exact_ccg", "gns_radius",
    "graph_ssl", "moreau_grad_norm", "neighbor_laplacian", "plot_phases", "separation_time", "test_and_learn",
]
