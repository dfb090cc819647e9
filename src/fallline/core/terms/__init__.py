"""Terms: functions whose proximal map has a closed form. Sets, whose proximal map is a projection, are in ``core.sets``."""

from __future__ import annotations

from fallline.core.terms.base import Scaled, SkipFirst, Term, Zero
from fallline.core.terms.concave import MCP, SCAD
from fallline.core.terms.norms import L1, L2, ElasticNet, GroupL2, SquaredL2

__all__ = ["L1", "L2", "MCP", "SCAD", "ElasticNet", "GroupL2", "Scaled", "SkipFirst", "SquaredL2", "Term", "Zero"]
