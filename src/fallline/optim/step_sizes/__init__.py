"""How far: multipliers of ``lr`` made of statistics of the whole step, for any direction."""

from fallline.optim.step_sizes.distance import DampedDistanceOverGradients, DistanceOverGradients
from fallline.optim.step_sizes.gradient_norm import AccumulatedGradientNorm, OverGradientNorm
from fallline.optim.step_sizes.line_search import ArmijoSearch
from fallline.optim.step_sizes.polyak import Polyak, PolyakSlackL1, PolyakSlackL2, QuadraticPolyak, TargetLevel

__all__ = ["AccumulatedGradientNorm", "ArmijoSearch", "DampedDistanceOverGradients", "DistanceOverGradients", "OverGradientNorm",
           "Polyak", "PolyakSlackL1", "PolyakSlackL2", "QuadraticPolyak", "TargetLevel"]
