"""Which methods take part: those that are named, or all registered ones, those of first order, or a room's, that fit the problem."""

from __future__ import annotations

from collections.abc import Iterable

from fallline.core import registry, tree
from fallline.core.errors import MissingOracle, WrongProblem
from fallline.core.problem import Problem
from fallline.study.runs import probe
from fallline.study.settings import Contender
from fallline.study.sources import StudyError

DENSE = 2_000
"""Methods that need a dense Hessian join ``"all"`` up to so many variables; above, they run when they are named."""


def fitting(problem: Problem, names: Iterable[str]) -> list[str]:
    """Those of the registered methods that can solve this problem; a dense Hessian is for few variables."""
    large, found = tree.size(problem.x0) > DENSE, []
    for name in names:
        side = Contender(name)
        try:
            method = side.method(probe(side, 0))
            method.check(problem)
        except (MissingOracle, WrongProblem, TypeError):  # TypeError: it has hyperparameters without defaults
            continue
        if not (large and "hessian" in method.needs):
            found.append(name)
    return found


def chosen(methods: str | Iterable[str | Contender | type], problem: Problem) -> list[str | Contender | type]:
    """Replace ``"all"``, ``"all-first-order"`` and the name of a room by the registered methods there that fit the problem."""
    names = registry.names()
    groups = {"all": names, "all-first-order": [name for name in names if registry.order(name) == 1], **registry.rooms()}
    found: list[str | Contender | type] = []
    for method in [methods] if isinstance(methods, str) else methods:
        wide = isinstance(method, str) and method in groups
        some = fitting(problem, groups[method]) if wide else [method]  # type: ignore[index]
        if not some:
            raise StudyError(f"no registered method of {method!r} can solve problem {problem.name!r}; `fallline papers` lists them")
        found += [entry for entry in some if entry not in found] if wide or isinstance(method, str) else some
    return found
