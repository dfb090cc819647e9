"""Records as rows of a table, and back.

What a record says is one JSON text, and its curve another, which is parsed when it is looked at. A later version may know other
fields: those it does not know are ignored, those that are missing take their defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from fallline.study.trial import Record

FIELDS = frozenset(field.name for field in fields(Record)) - {"curve"}
FLOATS = frozenset(field.name for field in fields(Record) if field.type == "float")


@dataclass(frozen=True, eq=False)
class Curve(Mapping[str, list[float]]):
    """A curve as it is stored, parsed at the first look."""

    text: str

    @cached_property
    def _columns(self) -> dict[str, list[float]]:
        return {name: [_finite_or_inf(v) for v in values] for name, values in json.loads(self.text).items()}

    def __getitem__(self, name: str) -> list[float]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def plain(content: Any) -> Any:
    """Plain data that every JSON reader accepts: numbers that are not finite become null, other objects their repr."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(name): plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content if isinstance(content, str | int | bool | None) else repr(content)


def as_json(content: Any) -> str:
    """Plain data as text, ASCII only, so that every database takes whatever a name or a message holds."""
    return json.dumps(plain(content), allow_nan=False, separators=(",", ":"))


def to_row(record: Record) -> dict[str, Any]:
    """The columns of a record. Those beside the two texts are for people who ask the database, and are not read back."""
    return {
        "id": record.id,
        "problem": _column(record.problem),
        "method": _column(record.method),
        "status": record.status,
        "seed": record.seed,
        "value": plain(record.value),
        "record": as_json({name: getattr(record, name) for name in FIELDS}),
        "curve": as_json(record.curve),
    }


def from_row(record: str, curve: str) -> Record:
    """The record of which these are the texts."""
    held = {name: value for name, value in json.loads(record).items() if name in FIELDS}
    held |= {name: _finite_or_inf(held[name]) for name in FLOATS & held.keys()}
    return Record(**held, curve=Curve(curve))


def _finite_or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _column(text: str) -> str:
    """Text that every database takes: no halves of surrogate pairs, no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")
