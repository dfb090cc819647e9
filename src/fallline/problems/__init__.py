"""You have nothing yet: ready problems with real or generated data, offline.

``problems.make("digits-mlp", seed=0)``; ``problems.names()`` lists them. Each function's docstring states input, loss, metric, best
known value and default budget. The seed moves the starting point and generated data, never the split of real data.
"""

from __future__ import annotations

from collections.abc import Callable

from fallline.core.errors import UnknownName
from fallline.core.problem import Problem
from fallline.problems.convex import least_squares, logistic, logistic_l1
from fallline.problems.cutest import CUTEST, CUTEST_EQUALITY, cutest
from fallline.problems.diagonal import diagonal_linear_net
from fallline.problems.harvey import harvey_function
from fallline.problems.images import digits_cnn, digits_mlp, mnist1d
from fallline.problems.nonconvex import matrix_sensing, rosenbrock
from fallline.problems.text import byte_lm, tiny_lm
from fallline.problems.weakly_convex import absolute_regression, blind_deconvolution, robust_phase_retrieval

__all__ = [
    "CUTEST", "CUTEST_EQUALITY", "absolute_regression", "blind_deconvolution", "byte_lm", "cutest", "diagonal_linear_net",
    "digits_cnn", "digits_mlp", "harvey_function", "least_squares", "logistic", "logistic_l1", "make", "makers", "matrix_sensing",
    "mnist1d", "names", "robust_phase_retrieval", "rosenbrock", "tiny_lm",
]


def makers() -> dict[str, Callable[..., Problem]]:
    """Return the functions ``seed -> Problem`` by name."""
    ready = (digits_mlp, digits_cnn, byte_lm, tiny_lm, logistic, logistic_l1, least_squares, rosenbrock, mnist1d, matrix_sensing,
             diagonal_linear_net, absolute_regression, robust_phase_retrieval, blind_deconvolution)
    return {f.__name__.replace("_", "-"): f for f in ready} | {f"cutest-{name.lower()}": cutest(name) for name in CUTEST}


def names() -> list[str]:
    """Return the names of the ready problems."""
    return sorted(makers())


def make(name: str, seed: int = 0) -> Problem:
    """Return a ready problem by name; an unknown name raises ``UnknownName`` with suggestions."""
    known = makers()
    if name not in known:
        raise UnknownName("problem", name, known)
    return known[name](seed)
