"""The training engine: how an update rule, written once on plain tensors, becomes a torch optimizer.

A rule is a sentence ``move(p, -step_size * direction(gradient))`` with its state kept by a storage. The engine packs,
stacks, compiles and shards; rules do none of it.
"""

from .hyperparameters import CHECKS, check
from .optimizer import EngineOptions, Optimizer
from .parts import Add, Average, Coefficients, DecoupledDecay, Direction, Displace, Gradient, Move, StepSize
from .quantizer import dynamic_map
from .reduction import reduce
from .roles import roles
from .state import State, like
from .storage import BFloat16, Blockwise8bit, Storage

__all__ = [
    "CHECKS",
    "Add",
    "Average",
    "BFloat16",
    "Blockwise8bit",
    "Coefficients",
    "DecoupledDecay",
    "Direction",
    "Displace",
    "EngineOptions",
    "Gradient",
    "Move",
    "Optimizer",
    "State",
    "StepSize",
    "Storage",
    "check",
    "dynamic_map",
    "like",
    "reduce",
    "roles",
]
