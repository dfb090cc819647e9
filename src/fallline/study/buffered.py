"""A storage that outlasts an outage: while it cannot be written, what was finished waits in memory and the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fallline.study.sources import StudyError
from fallline.study.storage import Storage, Study
from fallline.study.trial import Record

RETRY_SECONDS = 0.5


class Buffered:
    """A storage for the length of a run.

    Parameters
    ----------
    storage
        Where records belong.
    say
        Told in one text when writing fails, and once more when it works again.
    pause
        Seconds between a failed attempt and the next; five times as many for every second that the attempt took, so that a database
        that does not answer costs a run a sixth of its time.
    last_seconds
        How long `close` tries.

    Attributes
    ----------
    unwritten : int
        How many records wait.
    trouble : str
        Why what waits is not written; empty when all is.
    """

    def __init__(self, storage: Storage, say: Callable[[str], None], *, pause: float = 1.0, last_seconds: float = 10.0) -> None:
        self._storage, self._say, self._pause, self._last_seconds = storage, say, pause, last_seconds
        self._records: dict[str, Record] = {}
        self._studies: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._due = {"read": 0.0, "write": 0.0}  # on a full disk reading goes on
        self.trouble = ""

    @property
    def unwritten(self) -> int:
        """How many records wait."""
        return len(self._records)

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are here or there, by id; those that are here while the storage does not answer."""
        wanted = list(ids)
        here = {id: self._records[id] for id in wanted if id in self._records}
        there: dict[str, Record] = {}
        self._attempt("read", lambda: there.update(self._storage.get(wanted)))
        return there | here

    def put(self, record: Record) -> None:
        """Write one record and everything that waits, or let it wait too."""
        self._records[record.id] = record
        self._attempt("write", self._write)

    def studies(self) -> list[Study]:
        """All studies that are written."""
        return self._storage.studies()

    def put_study(self, id: str, name: str, content: Mapping[str, Any]) -> None:
        """Write one study after everything that waits, or let it wait too."""
        self._studies[id] = name, content
        self._attempt("write", self._write)

    def close(self) -> None:
        """Try a last time to write what waits."""
        end = time.monotonic() + self._last_seconds
        while self._records or self._studies:
            self._due["write"] = 0.0
            self._attempt("write", self._write)
            if time.monotonic() >= end:
                return
            if self.trouble:
                time.sleep(RETRY_SECONDS)
        self.trouble = ""

    def _write(self) -> None:
        for id, record in list(self._records.items()):
            self._storage.put(record)
            del self._records[id]
        for id, (name, content) in list(self._studies.items()):
            self._storage.put_study(id, name, content)
            del self._studies[id]
        if self.trouble:
            self.trouble = ""
            self._say("the storage can be written again; what waited is written")

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        """Do something with the storage, unless it failed just now."""
        began = time.monotonic()
        if began < self._due[what]:
            return
        try:
            action()
        except StudyError as error:
            ended = time.monotonic()
            self._due[what] = ended + self._pause * max(1.0, 5 * (ended - began))
            if not self.trouble:
                self._say(f"{error}. The run goes on; {_waiting(self.unwritten)}, and writing is tried again")
            self.trouble = str(error)


def _waiting(count: int) -> str:
    return f"{count or 'no'} finished trial{' waits' if count == 1 else 's wait'} in memory"
