"""What descent methods are composed of: a descent (where a step goes), a search (how far), a curvature source.

``solvers.Minimizer(descent, search, curvature)`` puts them together; the named methods of ``fallline.solvers`` are such sentences.
"""

from fallline.solvers.descent.curvature import (
    Averaged,
    Curvature,
    Exact,
    Given,
    HutchinsonDiagonal,
    Lazy,
    Products,
    Sketched,
    Zero,
)
from fallline.solvers.descent.descents import (
    CubicNewton,
    Descent,
    GradientStep,
    NewtonStep,
    Path,
    Ray,
    RegularizedNewton,
    Step,
    TruncatedCG,
    TrustRegion,
)
from fallline.solvers.descent.minimizer import Composed
from fallline.solvers.descent.model_curvature import Fisher, GaussNewton, GaussNewtonProducts
from fallline.solvers.descent.searches import Armijo, Backtracking, Fixed, GradientNormalized, RatioTest, Search

__all__ = [
    "Armijo", "Averaged", "Backtracking", "Composed", "CubicNewton", "Curvature", "Descent", "Exact", "Fisher", "Fixed",
    "GaussNewton", "GaussNewtonProducts", "Given", "GradientNormalized", "GradientStep", "HutchinsonDiagonal", "Lazy", "NewtonStep",
    "Path", "Products", "RatioTest", "Ray", "RegularizedNewton", "Search", "Sketched", "Step", "TruncatedCG", "TrustRegion", "Zero",
]
