"""fallline: descent methods on PyTorch, each with its paper's claim as an experiment you can run.

``fallline.optim`` are drop-in torch optimizers; ``solve``, ``minimize`` and ``compare`` take a problem and a method; the command
``fallline`` does the same from a shell.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Budget": "core.budget", "Key": "core.keys", "Objective": "core.objective", "Training": "core.objective",
    "Smooth": "core.constructors", "Composite": "core.constructors", "Constrained": "core.constructors",
    "CompositeLoss": "core.composite_loss", "FiniteSum": "core.constructors", "LinearModel": "core.linear_model",
    "LeastSquares": "core.least_squares", "LinearSystem": "core.constructors", "Bilevel": "core.constructors",
    "Saddle": "core.constructors", "BlackBox": "core.constructors", "Problem": "core.problem", "Method": "core.method",
    "AskTell": "core.method", "Train": "core.method", "Fitted": "core.method", "Report": "core.method", "Result": "core.result",
    "solve": "core.driver", "minimize": "core.minimize", "Uniform": "core.space", "LogUniform": "core.space",
    "Integers": "core.space", "Choice": "core.space", "compare": "study", "MissingOracle": "core.errors",
    "NonFiniteError": "core.errors", "FixedPoint": "core.fixed_point", "Fractional": "core.fractional",
    "Quadratic": "core.quadratic", "ConstrainedTraining": "core.constrained_training",
}
_PACKAGES = ("core", "optim", "solvers", "equations", "graphs", "bilevel", "blackbox", "distributed", "physics", "surgery",
             "landscape", "problems", "claims", "study")

__all__ = [*_HOMES, *_PACKAGES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is used when it is used: ``import fallline`` alone stays light."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"fallline.{_HOMES[name]}"), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"fallline.{name}")
    else:
        raise AttributeError(f"module 'fallline' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
