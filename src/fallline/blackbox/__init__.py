"""You have values or rankings only: simulations, laboratories, programs that autograd cannot see into."""

from fallline.blackbox.consensus import CBO, ConsensusHopping, cbo_gradient, consensus_point

__all__ = ["CBO", "ConsensusHopping", "cbo_gradient", "consensus_point"]
