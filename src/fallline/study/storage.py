"""Where finished trials and studies are kept: two tables in any database that SQLAlchemy reaches, SQLite by default.

Only finished trials are written, each in one transaction under its content hash, so that a run that is killed loses what it was
doing and nothing else, and several runs may share one table.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fallline.study.records import as_json, from_row, to_row
from fallline.study.sources import StudyError
from fallline.study.trial import Record

if TYPE_CHECKING:
    import sqlalchemy as sa

RECORDS, STUDIES = "fallline_records", "fallline_studies"
CHUNK = 500
SQLITE_WAIT_SECONDS = 30.0
POSTGRESQL_WAITS = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "keepalives_idle": 30}
"""When a server that has gone silent is given up on, in seconds (the second in milliseconds); the system itself waits far longer."""


@dataclass(frozen=True)
class Study:
    """What was compared, as plain data, and when that was written."""

    id: str
    name: str
    written: str
    content: Mapping[str, Any]


class Storage(Protocol):
    """What `runs` asks of a place for records; what cannot be read or written raises StudyError."""

    def ids(self) -> set[str]:
        """The ids of all records."""

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are there, by id."""

    def put(self, record: Record) -> None:
        """Keep one record; one with the same id is replaced."""

    def studies(self) -> list[Study]:
        """All studies, the oldest first."""

    def put_study(self, id: str, name: str, content: Mapping[str, Any]) -> None:
        """Keep one study; one with the same id is replaced."""


class Memory:
    """Records and studies of this process only."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._studies: dict[str, Study] = {}

    def ids(self) -> set[str]:
        """The ids of all records."""
        return set(self._records)

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are there, by id."""
        return {id: self._records[id] for id in ids if id in self._records}

    def put(self, record: Record) -> None:
        """Keep one record."""
        self._records[record.id] = record

    def studies(self) -> list[Study]:
        """All studies, the oldest first."""
        return sorted(self._studies.values(), key=lambda study: (study.written, study.id))

    def put_study(self, id: str, name: str, content: Mapping[str, Any]) -> None:
        """Keep one study."""
        self._studies[id] = Study(id, name, _now(), json.loads(as_json(content)))


