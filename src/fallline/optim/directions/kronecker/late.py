"""Roots that are computed in the background while steps go on.

What is waited for is decided by the step's number alone, so the same run gives the same numbers however long a root takes: the
background is a cache of ``function(snapshot)``, and whoever asks without it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


class _Job(NamedTuple):
    snapshot: Tensor
    future: Future[Tensor]


class LateRoots:
    """One worker thread, and the last thing it was given for every key."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._jobs: dict[Hashable, _Job] = {}

    def start(self, key: Hashable, snapshot: Tensor, function: Function) -> None:
        """Begin with ``function(snapshot)``; on a GPU, the host does it."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "fallline-roots")
        given, ready = snapshot.detach().clone(), None
        if given.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        self._jobs[key] = _Job(given, self._executor.submit(_computed, function, given, ready))

    def take(self, key: Hashable, snapshot: Tensor, function: Function) -> Tensor:
        """``function(snapshot)``, from the background where it was given the same numbers."""
        job = self._jobs.pop(key, None)
        if job is not None and job.snapshot.shape == snapshot.shape and torch.equal(job.snapshot, snapshot):
            return job.future.result().to(snapshot.device)
        return _computed(function, snapshot.detach(), None).to(snapshot.device)

    def __getstate__(self) -> dict[str, Any]:
        return {"_executor": None, "_jobs": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> LateRoots:
        return LateRoots()


@torch.no_grad()
def _computed(function: Function, snapshot: Tensor, ready: Any) -> Tensor:
    if ready is not None:
        torch.cuda.current_stream(snapshot.device).wait_event(ready)
    return function(snapshot.cpu())
