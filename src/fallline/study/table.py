"""Tables: what `runs` gives, and how a storage keeps it, as plain data that runs no code when it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fallline.core.space import Choice, Integers, LogUniform, Range, Uniform
from fallline.study.identity import digest
from fallline.study.settings import Entrant
from fallline.study.sources import StudyError
from fallline.study.trial import Record, as_stored

if TYPE_CHECKING:
    from fallline.study.storage import Storage

RANGES = {kind.__name__: kind for kind in (Uniform, LogUniform, Integers, Choice)}


@dataclass(frozen=True)
class Side:
    """All trials of one contender."""

    entrant: Entrant
    setting: Mapping[str, Any]
    tuning: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    code: str = ""
    """The setting as Python, written where its values were at hand."""

    @property
    def title(self) -> str:
        """How the side is called."""
        return self.entrant.title

    @property
    def values(self) -> list[float]:
        """The metric at the best setting, a value a fresh seed; ``inf`` where it diverged."""
        return [record.score for record in self.evaluations]


@dataclass(frozen=True)
class Terms:
    """What every side was given, as plain data."""

    problem: str
    kind: str
    limits: Mapping[str, float]
    tune: int
    tuning_seeds: int
    seeds: int
    seed: int
    metric: str
    prune: str = ""


@dataclass(frozen=True)
class RunTable:
    """What `runs` gives: the sides in the order they were named, and the terms."""

    terms: Terms
    sides: tuple[Side, ...]

    def __getitem__(self, title: str) -> Side:
        """The side called `title`."""
        return next(side for side in self.sides if side.title == title)

    @property
    def records(self) -> list[Record]:
        """All records."""
        return [record for side in self.sides for record in (*side.tuning, *side.evaluations)]

    @property
    def environment(self) -> dict[str, str]:
        """Versions and machines of the trials, several of one kind side by side."""
        names = dict.fromkeys(name for record in self.records for name in record.versions)
        found = {name: dict.fromkeys(record.versions[name] for record in self.records if name in record.versions) for name in names}
        return {name: " / ".join(values) for name, values in found.items()}

    @property
    def identity(self) -> str:
        """Equal for tables of the same trials."""
        return digest([side["title"] for side in self.content["sides"]] + [record.id for record in self.records])

    @property
    def content(self) -> dict[str, Any]:
        """The table as plain data; trials are their ids."""
        return {
            "terms": dataclasses.asdict(self.terms),
            "sides": [_side_content(side) for side in self.sides],
        }


def _side_content(side: Side) -> dict[str, Any]:
    entrant = side.entrant
    return {
        "title": side.title,
        "constructor": entrant.constructor,
        "form": entrant.form,
        "fixed": as_stored(entrant.fixed),
        "space": {name: [type(range_).__name__, *as_stored(vars(range_)).values()] for name, range_ in entrant.space.items()},
        "setting": dict(side.setting),
        "code": side.code,
        "tuning": [record.id for record in side.tuning],
        "evaluations": [record.id for record in side.evaluations],
    }


def read_table(content: Mapping[str, Any], storage: Storage) -> RunTable:
    """The table of which this is the content, its records taken from the storage.

    Raises
    ------
    StudyError
        When records are missing, or the content is of a version that this one cannot read.
    """
    try:
        return _read_table(content, storage)
    except (KeyError, TypeError, AttributeError) as error:
        said = f"this study cannot be read, it may be of another version ({error!r})"
        raise StudyError(f"{said}; run the same comparison again") from error


def _read_table(content: Mapping[str, Any], storage: Storage) -> RunTable:
    found = storage.get(_ids(content))
    missing = sum(id not in found for id in _ids(content))
    if missing:
        raise StudyError(f"{missing} trials of this study are not in its storage any more; run the same comparison again")
    sides = []
    for side in content["sides"]:
        space = {name: _range(*parts) for name, parts in side["space"].items()}
        entrant = Entrant(side["title"], side["constructor"], side["form"], side["fixed"], space)
        tuning, evaluations = (tuple(found[id] for id in side[stage]) for stage in ("tuning", "evaluations"))
        sides.append(Side(entrant, side["setting"], tuning, evaluations, side.get("code", "")))
    return RunTable(Terms(**content["terms"]), tuple(sides))


def _ids(content: Mapping[str, Any]) -> Iterable[str]:
    return (id for side in content["sides"] for stage in ("tuning", "evaluations") for id in side[stage])


def _range(kind: str, *parts: Any) -> Range:
    return Choice(*parts[0]) if kind == "Choice" else RANGES[kind](*parts)
