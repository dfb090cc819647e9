"""Where records are kept: they come back as they were, from any storage, and wait while it cannot be written."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sides import PROBLEM, SGD, Notes
from storages import check_records, check_sharing, check_studies, made

from fallline.study import Database, Memory, Record, StudyError, runs
from fallline.study.buffered import Buffered
from fallline.study.storage import Storage, open_storage


@pytest.fixture(params=["memory", "sqlite", "buffered"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Every kind of storage that needs no server."""
    database = Database(f"sqlite:///{tmp_path / 'trials.sqlite'}")
    return {"memory": Memory(), "sqlite": database, "buffered": Buffered(database, pytest.fail)}[request.param]


def test_records_come_back_as_they_were(storage: Storage) -> None:
    check_records(storage)


def test_studies_come_back_oldest_first(storage: Storage) -> None:
    check_studies(storage)


def test_processes_share_a_file_that_none_of_them_has_made(tmp_path: Path) -> None:
    check_sharing(f"sqlite:///{tmp_path / 'trials.sqlite'}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trials.sqlite"


@pytest.fixture
def database(file: Path) -> Database:
    return Database(f"sqlite:///{file}")


def test_what_is_not_finite_is_null_in_the_texts_and_infinite_when_read(database: Database, file: Path) -> None:
    curve = {"value": [1.0, math.nan, -math.inf]}
    database.put(made("a", status="divergent", value=math.nan, start=math.inf, curve=curve, hyperparameters={"lr": math.inf}))
    with sqlite3.connect(file) as connection:
        ((value, record, text),) = connection.execute("select value, record, curve from fallline_records")
    assert value is None and json.loads(record)["start"] is None and json.loads(text) == {"value": [1.0, None, None]}
    found = database.get(["a"])["a"]
    assert (found.value, found.start) == (math.inf, math.inf) and found.hyperparameters == {"lr": None}
    assert found.curve["value"] == [1.0, math.inf, math.inf]


def test_a_curve_is_parsed_when_it_is_looked_at(database: Database, file: Path) -> None:
    database.put(made("a"))
    with sqlite3.connect(file) as connection:
        connection.execute("update fallline_records set curve = '{'")
    found = database.get(["a"])["a"]
    assert found.value == 0.25
    with pytest.raises(json.JSONDecodeError):
        found.curve.get("value")


def test_fields_of_other_versions_are_ignored_and_missing_ones_take_their_defaults(database: Database, file: Path) -> None:
    database.put(made("a"))
    with sqlite3.connect(file) as connection:
        ((text,),) = connection.execute("select record from fallline_records")
        held = json.loads(text) | {"temperature": 300}
        del held["state_bytes"], held["counts"], held["value"]
        connection.execute("update fallline_records set record = ?", (json.dumps(held),))
    assert database.get(["a"])["a"] == made("a", state_bytes=0, counts={}, value=math.inf)


def test_the_columns_can_be_asked(database: Database, file: Path) -> None:
    database.put(made("a"))
    with sqlite3.connect(file) as connection:
        rows = connection.execute("select problem, method, status, seed, value from fallline_records").fetchall()
    assert rows == [("digits", "lion", "finished", 2**40, 0.25)]


def test_long_texts_fit_where_text_is_short(database: Database) -> None:
    from sqlalchemy.dialects import mysql

    for table, long in ((database._records, ("record", "curve")), (database._studies, ("content",))):
        said = str(sa.schema.CreateTable(table).compile(dialect=mysql.dialect()))
        assert all(f"{name} LONGTEXT" in said for name in long)


def test_a_path_may_hold_what_a_url_may_not(tmp_path: Path) -> None:
    file = tmp_path / "is it 100%? #1@home.sqlite"
    open_storage(file).put(made("a"))
    assert file.is_file() and "a" in open_storage(str(file), create=False).get(["a"])


def test_reading_makes_no_file_and_no_tables(tmp_path: Path) -> None:
    missing, foreign = tmp_path / "missing.sqlite", tmp_path / "foreign.sqlite"
    sqlite3.connect(foreign).execute("create table other (id)")
    for file in (missing, foreign):
        with pytest.raises(StudyError, match=f"{file.name}.*holds no trials"):
            open_storage(file, create=False)
    assert not missing.exists() and sqlite3.connect(foreign).execute("select name from sqlite_master").fetchall() == [("other",)]


def test_a_file_that_may_only_be_read_is_read_and_refused_for_a_run(database: Database, file: Path) -> None:
    database.put(made("a"))
    url = f"sqlite:///file:{file}?mode=ro&uri=true"
    assert "a" in Database(url, create=False).get(["a"])
    with pytest.raises(StudyError, match="readonly"):
        Database(url)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, and long enough for it to be seen" * 100)
    with pytest.raises(StudyError, match=r"notes\.txt.*not a database"):
        open_storage(tmp_path / "notes.txt")


@pytest.mark.parametrize("url", ["postgresql://u:pa/ss@host:port/db", "postgresql://u:p@ss:w/x@h:bad/db"])
def test_a_malformed_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StudyError, match=r"no database URL|cannot be used") as refused:
        Database(url)
    assert not any(piece in str(refused.value) for piece in ("pa/ss", "ss:w", "'w'"))


class Disk:
    """How many pages every file of SQLite's may have, from the next transaction on."""

    pages = 2**30


@pytest.fixture
def disk() -> Iterator[Disk]:
    found = Disk()

    def limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"pragma max_page_count = {found.pages}")

    sa.event.listen(sa.Engine, "begin", limit)
    yield found
    sa.event.remove(sa.Engine, "begin", limit)


