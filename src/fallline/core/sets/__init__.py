"""Closed convex sets with a projection and a linear minimisation oracle."""

from __future__ import annotations

from fallline.core.sets.balls import L1Ball, L2Ball, NuclearBall, Simplex
from fallline.core.sets.base import Set
from fallline.core.sets.boxes import Box, LInfBall, NonNegative

__all__ = ["Box", "L1Ball", "L2Ball", "LInfBall", "NonNegative", "NuclearBall", "Set", "Simplex"]
