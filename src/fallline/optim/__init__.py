"""You have a network to train: torch optimizers made of parts, and the parts.

A rule is a sentence ``move(p, −step_size · direction(gradient))`` with its state kept by a storage; the engine packs, compiles,
quantises and shards it.
"""

from fallline.optim.adam8bit import Adam8bit, SGDM8bit, StableEmbedding
from fallline.optim.adamw import AdamW
from fallline.optim.advice import Advice, Traits, advise
from fallline.optim.dog import DoG, LDoG, TDoG
from fallline.optim.engine import BFloat16, Blockwise8bit, Direction, Move, Optimizer, StepSize, Storage, like, reduce, roles
from fallline.optim.engine.quantized import Quantized
from fallline.optim.frugal import Frugal, GaLore
from fallline.optim.lion import Lion, lion_from_adamw
from fallline.optim.noise import GradientNoise, GradientNoiseReport, add_annealed_noise, gradient_noise_report
from fallline.optim.shampoo import Shampoo
from fallline.optim.sophia import Sophia
from fallline.optim.step_sizes import DistanceOverGradients, PolynomialAverage
from fallline.optim.survey import SGD, Adadelta, Adagrad, Adam, AdaMax, Momentum, Nadam, Nesterov, RMSprop

__all__ = [
    "SGD", "AdaMax", "Adadelta", "Adagrad", "Adam", "Adam8bit", "AdamW", "Advice", "BFloat16", "Blockwise8bit", "Direction",
    "DistanceOverGradients", "DoG", "Frugal", "GaLore", "GradientNoise", "GradientNoiseReport", "LDoG", "Lion", "Momentum", "Move",
    "Nadam", "Nesterov", "Optimizer", "PolynomialAverage", "Quantized", "RMSprop", "SGDM8bit", "Shampoo", "Sophia", "StableEmbedding",
    "StepSize", "Storage", "TDoG", "Traits", "add_annealed_noise", "advise", "gradient_noise_report", "like", "lion_from_adamw",
    "reduce", "roles",
]
