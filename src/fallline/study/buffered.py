"""A storage that outlasts an outage: what was finished waits in memory while it cannot be written, and the run goes on.

What was stored before the run is never run again: its ids are known from the start, and reading one of them waits for the storage.
"""

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
        Told in one text when reading or writing fails, and once more when writing works again.
    pause
        Seconds between a failed attempt and the next; five times as many for every second that the attempt took, so that a database
        that does not answer costs a run a sixth of its time.
    patience
        How many seconds `get` waits for a storage that cannot be read.
    last_seconds
        How long `close` tries.

    Attributes
    ----------
    unwritten : int
        How many records wait.
    trouble : str
        Why what waits is not written; empty when all is.
    """

    def __init__(self, storage: Storage, say: Callable[[str], None], *, pause: float = 1.0, patience: float = 600.0,
                 last_seconds: float = 10.0) -> None:
        self._storage, self._say, self._pause = storage, say, pause
        self._patience, self._last_seconds = patience, last_seconds
        self._known = storage.ids()
        self._records: dict[str, Record] = {}
        self._studies: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._due = 0.0
        self.trouble = ""

    @property
    def unwritten(self) -> int:
        """How many records wait."""
        return len(self._records)

    def ids(self) -> set[str]:
        """The ids of all records, also of those that wait."""
        return self._known | self._records.keys()

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records that are here or were there when the run began, by id.

        Raises
        ------
        StudyError
            When the storage could not be read for as long as ``patience``.
        """
        wanted = set(ids)
        here = {id: self._records[id] for id in wanted & self._records.keys()}
        there = wanted & self._known - here.keys()
        return here | (self._read(there) if there else {})

    def _read(self, ids: set[str]) -> dict[str, Record]:
        end, said = time.monotonic() + self._patience, False
        while True:
            try:
                return self._storage.get(ids)
            except StudyError as error:
                if time.monotonic() >= end:
                    raise
                if not said:
                    self._say(f"{error}. Finished trials are in it that are not run again; reading is tried for {self._patience:g} s")
                said = True
                time.sleep(RETRY_SECONDS)

    def put(self, record: Record) -> None:
        """Write one record and everything that waits, or let it wait too."""
        self._records[record.id] = record
        self._attempt()

    def studies(self) -> list[Study]:
        """All studies that are written."""
        return self._storage.studies()

    def put_study(self, id: str, name: str, content: Mapping[str, Any]) -> None:
        """Write one study after everything that waits, or let it wait too."""
        self._studies[id] = name, content
        self._attempt()

    def close(self) -> None:
        """Try a last time to write what waits."""
        end = time.monotonic() + self._last_seconds
        while self._records or self._studies:
            self._due = 0.0
            self._attempt()
            if time.monotonic() >= end:
                return
            if self.trouble:
                time.sleep(RETRY_SECONDS)
        self.trouble = ""

    def _write(self) -> None:
        for id, record in list(self._records.items()):
            self._storage.put(record)
            self._known.add(id)
            del self._records[id]
        for id, (name, content) in list(self._studies.items()):
            self._storage.put_study(id, name, content)
            del self._studies[id]
        if self.trouble:
            self.trouble = ""
            self._say("the storage can be written again; what waited is written")

    def _attempt(self) -> None:
        """Write what waits, unless that failed just now."""
        began = time.monotonic()
        if began < self._due:
            return
        try:
            self._write()
        except StudyError as error:
            ended = time.monotonic()
            self._due = ended + self._pause * max(1.0, 5 * (ended - began))
            if not self.trouble:
                self._say(f"{error}. The run goes on; {_waiting(self.unwritten)}, and writing is tried again")
            self.trouble = str(error)


def _waiting(count: int) -> str:
    return f"{count or 'no'} finished trial{' waits' if count == 1 else 's wait'} in memory"
