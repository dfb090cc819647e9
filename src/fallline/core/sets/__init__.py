"""Closed convex sets with a linear minimisation oracle, and most of them with a projection."""

from __future__ import annotations

from fallline.core.sets.balls import L1Ball, L2Ball, NuclearBall, Simplex
from fallline.core.sets.base import Region, Set
from fallline.core.sets.birkhoff import Birkhoff
from fallline.core.sets.boxes import Box, LInfBall, NonNegative

__all__ = ["Birkhoff", "Box", "L1Ball", "L2Ball", "LInfBall", "NonNegative", "NuclearBall", "Region", "Set", "Simplex"]
