"""You have a network to train: torch optimizers made of parts, and the parts.

A rule is a sentence ``move(p, −step_size · direction(gradient))`` with its state kept by a storage; the engine packs, compiles,
quantises and shards it.
"""

from fallline.core.fisher_window import FisherWindow, StaticFisher
from fallline.optim.accelerated import AcceleratedSGD, StochasticAGD
from fallline.optim.acceleration import AccelerationAdvice, Growth, acceleration_advice, estimate_growth
from fallline.optim.adabelief import AdaBelief
from fallline.optim.adafisher import AdaFisher, AdaFisherW
from fallline.optim.adagrad_norm import AdaGradNorm
from fallline.optim.adam8bit import Adam8bit, SGDM8bit, StableEmbedding
from fallline.optim.adamomentum import AdaMomentum
from fallline.optim.adamw import AdamW
from fallline.optim.adaptive_batch import AdaptiveBatch
from fallline.optim.ademamix import AdEMAMix
from fallline.optim.advice import Advice, Traits, advise
from fallline.optim.averaging import PolynomialAverage
from fallline.optim.batch_sampler import AdaptiveBatchSampler
from fallline.optim.batch_sizes import GradientMoments, coordinate_test, inner_product_test, norm_test, per_sample_gradients
from fallline.optim.composite import CompositeSMD
from fallline.optim.conditioning import ConditionReport, condition, condition_report, equilibrate, remove_conditioning
from fallline.optim.diffgrad import DiffGrad
from fallline.optim.dion import Dion
from fallline.optim.distributed_shampoo import DistributedShampoo
from fallline.optim.dog import DoG, LDoG, TDoG
from fallline.optim.efcp import SparseGGT, SparseMFAC
from fallline.optim.egn import EGN
from fallline.optim.energy import AEGD, AEPG
from fallline.optim.engine import BFloat16, Blockwise8bit, Direction, Move, Optimizer, StepSize, Storage, like, reduce, roles
from fallline.optim.engine.codebook import QuantizedBlocks, quantize_blockwise
from fallline.optim.engine.quantized import Quantized
from fallline.optim.exadam import EXAdam
from fallline.optim.frugal import Frugal, GaLore
from fallline.optim.generalized_adam import AdamGS, RMSPropGS
from fallline.optim.generalized_smoothness import GeneralizedSmoothness, fit_generalized_smoothness
from fallline.optim.gradient_regularization import GradReg, effective_alpha
from fallline.optim.gravity import Gravity
from fallline.optim.lion import Lion, lion_from_adamw
from fallline.optim.lion_k import LionK, constraint_violation, lion_lyapunov
from fallline.optim.m_fac import MFAC
from fallline.optim.mars import MARS
from fallline.optim.noise import GradientNoise, GradientNoiseReport, add_annealed_noise, gradient_noise_report
from fallline.optim.oasis import OASIS
from fallline.optim.optex import OptEx
from fallline.optim.optimistic_amsgrad import OptAMSGrad, extrapolate
from fallline.optim.polyak import PSPS, SANIA
from fallline.optim.proxy_prox import ProxyProx, WithProxy, estimate_delta
from fallline.optim.psgd import PSGD
from fallline.optim.regression_risk import Risk, RiskReport, asgd_parameters, risk_report
from fallline.optim.riemannian import RiemannianAdagrad, RiemannianAdam
from fallline.optim.saddle_free_newton import SaddleFreeNewton, abs_hessian_step
from fallline.optim.scalable_shampoo import ScalableShampoo
from fallline.optim.schedules import (
    GradNormRecorder,
    LastIterate,
    LinearDecay,
    Schedule,
    Snapshots,
    Tabulated,
    WarmRestarts,
    last_iterate_bound,
    linear_decay,
    refine,
)
from fallline.optim.sgd_sai import GSNRReport, SGDSaI, gsnr_report
from fallline.optim.shampoo import Shampoo
from fallline.optim.shampoo_4bit import Shampoo4bit
from fallline.optim.smb import SMB
from fallline.optim.sophia import Sophia
from fallline.optim.sso import SSO
from fallline.optim.step_sizes import DistanceOverGradients
from fallline.optim.step_time import Device, StepTime, measure_device, step_time
from fallline.optim.survey import SGD, Adadelta, Adagrad, Adam, AdaMax, Momentum, Nadam, Nesterov, RMSprop
from fallline.optim.tngd import TNGD
from fallline.optim.u_dog import UDoG
from fallline.optim.with_step_size import WithStepSize
from fallline.optim.xgrad import XGrad

__all__ = [
    "AEGD",
    "AEPG",
    "EGN",
    "MARS",
    "MFAC",
    "OASIS",
    "PSGD",
    "PSPS",
    "SANIA",
    "SGD",
    "SMB",
    "SSO",
    "TNGD",
    "AcceleratedSGD",
    "AccelerationAdvice",
    "AdEMAMix",
    "AdaBelief",
    "AdaFisher",
    "AdaFisherW",
    "AdaGradNorm",
    "AdaMax",
    "AdaMomentum",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Adam8bit",
    "AdamGS",
    "AdamW",
    "AdaptiveBatch",
    "AdaptiveBatchSampler",
    "Advice",
    "BFloat16",
    "Blockwise8bit",
    "CompositeSMD",
    "ConditionReport",
    "Device",
    "DiffGrad",
    "Dion",
    "Direction",
    "DistanceOverGradients",
    "DistributedShampoo",
    "DoG",
    "EXAdam",
    "FisherWindow",
    "Frugal",
    "GSNRReport",
    "GaLore",
    "GeneralizedSmoothness",
    "GradNormRecorder",
    "GradReg",
    "GradientMoments",
    "GradientNoise",
    "GradientNoiseReport",
    "Gravity",
    "Growth",
    "LDoG",
    "LastIterate",
    "LinearDecay",
    "Lion",
    "LionK",
    "Momentum",
    "Move",
    "Nadam",
    "Nesterov",
    "OptAMSGrad",
    "OptEx",
    "Optimizer",
    "PolynomialAverage",
    "ProxyProx",
    "Quantized",
    "QuantizedBlocks",
    "RMSPropGS",
    "RMSprop",
    "RiemannianAdagrad",
    "RiemannianAdam",
    "Risk",
    "RiskReport",
    "SGDM8bit",
    "SGDSaI",
    "SaddleFreeNewton",
    "ScalableShampoo",
    "Schedule",
    "Shampoo",
    "Shampoo4bit",
    "Snapshots",
    "Sophia",
    "SparseGGT",
    "SparseMFAC",
    "StableEmbedding",
    "StaticFisher",
    "StepSize",
    "StepTime",
    "StochasticAGD",
    "Storage",
    "TDoG",
    "Tabulated",
    "Traits",
    "UDoG",
    "WarmRestarts",
    "WithProxy",
    "WithStepSize",
    "XGrad",
    "abs_hessian_step",
    "acceleration_advice",
    "add_annealed_noise",
    "advise",
    "asgd_parameters",
    "condition",
    "condition_report",
    "constraint_violation",
    "coordinate_test",
    "effective_alpha",
    "equilibrate",
    "estimate_delta",
    "estimate_growth",
    "extrapolate",
    "fit_generalized_smoothness",
    "gradient_noise_report",
    "gsnr_report",
    "inner_product_test",
    "last_iterate_bound",
    "like",
    "linear_decay",
    "lion_from_adamw",
    "lion_lyapunov",
    "measure_device",
    "norm_test",
    "per_sample_gradients",
    "quantize_blockwise",
    "reduce",
    "refine",
    "remove_conditioning",
    "risk_report",
    "roles",
    "step_time",
]
