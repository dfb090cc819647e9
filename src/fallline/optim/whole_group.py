"""Optimizers whose rule sees the parameters of a group as one vector; see :mod:`fallline.optim.engine.joint`."""

from __future__ import annotations

from fallline.optim.engine.joint import memory_of
from fallline.optim.engine.optimizer import Optimizer


class WholeGroup(Optimizer):
    """What they have in common: state whose size is worth knowing before it is made."""

    @property
    def memory(self) -> int:
        """Bytes of all groups' state, in the precision of the arithmetic."""
        return memory_of(self.direction, self.param_groups)