class Database:
    """Records and studies in a database.

    Parameters
    ----------
    url
        What SQLAlchemy takes: ``sqlite:///trials.sqlite``, ``postgresql://user:password@host/name``.
    create
        Whether tables are made where there are none, and it is made sure that they can be written; False only reads.

    Raises
    ------
    StudyError
        When the database cannot be reached or written, or its driver is missing; the message hides the password.
    """

    def __init__(self, url: str | sa.URL, *, create: bool = True) -> None:
        import sqlalchemy as sa

        self.url = re.sub(r"(?<=://).*@", "***@", str(url))
        try:
            address = self._address(url)
            self.url = address.render_as_string(hide_password=True)
            self._engine = _engine(address)
            self._records, self._studies = _tables(sa.MetaData())
            if create:
                self._create_tables()
                with self._engine.begin() as connection:  # deletes nothing, and is refused where nothing may be written
                    connection.execute(sa.delete(self._studies).where(self._studies.c.id == ""))
            elif _no_file(address) or not sa.inspect(self._engine).has_table(RECORDS):
                raise StudyError(f"storage {self.url!r} holds no trials; give the database or file that `fallline compare` wrote to")
        except ImportError as error:
            raise StudyError(f"storage {self.url!r} needs a driver that is missing ({error}); {_remedy(self.url)}") from error
        except sa.exc.SQLAlchemyError as error:
            remedy = "give a database that exists and can be written, such as sqlite:///trials.sqlite"
            raise self._failed("used", error, remedy) from error

    def _address(self, url: str | sa.URL) -> sa.URL:
        import sqlalchemy as sa

        try:
            return sa.engine.make_url(url)
        except ValueError:  # its text may quote a piece of the password
            remedy = "write postgresql://user:password@host/name, with @ : / in the password percent-encoded"
            raise StudyError(f"storage {self.url!r} is no database URL; {remedy}") from None

    def _create_tables(self) -> None:
        import sqlalchemy as sa

        try:
            self._records.metadata.create_all(self._engine)
        except sa.exc.DBAPIError:  # another run may have made them since they were looked for
            self._records.metadata.create_all(self._engine)

    def _failed(self, what: str, error: Exception, remedy: str) -> StudyError:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        return StudyError(f"storage {self.url!r} cannot be {what}: {reason}; {remedy}")

    def ids(self) -> set[str]:
        """The ids of all records."""
        import sqlalchemy as sa

        try:
            with self._engine.connect() as connection:
                return set(connection.execute(sa.select(self._records.c.id)).scalars())
        except sa.exc.SQLAlchemyError as error:
            raise self._failed("read", error, "see that it is there and can be reached") from error

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are there, by id."""
        import sqlalchemy as sa

        wanted, found = list(ids), dict[str, Record]()
        columns = self._records.c.id, self._records.c.record, self._records.c.curve
        try:
            with self._engine.connect() as connection:
                for i in range(0, len(wanted), CHUNK):
                    query = sa.select(*columns).where(self._records.c.id.in_(wanted[i : i + CHUNK]))
                    found |= {id: from_row(record, curve) for id, record, curve in connection.execute(query)}
        except sa.exc.SQLAlchemyError as error:
            raise self._failed("read", error, "see that it is there and can be reached") from error
        return found

    def put(self, record: Record) -> None:
        """Keep one record; one with the same id is replaced."""
        self._replace(self._records, to_row(record))

    def studies(self) -> list[Study]:
        """All studies, the oldest first."""
        import sqlalchemy as sa

        columns = self._studies.c
        query = sa.select(columns.id, columns.name, columns.written, columns.content).order_by(columns.written, columns.id)
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
        except sa.exc.SQLAlchemyError as error:
            raise self._failed("read", error, "see that it is there and can be reached") from error
        return [Study(id, name, written, json.loads(content)) for id, name, written, content in rows]

    def put_study(self, id: str, name: str, content: Mapping[str, Any]) -> None:
        """Keep one study; one with the same id is replaced."""
        self._replace(self._studies, {"id": id, "name": name, "content": as_json(content)})

    def _replace(self, table: sa.Table, row: Mapping[str, Any]) -> None:
        import sqlalchemy as sa

        try:
            with self._engine.begin() as connection:
                connection.execute(sa.delete(table).where(table.c.id == row["id"]))
                connection.execute(sa.insert(table).values({**row, "written": _now()}))
        except sa.exc.IntegrityError:
            return  # another run wrote the same in between
        except sa.exc.SQLAlchemyError as error:
            raise self._failed("written", error, "see that it can be reached and has room") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table]:
    import sqlalchemy as sa
    from sqlalchemy.dialects.mysql import LONGTEXT

    long = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")  # whose plain TEXT ends at 64 KiB

    def table(name: str, *columns: sa.Column[Any]) -> sa.Table:
        return sa.Table(name, metadata, sa.Column("id", sa.String(32), primary_key=True), *columns, sa.Column("written", sa.String(32)))

    names = (sa.Column(name, sa.Text) for name in ("problem", "method", "status"))
    figures = sa.Column("seed", sa.BigInteger), sa.Column("value", sa.Double)
    return (
        table(RECORDS, *names, *figures, sa.Column("record", long), sa.Column("curve", long)),
        table(STUDIES, sa.Column("name", sa.Text), sa.Column("content", long)),
    )


def _engine(address: sa.URL) -> sa.Engine:
    import sqlalchemy as sa

    arguments: dict[str, Any] = {}
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+" + ("psycopg2" if importlib.util.find_spec("psycopg2") else "psycopg"))
    if address.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        arguments = {name: wait for name, wait in POSTGRESQL_WAITS.items() if name not in address.query}
    if address.get_backend_name() == "sqlite" and "timeout" not in address.query:
        # Processes that share the file wait for each other's locks. The journal stays SQLite's default, the rollback journal: it
        # survives kill -9 as a write-ahead log does, and needs no memory shared between processes, which network file systems lack.
        arguments = {"timeout": SQLITE_WAIT_SECONDS}
    return sa.create_engine(address, connect_args=arguments, pool_pre_ping=True)  # a server may have been started anew


def _no_file(address: sa.URL) -> bool:
    """Whether this is a file of SQLite's that is not there; connecting would make it."""
    path = address.database or ""
    named = address.get_backend_name() == "sqlite" and path not in ("", ":memory:") and not path.startswith("file:")
    return named and not Path(path).is_file()


def _remedy(url: str) -> str:
    return "pip install 'fallline[postgresql]'" if url.startswith("postgresql") else "install it with pip"


def open_storage(storage: str | Path | Storage | None, *, create: bool = True) -> Storage:
    """Accept a database URL, the path of an SQLite file, an open storage, or None for memory; text without ``://`` is a path.

    ``create=False`` opens what is there, to read it.
    """
    import sqlalchemy as sa

    if storage is None:
        return Memory()
    if isinstance(storage, str | Path):
        text = str(storage)
        return Database(text if "://" in text else sa.URL.create("sqlite", database=text), create=create)
    return storage
