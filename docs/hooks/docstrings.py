"""Lets the API pages show docstrings as they read best; see ``fallline.claims._docstrings``."""

from __future__ import annotations

from typing import Any

import griffe

from fallline.claims._docstrings import readable


class Docstrings(griffe.Extension):
    """Makes every docstring readable before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object of a package."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
