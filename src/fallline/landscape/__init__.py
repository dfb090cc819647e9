"""You have a run that you want to understand: the spectra of its curvature, and whether two solutions share a basin.

Diagnostics are plain functions of a problem and a point; they change neither.
"""

from fallline.landscape.basin import Segment, same_basin
from fallline.landscape.hessian_spectrum import gauss_newton_spectrum, hessian_spectrum
from fallline.landscape.spectrum import Spectrum, SpectrumSummary, spectrum_summary

__all__ = ["Segment", "Spectrum", "SpectrumSummary", "gauss_newton_spectrum", "hessian_spectrum", "same_basin", "spectrum_summary"]
