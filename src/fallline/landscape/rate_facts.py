"""The numbers in a theorem's bound, from what a problem states.

    D = ‖x₀ − x*‖,  f(x₀) − f*,  σ*² = E‖∇f_i(x*) − ∇f(x*)‖²,  n;  without data L_max = L and σ*² = 0

follow from ``problem.facts``: ``solution`` x* and ``best_value`` f*. L, L_max, mu, G and delta_star have to be stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fallline.core import tree
from fallline.core.counts import Counts
from fallline.core.problem import Problem
from fallline.landscape.theorems import Theorem


def stated_facts(problem: Problem) -> dict[str, Any]:
    """The facts of a problem; of a composite one, those of its smooth term beneath its own."""
    smooth = problem.smooth.facts if problem.kind == "composite" else {}
    return {**smooth, **problem.facts}


def _distance(problem: Problem) -> float | None:
    solution = stated_facts(problem).get("solution")
    return None if solution is None else float(tree.norm(tree.sub(problem.x0, solution)))


def _initial_gap(problem: Problem) -> float | None:
    best = stated_facts(problem).get("best_value")
    return None if best is None else float(problem.value(problem.x0)) - float(best)


def _noise(problem: Problem) -> float | None:
    """σ*² from all samples' gradients at the solution; 0 where there are no samples."""
    smooth = problem.smooth if problem.kind == "composite" else problem
    solution = stated_facts(problem).get("solution")
    if not len(problem.parts):
        return 0.0
    if solution is None or not smooth.has("per_sample_gradients"):
        return None
    rows = torch.cat([g.flatten(1) for g in tree.leaves(smooth.per_sample_gradients(solution))], 1)
    return float((rows - rows.mean(0)).square().sum(1).mean())


def _largest_smoothness(problem: Problem) -> float | None:
    """L where there are no samples."""
    return None if len(problem.parts) else stated_facts(problem).get("L")


DERIVED: Mapping[str, Callable[[Problem], float | None]] = {
    "D": _distance, "initial_gap": _initial_gap, "sigma_star_squared": _noise, "L_max": _largest_smoothness,
    "n": lambda problem: len(problem.parts) or None}


def facts_for(row: Theorem, source: Problem | Mapping[str, Any], **given: float | None) -> dict[str, float]:
    """The numbers in a theorem's bound: stated by a mapping or a problem, or derived from what the problem states."""
    stated = stated_facts(source) if isinstance(source, Problem) else source
    known = {**stated, **{name: value for name, value in given.items() if value is not None}}
    beside = sorted(name for name, value in given.items() if value is not None and name not in row.needs)
    if beside:
        raise ValueError(f"{', '.join(beside)} has no place in the theorem for {row.method}; leave it out")
    free = source.counted(Counts()) if isinstance(source, Problem) else None
    found: dict[str, float] = {}
    for name in row.needs:
        value = known.get(name)
        if value is None and free is not None and name in DERIVED:
            value = DERIVED[name](free)
        if value is not None:
            found[name] = float(value)
    missing = [name for name in row.needs if name not in found]
    if missing:
        raise ValueError(f"the theorem for {row.method}, {', '.join(row.assumptions)}, needs the facts {', '.join(missing)}, which are "
                         "not known; state them in facts= (D, initial_gap and sigma_star_squared follow from solution and best_value; "
                         "batch_size is an argument)")
    wrong = [name for name, value in found.items() if not 0 <= value < math.inf or (value == 0 and name in ("L", "L_max", "mu", "G"))]
    if wrong:
        raise ValueError(f"facts must be finite and positive (D and noise may be 0), got {', '.join(f'{n}={found[n]}' for n in wrong)}")
    if "batch_size" in found and not 1 <= found["batch_size"] <= found["n"]:
        raise ValueError(f"batch_size must be between 1 and the {found['n']:g} samples, got {found['batch_size']:g}")
    return found
