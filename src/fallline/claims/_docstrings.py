"""Docstrings as Markdown: an opening formula and a drawn table become blocks of plain text, and roles become code."""

from __future__ import annotations

import re
import textwrap

WIDTH = 80
FORMULA = re.compile(r"[^\s`]{1,7} (←|=|≈|~) ")
DRAWN = re.compile(r"^(=+ +=+)\n.*?\n\1$", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":\w+:`~?([^`]+)`")


def opening(text: str) -> str:
    """The first paragraph; a formula as a block with a line for every rule of it, and the sentences after it as they are."""
    paragraph = text.strip().partition("\n\n")[0].replace("\n", " ")
    if not FORMULA.match(paragraph):
        return " ".join(paragraph.split())
    formula, *sentences = re.split(r"(?<=\.) (?=[A-Z][a-z])", paragraph, maxsplit=1)
    rules = re.split(r"(?<=[;,])\s\s+", formula.replace("``", ""))
    block = _block("\n".join(textwrap.fill(rule, WIDTH, subsequent_indent="    ", break_on_hyphens=False) for rule in rules))
    return "\n\n".join([block, *sentences])


def readable(text: str) -> str:
    """The whole docstring."""
    text = DRAWN.sub(lambda table: _block(table[0].replace("``", "  ")), ROLE.sub(r"``\1``", text))
    first, gap, rest = text.partition("\n\n")
    return opening(first) + gap + rest if FORMULA.match(first) else text


def _block(text: str) -> str:
    return f"```text\n{text}\n```"
