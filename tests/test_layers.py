"""Imports go one way: core <- optim <- rooms <- claims, study <- cli."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fallline"
MAY_IMPORT = {"core": set(), "optim": {"core"}, "problems": {"core"}, "study": None, "claims": None, "cli": None}


def imported(path):
    """The subpackages of fallline that a file imports at its top level or inside functions."""
    package = path.relative_to(SOURCE).parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = list(path.relative_to(SOURCE).parts[:-1])
                module = ".".join(["fallline", *here[: len(here) - node.level + 1], *filter(None, [node.module])])
            names = [module] if module != "fallline" else [f"fallline.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        yield from (n.split(".")[1] for n in names if n.startswith("fallline.") and n.split(".")[1] != package)


FILES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    package = path.relative_to(SOURCE).parts[0]
    allowed = MAY_IMPORT.get(package, {"core", "optim"})
    found = set(imported(path))
    assert package in ("cli", "claims") or not found & {"cli"}
    if allowed is not None:
        assert found <= allowed, f"{package} may import {sorted(allowed)}, and imports {sorted(found - allowed)}"
