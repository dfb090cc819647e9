"""Curvature of a realisation: estimates of a Hessian's diagonal, the model linearised, and what follows from it.

The Hessian itself is an oracle of every problem: ``problem.hessian_operator(x)``.
"""

from __future__ import annotations

from fallline.core.curvature.diagonal import drawn_labels, gauss_newton_bartlett, hutchinson_diagonal
from fallline.core.curvature.gauss_newton import GaussNewton
from fallline.core.curvature.gram import push_through

__all__ = ["GaussNewton", "drawn_labels", "gauss_newton_bartlett", "hutchinson_diagonal", "push_through"]
