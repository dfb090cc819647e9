"""Learning rates over time: torch schedulers for any torch optimizer, stepped once after each of its steps."""

from fallline.optim.schedules.gradient_norms import GradNormRecorder
from fallline.optim.schedules.last_iterate import LastIterate
from fallline.optim.schedules.linear import LinearDecay, linear_decay
from fallline.optim.schedules.refinement import last_iterate_bound, refine
from fallline.optim.schedules.snapshots import Snapshots
from fallline.optim.schedules.table import Schedule, Tabulated
from fallline.optim.schedules.warm_restarts import WarmRestarts

__all__ = ["GradNormRecorder", "LastIterate", "LinearDecay", "Schedule", "Snapshots", "Tabulated", "WarmRestarts", "last_iterate_bound",
           "linear_decay", "refine"]
