"""You have a run that you want to understand: the spectra of its curvature, its nearness to a Kronecker product, its saddles, what
batches do to it, what rates theory guarantees, and whether two solutions share a basin.

Diagnostics are plain functions of a problem and a point; they change neither.
"""

from fallline.landscape.basin import Segment, same_basin
from fallline.landscape.batch_scaling import BatchHessianReport, batch_hessian_report, scale_lr
from fallline.landscape.hessian_spectrum import gauss_newton_spectrum, hessian_spectrum
from fallline.landscape.kronecker import KroneckerReport, kronecker_report
from fallline.landscape.lanczos_lr import LanczosLR
from fallline.landscape.rates import Iterations, RateCheck, check_rate, iterations_for
from fallline.landscape.saddles import SaddleReport, saddle_report
from fallline.landscape.spectrum import Spectrum, SpectrumSummary, spectrum_summary
from fallline.landscape.theorems import THEOREMS, Theorem, theorem

__all__ = [
    "THEOREMS",
    "BatchHessianReport",
    "Iterations",
    "KroneckerReport",
    "LanczosLR",
    "RateCheck",
    "SaddleReport",
    "Segment",
    "Spectrum",
    "SpectrumSummary",
    "Theorem",
    "batch_hessian_report",
    "check_rate",
    "gauss_newton_spectrum",
    "hessian_spectrum",
    "iterations_for",
    "kronecker_report",
    "saddle_report",
    "same_basin",
    "scale_lr",
    "spectrum_summary",
    "theorem",
]
