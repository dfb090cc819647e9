"""The storage in a PostgreSQL of the test's own: shared by processes, stopped and started during a run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sides import PROBLEM, SGD, Notes
from storages import check_records, check_sharing, check_studies, made

from fallline.study import Database, Record, StudyError, runs
from fallline.study.buffered import Buffered

pytest.importorskip("psycopg", reason="needs psycopg: pip install 'fallline[postgresql]'")
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
NEEDS = "needs a PostgreSQL server: apt-get install postgresql"


class Server:
    """A PostgreSQL in a folder, started and stopped at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"postgres:secret@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL's, which does not work for root."""
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*user, str(PROGRAMS[-1].with_name(program)), "-D", str(self.folder), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, timeout=60)

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not PROGRAMS:
        pytest.skip(NEEDS)
    folder = Path(tempfile.mkdtemp(prefix="fallline-postgresql-"))  # a short path of its own: another user must reach it
    found = Server(folder)
    password = folder.with_suffix(".password")
    password.write_text("secret")
    try:
        if os.geteuid() == 0:
            try:
                shutil.chown(folder, "postgres")
                shutil.chown(password, "postgres")
            except LookupError:
                pytest.skip(NEEDS)
        found.run("initdb", "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync")
        found.start()
        try:
            yield found
        finally:
            found.stop()
    finally:
        password.unlink()
        shutil.rmtree(folder)


@pytest.fixture(params=["postgresql", "postgresql+psycopg"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    """An empty database, by both schemes."""
    import psycopg

    with psycopg.connect(f"postgresql://{server.address}", autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")
    return f"{request.param}://{server.address}"


def test_records_and_studies_come_back_as_they_were(url: str) -> None:
    database = Database(url)
    check_records(database)
    check_studies(database)
    assert database.get(["a"]) == Database(url, create=False).get(["a"])


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_processes_share_it(url: str) -> None:
    check_sharing(url)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_reading_makes_no_tables_and_who_may_not_write_is_refused(url: str) -> None:
    with pytest.raises(StudyError, match="holds no trials"):
        Database(url, create=False)
    Database(url).put(made("a"))
    only = f"{url}?options=-c%20default_transaction_read_only%3Don"
    assert "a" in Database(only, create=False).get(["a"])
    with pytest.raises(StudyError, match="read-only") as caught:
        Database(only)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_run_goes_on_while_the_server_is_away(url: str, server: Server) -> None:
    said: list[str] = []
    again = Notes()
    buffered = Buffered(Database(url), said.append, pause=0.0)
    table = runs(PROBLEM, [SGD], tune=4, seeds=2, storage=buffered, watcher=Away(server))
    assert len(said) == 2 and "secret" not in said[0] and "1 finished trial waits" in said[0]
    assert buffered.unwritten == 0
    runs(PROBLEM, [SGD], tune=4, seeds=2, storage=url, watcher=again)
    assert set(again.stored) == {record.id for record in table.records} and again.run == []


class Away(Notes):
    """Stops the server after a trial, and starts it again after four."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server

    def finished(self, record: Record, stored: bool) -> None:
        super().finished(record, stored)
        if len(self.run) == 1:
            self.server.stop()
        if len(self.run) == 4:
            self.server.start()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_server_that_is_away_is_refused_at_the_door(url: str, server: Server) -> None:
    server.stop()
    try:
        with pytest.raises(StudyError, match="127") as caught:
            Database(url)
        assert "secret" not in str(caught.value)
    finally:
        server.start()
