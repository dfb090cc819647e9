"""You have several machines, or data that may not leave them: compression, and what follows from it."""

from fallline.distributed.powersgd import LowRankAggregator, PowerSGD, powersgd_hook

__all__ = ["LowRankAggregator", "PowerSGD", "powersgd_hook"]
