"""Fixed points x = T(x): the problem, the iteration with its implicit gradient, and a map at many points at once.

``FixedPoint`` is the problem, for methods and ``solve``. ``iterate`` runs x ← T(x) to a tolerance, ``attach`` gives a fixed point the
gradient of the equation it solves, and ``implicit_fixed_point`` does both: what layers that are defined by an equation need.
``ParallelMap`` evaluates a map at many points beside each other.
"""

from __future__ import annotations

from fallline.core.fixed_point.implicit import Iterated, attach, implicit_fixed_point, iterate
from fallline.core.fixed_point.parallel_map import EXECUTORS, Executor, ParallelMap, check_executor
from fallline.core.fixed_point.problem import FixedPoint

__all__ = [
    "EXECUTORS", "Executor", "FixedPoint", "Iterated", "ParallelMap", "attach", "check_executor", "implicit_fixed_point", "iterate",
]
