"""You have an objective: smooth, composite, finite-sum, constrained. Newton's family and its relatives."""

from fallline.solvers.lazy_newton import LazyCubicNewton, LazyNewton

__all__ = ["LazyCubicNewton", "LazyNewton"]
