"""Trust regions: steps of a quadratic model within a radius that is adapted by how well the model predicts.

    s ≈ argmin ⟨g, s⟩ + ½⟨∇²f(x) s, s⟩  with ‖s‖ ≤ Δ,    ρ = (f(x) − f(x + s)) / (fall of the model)
    ρ < 1/4: Δ ← Δ/4;   ρ > 3/4 at the boundary: Δ ← min(2Δ, Δ_max);   x ← x + s if ρ > 10⁻⁴

``TrustRegionCG`` solves it by conjugate gradients from products with the Hessian, to the boundary or along negative curvature
(Steihaug); ``TrustRegionNewton`` exactly, from an eigendecomposition.

Sila Gulgec, Shi, Deshmukh, Pakzad, Takáč: FD-Net with Auxiliary Time Steps: Fast Prediction of PDEs using Hessian-Free Trust-Region
Methods, arXiv 1910.12680; the constants are the customary ones of J. Nocedal and S. J. Wright, *Numerical Optimization*, algorithm 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from fallline.core.registry import register
from fallline.core.space import Range
from fallline.solvers.descent.curvature import Curvature, Exact, Products
from fallline.solvers.descent.descents import Descent, TruncatedCG, TrustRegion
from fallline.solvers.descent.minimizer import Composed
from fallline.solvers.descent.model_curvature import GaussNewtonProducts
from fallline.solvers.descent.searches import RatioTest, Search


@register("trust-region-cg")
@dataclass(frozen=True)
class TrustRegionCG(Composed):
    """x ← x + s, s from conjugate gradients on the quadratic model, ended by ‖s‖ = Δ, negative curvature or ‖r‖ ≤ min(½, √‖g‖)‖g‖.

    Parameters
    ----------
    delta0 : float, default 1
        The first radius Δ.
    max_cg : int, default 50
        Hessian-vector products a trial; each costs two to three gradients.
    hvp : {"exact", "gauss_newton"}, default "exact"
        "gauss_newton" takes Jᵀ∇²ℓJ of a ``Training`` or ``LeastSquares`` problem, which has no negative curvature.

    Notes
    -----
    For any smooth objective; leaves saddle points where the gradient is not exactly 0. Memory of five vectors beside the graph of a
    gradient. Reports the gradient norm as the gap. Values, gradients and products of a step are of the same data: the whole of it.
    """

    delta0: float = 1.0
    max_cg: int = 50
    hvp: Literal["exact", "gauss_newton"] = "exact"

    needs: ClassVar[tuple[str, ...]] = ("gradient", "hvp")
    space: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        if self.hvp not in ("exact", "gauss_newton"):
            raise ValueError(f"hvp must be 'exact' or 'gauss_newton', got {self.hvp!r}")
        self.parts()  # the door

    def parts(self) -> tuple[Descent, Search, Curvature]:
        source = Products() if self.hvp == "exact" else GaussNewtonProducts()
        return TruncatedCG(self.max_cg), RatioTest(self.delta0), source


@register("trust-region-newton")
@dataclass(frozen=True)
class TrustRegionNewton(Composed):
    """x ← x + s, s = argmin of the quadratic model over ‖s‖ ≤ Δ, from an eigendecomposition of the Hessian.

    Parameters
    ----------
    delta0 : float, default 1
        The first radius Δ.

    Notes
    -----
    For any smooth objective of up to a few thousand variables. Leaves saddle points, with gradient 0 as well, but where ``tol`` has
    ended the run before: the gap is the gradient norm.
    """

    delta0: float = 1.0

    def __post_init__(self) -> None:
        self.parts()  # the door

    def parts(self) -> tuple[Descent, Search, Curvature]:
        return TrustRegion(), RatioTest(self.delta0), Exact()
