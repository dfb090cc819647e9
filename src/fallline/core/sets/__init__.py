"""Closed convex sets with a linear minimisation oracle, and most of them with a projection."""

from __future__ import annotations

from fallline.core.sets.balls import L1Ball, L2Ball, NuclearBall, Simplex
from fallline.core.sets.base import Region, Set
from fallline.core.sets.birkhoff import Birkhoff
from fallline.core.sets.boxes import Box, LInfBall, NonNegative
from fallline.core.sets.cones import PositiveSemidefinite, SecondOrderCone, SelfDualCone, along_ray

__all__ = [
    "Birkhoff", "Box", "L1Ball", "L2Ball", "LInfBall", "NonNegative", "NuclearBall", "PositiveSemidefinite", "Region",
    "SecondOrderCone", "SelfDualCone", "Set", "Simplex", "along_ray",
]
