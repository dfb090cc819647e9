"""Whether a checkpoint belongs to a run: the method and its settings, the key, the problem, its start, and what it says there."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch

from fallline.core import tree
from fallline.core.errors import CheckpointError, MissingOracle
from fallline.core.keys import Key
from fallline.core.problem import Problem
from fallline.core.tree import Tree

# Another machine or number of threads rounds sums differently, and the run may go on there.
ROUNDING = 1e-4


def identity(problem: Problem, method: Any, key: Key) -> dict[str, Any]:
    """Return what must be the same for a run to go on; the problem is observed, which is not counted."""
    return {**method.identity(problem), "problem": problem.name, "kind": problem.kind, "variables": tree.size(problem.x0), "key": key,
            "starting point": _digest(problem.x0), "observation at the starting point": _observed(problem)}


def check(content: dict[str, Any], here: dict[str, Any], path: Path) -> None:
    """Raise ``CheckpointError`` unless the checkpoint's ``content`` is of the run ``here``."""
    for name, mine in here.items():
        found = content.get(name)
        same = _close(found, mine) if isinstance(mine, dict) else found == mine
        if not same:
            raise CheckpointError(f"the checkpoint {str(path)!r} is of another run: its {name} is {found!r}, "
                                  f"this run's is {mine!r}; choose another path, or delete it to start again")


def _close(found: Any, mine: dict[str, float]) -> bool:
    return isinstance(found, dict) and found.keys() == mine.keys() and all(
        math.isclose(found[name], number, rel_tol=ROUNDING, abs_tol=ROUNDING) or (found[name] != found[name] and number != number)
        for name, number in mine.items())


def _observed(problem: Problem) -> dict[str, float]:
    try:
        return problem.observe(problem.x0)
    except MissingOracle:  # a problem may have no value to observe
        return {}


def _digest(x: Tree) -> str:
    numbers = hashlib.blake2b(digest_size=16)
    for leaf in tree.leaves(x):
        numbers.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
        numbers.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return numbers.hexdigest()
