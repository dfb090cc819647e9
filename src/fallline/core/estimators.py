"""Estimators of a gradient from samples, tracked over a run.

STORM:   d ← G(now; ξ) + (1 − η) (d − G(before; ξ)),   the same sample ξ at both points
"""

from __future__ import annotations

from fallline.core import tree
from fallline.core.tree import Tree


def storm(estimate: Tree, now: Tree, before: Tree, eta: float) -> Tree:
    """Return ``now + (1 − η)(estimate − before)``; η = 1 is the plain stochastic gradient.

    Cutkosky, Orabona: Momentum-based variance reduction in non-convex SGD, arXiv 1905.10018.
    """
    return tree.axpy(1.0 - eta, tree.sub(estimate, before), now)
