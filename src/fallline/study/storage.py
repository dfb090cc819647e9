"""Where finished trials are kept: one table in any database that SQLAlchemy reaches, SQLite by default.

Only finished trials are written, each in one transaction under its content hash, so that a run that is killed loses what it was
doing and nothing else, and several runs may share one table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from fallline.study.sources import StudyError
from fallline.study.trial import Record

TABLE = "fallline_trials"
JSON_COLUMNS = ("hyperparameters", "limits", "counts", "curve", "versions")
CHUNK = 200


class Storage(Protocol):
    """What `runs` asks of a place for records."""

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are there, by id."""

    def put(self, record: Record) -> None:
        """Keep one record; one with the same id is replaced."""


class Memory:
    """Records of this process only."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are there, by id."""
        return {id: self._records[id] for id in ids if id in self._records}

    def put(self, record: Record) -> None:
        """Keep one record."""
        self._records[record.id] = record


class Database:
    """Records in a database.

    Parameters
    ----------
    url
        What SQLAlchemy takes: ``sqlite:///trials.sqlite``, ``postgresql://user:password@host/name``.

    Raises
    ------
    StudyError
        When the database cannot be reached or its driver is missing; the message hides the password.
    """

    def __init__(self, url: str) -> None:
        import sqlalchemy as sa

        self.url = _shown(url)
        try:
            self._engine = sa.create_engine(url)
            columns: list[Any] = [sa.Column(name, sa.Text) for name in ("problem", "method", "metric", "status", "message")]
            columns += [sa.Column(name, sa.Text) for name in JSON_COLUMNS]
            columns += [sa.Column(name, sa.Integer) for name in ("seed", "steps")]
            columns += [sa.Column(name, sa.Float) for name in ("value", "start", "seconds")]
            columns += [sa.Column("written", sa.String(32))]
            metadata = sa.MetaData()
            self._table = sa.Table(TABLE, metadata, sa.Column("id", sa.String(32), primary_key=True), *columns)
            metadata.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> StudyError:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        return StudyError(
            f"storage {self.url!r} cannot be used: {reason}; "
            "give a database that exists and can be written, such as sqlite:///trials.sqlite"
        )

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are there, by id."""
        import sqlalchemy as sa

        wanted, found = list(ids), {}
        try:
            with self._engine.connect() as connection:
                for i in range(0, len(wanted), CHUNK):
                    query = sa.select(self._table).where(self._table.c.id.in_(wanted[i : i + CHUNK]))
                    for row in connection.execute(query).mappings():
                        found[row["id"]] = _from_row(dict(row))
        except sa.exc.SQLAlchemyError as error:
            raise self._unreachable(error) from error
        return found

    def put(self, record: Record) -> None:
        """Keep one record; one with the same id is replaced."""
        import sqlalchemy as sa

        row = _to_row(record)
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.delete(self._table).where(self._table.c.id == record.id))
                connection.execute(sa.insert(self._table).values(row))
        except sa.exc.IntegrityError:
            return  # another run wrote the same trial in between
        except sa.exc.SQLAlchemyError as error:
            raise self._unreachable(error) from error


def _shown(url: str) -> str:
    import sqlalchemy as sa

    try:
        return sa.engine.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url


def _plain(content: Any) -> Any:
    """Plain data that every JSON reader accepts: numbers that are not finite become null, other objects their repr."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content if isinstance(content, str | int | bool | None) else repr(content)


def _to_row(record: Record) -> dict[str, Any]:
    row = {name: json.dumps(_plain(dict(getattr(record, name))), allow_nan=False) for name in JSON_COLUMNS}
    row |= {name: getattr(record, name) for name in ("id", "problem", "method", "metric", "status", "message")}
    row |= {name: getattr(record, name) for name in ("seed", "steps", "seconds")}
    row |= {name: _plain(getattr(record, name)) for name in ("value", "start")}
    return row | {"written": datetime.now(UTC).isoformat(timespec="seconds")}


def _from_row(row: dict[str, Any]) -> Record:
    del row["written"]
    for name in JSON_COLUMNS:
        row[name] = json.loads(row[name])
    row["curve"] = {name: [math.inf if v is None else v for v in values] for name, values in row["curve"].items()}
    for name in ("value", "start"):
        row[name] = math.inf if row[name] is None else row[name]
    return Record(**row)


def open_storage(storage: str | Path | Storage | None) -> Storage:
    """Accept a database URL, the path of an SQLite file, an open storage, or None for memory; text without ``://`` is a path."""
    if storage is None:
        return Memory()
    if isinstance(storage, str | Path):
        return Database(str(storage) if "://" in str(storage) else f"sqlite:///{storage}")
    return storage