LONG = {"curve": {"value": [0.125] * 5_000}}


def test_records_wait_while_the_disk_is_full(disk: Disk, database: Database) -> None:
    said: list[str] = []
    buffered = Buffered(database, said.append, pause=0.0)
    buffered.put(made("before"))
    disk.pages = 1
    for id in "abc":
        buffered.put(made(id, **LONG))
    assert len(said) == 1 and "disk is full" in said[0] and "1 finished trial waits in memory" in said[0] and "tried again" in said[0]
    assert buffered.unwritten == 3 and "disk is full" in buffered.trouble
    assert set(buffered.get(["before", "a", "c", "none"])) == {"before", "a", "c"}
    assert set(database.get(["before", "a"])) == {"before"}
    disk.pages = 2**30
    buffered.put(made("d"))
    assert len(said) == 2 and "again" in said[1] and (buffered.unwritten, buffered.trouble) == (0, "")
    assert set(database.get("abcd")) == set("abcd") and buffered.get(["a"]) == {"a": made("a", **LONG)}
    disk.pages = 1
    buffered.put(made("e", **LONG))
    assert len(said) == 3 and buffered.unwritten == 1


def test_a_run_goes_on_while_the_disk_is_full(disk: Disk, file: Path) -> None:
    said: list[str] = []
    watching, again = Filling(disk), Notes()
    database = Database(f"sqlite:///{file}")
    table = runs(PROBLEM, [SGD], tune=4, seeds=2, storage=Buffered(database, said.append, pause=0.0), watcher=watching)
    assert len(said) == 2 and len(table.records) == 6
    runs(PROBLEM, [SGD], tune=4, seeds=2, storage=database, watcher=again)
    assert (len(again.stored), again.run) == (6, [])


class Filling(Notes):
    """Fills the disk after two trials, and frees it after four."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk = disk

    def finished(self, record: Record, stored: bool) -> None:
        super().finished(record, stored)
        self.disk.pages = 1 if 2 <= len(self.run) < 4 else 2**30


def test_a_database_that_another_process_keeps_locked_is_waited_for(database: Database, file: Path) -> None:
    said: list[str] = []
    database.put(made("there"))
    locked = Database(f"sqlite:///{file}?timeout=0.01")
    buffered, hurried = Buffered(locked, said.append, pause=0.0, last_seconds=30.0), Buffered(locked, said.append, patience=0.0)
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("begin exclusive")
    buffered.put(made("a"))
    buffered.put_study("s", "study", {})
    assert len(said) == 1 and "locked" in said[0] and buffered.unwritten == 1
    assert buffered.get(["a", "never seen"]) == {"a": made("a")}  # nothing of it can be in the database
    with pytest.raises(StudyError, match="locked"):
        hurried.get(["there"])
    release = threading.Timer(1.0, lambda: other.execute("rollback"))
    release.start()
    assert set(buffered.get(["there", "a"])) == {"there", "a"}  # what was finished is waited for, and never run again
    assert len(said) == 2 and "not run again" in said[1]
    release.join()
    buffered.close()
    assert (buffered.unwritten, buffered.trouble, len(said)) == (0, "", 3)
    assert set(database.get(["there", "a"])) == {"there", "a"} and [study.id for study in database.studies()] == ["s"]


def test_a_resumed_run_whose_database_is_away_for_a_moment_runs_nothing_twice(file: Path) -> None:
    notes, database = Notes(), Away(f"sqlite:///{file}")
    runs(PROBLEM, [SGD], tune=4, seeds=2, storage=database)
    database.away = 2
    notes.say = lambda text: None  # type: ignore[method-assign]
    runs(PROBLEM, [SGD], tune=4, seeds=2, storage=database, watcher=notes)
    assert notes.run == [] and len(notes.stored) == 6 and database.away == 0


class Away(Database):
    """A database whose next readings fail."""

    away = 0

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        if self.away:
            self.away -= 1
            raise StudyError("storage is away")
        return super().get(ids)


def test_what_could_not_be_written_is_said_at_the_end(database: Database, disk: Disk) -> None:
    said: list[str] = []
    buffered = Buffered(database, said.append, last_seconds=0.0)
    disk.pages = 1
    buffered.put(made("a", **LONG))
    buffered.close()
    assert buffered.unwritten == 1 and "disk is full" in buffered.trouble and len(said) == 1


def test_after_a_failure_the_storage_is_left_alone_for_a_while() -> None:
    asked = Refusing()
    buffered = Buffered(asked, Notes().stored.append, pause=3600.0, last_seconds=0.0)
    for id in "abc":
        buffered.put(made(id))
        buffered.get([id])
    assert asked.times == 1 and buffered.unwritten == 3
    buffered.close()
    assert asked.times == 2


class Refusing(Memory):
    """A storage that never writes."""

    times = 0

    def put(self, record: Record) -> None:
        self.times += 1
        raise StudyError("no")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:secret@nowhere.invalid/x", "nowhere"),
        ("sqlite:////no/such/folder/trials.sqlite", "no/such/folder"),
        ("no-such-database://me:secret@here", "no-such-database"),
    ],
)
def test_what_cannot_be_used_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(StudyError, match=said) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_missing_driver_is_named_with_its_remedy(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psycopg", "psycopg2"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(StudyError, match=r"fallline\[postgresql\]"):
        Database(f"{scheme}://me:secret@nowhere.invalid/x")
