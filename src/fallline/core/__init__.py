"""The four nouns (Problem, Method, Result, and the claims built on them), the driver, and what two rooms share."""

from fallline.core.budget import Budget
from fallline.core.composite_loss import CompositeLoss
from fallline.core.constrained_training import ConstrainedTraining
from fallline.core.constructors import Bilevel, BlackBox, Composite, Constrained, FiniteSum, LinearSystem, Saddle, Smooth
from fallline.core.counts import Counts
from fallline.core.driver import Moment, solve
from fallline.core.errors import CheckpointError, FalllineError, MissingOracle, NonFiniteError, UnknownName, WrongProblem
from fallline.core.fixed_point import FixedPoint
from fallline.core.fractional import Fractional
from fallline.core.keys import Key
from fallline.core.least_squares import LeastSquares
from fallline.core.linear_model import LinearModel
from fallline.core.method import AskTell, Fitted, Method, Report, Train
from fallline.core.minimize import minimize
from fallline.core.objective import ModelProblem, Objective, Training
from fallline.core.problem import Problem
from fallline.core.quadratic import Quadratic
from fallline.core.registry import register
from fallline.core.result import Result
from fallline.core.space import Choice, Integers, LogUniform, Uniform

__all__ = [
    "AskTell", "Bilevel", "BlackBox", "Budget", "CheckpointError", "Choice", "Composite", "CompositeLoss", "Constrained",
    "ConstrainedTraining", "Counts", "FalllineError", "FiniteSum", "Fitted", "FixedPoint", "Fractional", "Integers", "Key",
    "LeastSquares", "LinearModel", "LinearSystem", "LogUniform", "Method", "MissingOracle", "ModelProblem", "Moment",
    "NonFiniteError", "Objective", "Problem", "Quadratic", "Report", "Result", "Saddle", "Smooth", "Train", "Training", "Uniform",
    "UnknownName", "WrongProblem", "minimize", "register", "solve",
]
