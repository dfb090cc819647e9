"""Packages that carry data, imported where used."""

from __future__ import annotations

import importlib
from typing import Any


def data_package(module: str, package: str) -> Any:
    """Import ``module``, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this problem's data comes with {package}: pip install 'fallline[problems]'") from error
