"""What is done to pages when the site is built.

A page of the API names its package in its front matter, ``package: fallline.optim``, and is filled from the package's ``__all__``:
every exported name, below the idea of the file that defines it. A new file of a package appears without being listed anywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

from fallline.claims._docstrings import readable

SOURCE = Path(__file__).resolve().parents[2] / "src"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill a page that names a package; a page alone in its tab needs no list of its neighbours."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    package = page.meta.get("package")
    return markdown if package is None else f"{markdown}\n\n{contents(package)}"


def contents(package: str) -> str:
    """The package's docstring and own names, then a section for every file that defines exported ones, in the order of imports."""
    found = griffe.load(package, search_paths=[SOURCE], resolve_aliases=True)
    exported = set(map(str, found.exports or []))
    files: dict[str, list[griffe.Object]] = {}
    for name in found.members:
        if name in exported:
            defined = definition(found, name)
            files.setdefault(defined.module.path, []).append(defined)
    opening = readable(found.docstring.value) if found.docstring else ""
    ordered = sorted(files, key=lambda path: path != package)
    return "\n\n".join([opening, *(section(package, files[path]) for path in ordered)])


def definition(package: griffe.Module, name: str) -> griffe.Object:
    """What the package exports under the name; a function may have the name of its file."""
    found = package[name].final_target if package[name].is_alias else package[name]
    return found[name] if found.is_module else found


def section(package: str, members: list[griffe.Object]) -> str:
    """One file's idea, under its first words, and its exported names."""
    module, listed = members[0].module, [f"::: {member.path}" for member in members]
    if module.path == package or module.docstring is None:
        return "\n\n".join(listed)
    text = readable(module.docstring.value)
    first, _, rest = text.partition("\n")
    title = re.split(r"[:;(]|\.(?:\s|$)", first)[0].strip()
    said = (rest if first.rstrip(".") == title else text).strip("\n")
    return "\n\n".join([f"## {title}", said, *listed])


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the dash before a description that is not there."""
    return re.sub(r"\s*–\s*<div class=\"doc-md-description\">\s*</div>", "", html)
