"""Packages that carry data, imported where used."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Put Python's and NumPy's global generators back as they were: packages draw from them."""
    state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        numpy.random.set_state(numpy_state)


def data_package(module: str, package: str) -> Any:
    """Import ``module``, or say which extra brings it."""
    try:
        with undisturbed_generators():
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this problem's data comes with {package}: pip install 'fallline[problems]'") from error
