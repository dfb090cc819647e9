"""What every storage must do, for the tests of several kinds of them, and scripts' work on one that several processes share."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

from fallline.study import Record
from fallline.study.storage import Storage, open_storage

WRITERS, EACH = 2, 20


def made(id: str, **changes: Any) -> Record:
    """A record with something in every field."""
    fields: dict[str, Any] = {
        "problem": "digits",
        "method": "lion",
        "hyperparameters": {"lr": 0.125, "nesterov": True, "name": "a"},
        "limits": {"steps": 30.0},
        "seed": 2**40,
        "status": "finished",
        "metric": "loss",
        "value": 0.25,
        "start": 2.5,
        "steps": 30,
        "seconds": 1.5,
        "counts": {"gradients": 30},
        "curve": {"step": [0.0, 30.0], "value": [2.5, 0.25]},
        "state_bytes": 96,
        "message": "said 'so'\n\0 \ud800 ü",
        "versions": {"torch": "2"},
    }
    return Record(id, **(fields | changes))


def check_records(storage: Storage) -> None:
    """Records come back as they were, one per id, and only those asked for."""
    first, second = made("a"), made("b", status="error", value=math.inf, curve={})
    storage.put(first)
    storage.put(second)
    assert storage.get(["b", "a", "c"]) == {"a": first, "b": second}
    assert storage.get([]) == {}
    again = made("b", value=0.5, method="odd \ud800\0 name")
    storage.put(again)
    assert storage.get(["a", "b"]) == {"a": first, "b": again}
    many = [f"{i:024x}" for i in range(1201)]
    storage.put(made(many[-1]))
    assert list(storage.get(many)) == many[-1:]


def check_studies(storage: Storage) -> None:
    """Studies come oldest first; one that is written again is the latest."""
    assert storage.studies() == []
    content = {"sides": [{"title": "a", "setting": {"lr": 0.1}, "ids": ("x", "y")}], "worst": math.inf}
    for id in ("b", "a"):
        storage.put_study(id, f"study {id}", content)
    old, new = storage.studies()
    assert (old.id, new.id, old.name) == ("b", "a", "study b") and old.written < new.written
    assert old.content == {"sides": [{"title": "a", "setting": {"lr": 0.1}, "ids": ["x", "y"]}], "worst": None}
    storage.put_study("b", "again", {})
    assert [(study.id, study.name, study.content) for study in storage.studies()][1] == ("b", "again", {})
    assert len(storage.studies()) == 2


def check_sharing(url: str) -> None:
    """Processes that start at once make one set of tables, and each record is there, whoever wrote it."""
    command = [sys.executable, __file__, url]
    writers = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(WRITERS)]
    assert [writer.communicate(timeout=120)[1] for writer in writers] == [""] * WRITERS
    ids = [f"{n}-{i}" for n in range(WRITERS) for i in range(EACH)]
    found = open_storage(url).get([*ids, *(f"shared-{i}" for i in range(EACH))])
    assert len(found) == (WRITERS + 1) * EACH
    assert all(found[id] == made(id) for id in ids)


if __name__ == "__main__":
    shared = open_storage(sys.argv[1])
    for i in range(EACH):
        shared.put(made(f"shared-{i}"))
        shared.put(made(f"{sys.argv[2]}-{i}"))
